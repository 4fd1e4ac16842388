"""`rexthinker-edge compare`: what one bundle loses against another, or against the checkpoint it was made of.

Contract  With --json standard output is one JSON object, else Markdown. Exit code 0, or 6 when --max-drop,
          --max-flips or --min-same-top is given and not met: what fails is on standard error.
Elsewhere the runs: benchmarks/trials.py; the figures: benchmarks/comparison.py; the gate: benchmarks/gate.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import click

from rexthinker_edge.commands.judging import check_orders, chosen_numbers, tell_problems

PATH = click.Path(path_type=Path)


class Share(click.ParamType):  # type: ignore[type-arg]
    """ "2%" or "0.02"."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As a fraction from 0 to 1."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            self.fail(f"{value!r}: a share such as 2% or 0.02 is needed.", param, ctx)
        return number


@click.command("compare")
@click.argument("subjects", nargs=-1, required=True)
@click.option("--dataset", "spec", default="workbench:easy", show_default=True, help="As for evaluate.")
@click.option("--images", type=PATH, help="Where the pictures are, when not beside the file.")
@click.option("--boxes", type=click.Choice(["given", "detector"]), default="given", show_default=True)
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="First record.")
@click.option("--count", type=click.IntRange(min=1), help="How many records; all when left out.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that ask."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, of all subjects.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores of one process; all when left out.")
@click.option(
    "--orders",
    type=click.IntRange(0, 20),
    default=0,
    show_default=True,
    help="Ask each item again, its hints shuffled.",
)
@click.option("--max-drop", type=click.FloatRange(min=0), help="Gate: DensityF1 points that may be lost.")
@click.option("--max-flips", type=Share(), help="Gate: answers that may change, such as 2%.")
@click.option("--min-same-top", type=Share(), help="Gate: tokens that must be chosen alike, such as 99%.")
@click.option(
    "--out", type=PATH, help="Keep the runs in this folder, and go on from it.  [default: runs/compare-…]"
)
@click.option(
    "--report",
    "reports",
    type=PATH,
    multiple=True,
    help="Write the report: FILE.html, FILE.md or FILE.json. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(subjects: tuple[str, ...], spec: str, images: Path | None, **options: Any) -> int:
    """Ask SUBJECTS the same questions; the first is the reference.

    A subject is `small`, a bundle's directory, or a checkpoint's with its number format: DIR@fp32, DIR@bf16;
    on a CUDA GPU also DIR@nf4 and DIR@int8, quantised by bitsandbytes as it is loaded.
    """
    from rexthinker_edge.benchmarks.comparison_text import markdown  # noqa: PLC0415
    from rexthinker_edge.benchmarks.gate import EXIT_CODE, Gate  # noqa: PLC0415
    from rexthinker_edge.benchmarks.report import check_ending, compared, write_report  # noqa: PLC0415
    from rexthinker_edge.benchmarks.trials import Trial, hold  # noqa: PLC0415
    from rexthinker_edge.calibration.openers import open_dataset  # noqa: PLC0415

    if len(subjects) < 2:
        raise click.UsageError("two subjects or more are needed, the reference first.")
    for path in options["reports"]:
        check_ending(path)
    boxes = options["boxes"]
    if boxes == "detector" and any("@" in subject for subject in subjects):
        raise click.UsageError("--boxes detector: a checkpoint has no detector. Compare bundles alone.")
    check_orders(boxes, options["orders"])
    place = None if images is None else str(images)
    gate = Gate(options["max_drop"], options["max_flips"], options["min_same_top"])
    with open_dataset(spec, images) as dataset:
        numbers = chosen_numbers(dataset, options["start"], options["count"])
        chosen = (options[key] for key in ("workers", "threads", "orders", "device"))
        trial = Trial(dataset.spec, place, numbers, boxes, *chosen)
        runs, problems = hold(subjects, trial, options["out"] or _folder(subjects, trial))
        tell_problems(problems)
        told = compared(runs, dataset, trial, gate, problems)
        for path in options["reports"]:
            write_report(path, told, dataset)
    as_json = options["as_json"]
    click.echo(json.dumps(told, ensure_ascii=False) if as_json else markdown(told), nl=as_json)
    for failure in told["gate"]["failures"]:
        click.echo(f"gate: {failure}", err=True)
    return 0 if told["gate"]["passed"] else EXIT_CODE


def _folder(subjects: tuple[str, ...], trial: Any) -> Path:
    """A folder for the same subjects, by where they are, on the same data; the files check what they are."""
    places = [subject if subject == "small" else str(Path(subject).absolute()) for subject in subjects]
    spec = trial.dataset.rpartition(":")[0] if trial.dataset.startswith("workbench:") else trial.dataset
    key = json.dumps([places, spec, trial.images, trial.boxes, *([trial.orders] if trial.orders else [])])
    return Path("runs") / f"compare-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
