"""`rexthinker-edge evaluate`: how good a bundle, a checkpoint or a file of predictions is on a dataset.

Contract  With --json standard output is one JSON object. With --predictions that is HumanRef's tables alone:
          average, domain, subdomain, box_count, rejection; otherwise the whole report. Problems of the data
          go to standard error, and are counted there when there are many.
Elsewhere scoring predictions: scoring.py; the figures: benchmarks/figures.py; asking: benchmarks/runs.py;
          datasets: calibration/openers.py.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rexthinker_edge.commands.judging import (
    check_orders,
    chosen_numbers,
    default_path,
    tell_problems,
    write_json,
)
from rexthinker_edge.runtime.errors import DataError

if TYPE_CHECKING:
    from rexthinker_edge.benchmarks.runs import Finished
    from rexthinker_edge.benchmarks.subjects import Subject
    from rexthinker_edge.calibration.dataset import Dataset

PATH = click.Path(path_type=Path)
# What has no meaning where nothing is asked.
OF_ASKING = (
    "bundle", "checkpoint", "dtype", "device", "boxes", "orders", "workers", "threads", "out",
    "write_predictions", "calibrate_risk",
)  # fmt: skip


@click.command("evaluate")
@click.option(
    "--dataset",
    "spec",
    required=True,
    help="humanref:DIR, humanref-cot:DIR, refcoco:FILE, coco:FILE or workbench:LEVEL[:SEED[:COUNT]].",
)
@click.option("--images", type=PATH, help="Where the pictures are, when not beside the file.")
@click.option("--bundle", help="The small bundled model when left out.")
@click.option("--checkpoint", help="A Hugging Face checkpoint instead of a bundle; needs [export].")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "nf4", "int8"]),
    help="Of the checkpoint; nf4 and int8 are bitsandbytes' on a GPU.  [default: fp32]",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--predictions", type=PATH, help="Score a HumanRef prediction file; nothing is asked.")
@click.option(
    "--as-published",
    is_flag=True,
    help="Count a rejection without a prediction as correct, as HumanRef's code does.",
)
@click.option(
    "--boxes",
    type=click.Choice(["given", "detector"]),
    default="given",
    show_default=True,
    help="Whose candidates.",
)
@click.option(
    "--orders",
    type=click.IntRange(0, 20),
    default=0,
    show_default=True,
    help="Ask each item again, its hints shuffled.",
)
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="First record.")
@click.option("--count", type=click.IntRange(min=1), help="How many records; all when left out.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that ask."
)
@click.option("--threads", type=click.IntRange(min=1), help="Cores of one process; all when left out.")
@click.option("--out", type=PATH, help="Keep the run here, and go on from it.  [default: runs/NAME.jsonl]")
@click.option("--write-predictions", type=PATH, help="Write a HumanRef prediction file.")
@click.option(
    "--calibrate-risk",
    is_flag=True,
    help="Put into the bundle how sure answers must be for a stated share of wrong ones.",
)
@click.option(
    "--report",
    "reports",
    type=PATH,
    multiple=True,
    help="Write the whole report: FILE.json, FILE.html or FILE.md. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(spec: str, images: Path | None, predictions: Path | None, **options: Any) -> None:
    """Ask every item of a dataset, or score predictions, and tell how good they are.

    A run that was stopped goes on where it was: every answer is on disk before the next is asked.
    """
    from rexthinker_edge.calibration.openers import open_dataset  # noqa: PLC0415

    if predictions is not None:
        _check_asks_nothing()
    check_orders(options["boxes"], options["orders"])
    subject = _subject_spec(options.pop("bundle"), options.pop("checkpoint"), options.pop("dtype"))
    as_json, reports = options.pop("as_json"), options.pop("reports")
    _check_reports(reports, predictions, options["write_predictions"])
    named = predictions is None and subject not in (None, "small") and "@" not in str(subject)
    if options["calibrate_risk"] and not named:
        raise click.UsageError("--calibrate-risk writes into a bundle: name yours with --bundle.")
    if options["calibrate_risk"] and options["boxes"] == "detector":
        raise click.UsageError(
            "--calibrate-risk needs answers known to be right or wrong, and the truth is no set of the "
            "detector's candidates: leave out --boxes detector."
        )
    with open_dataset(spec, images) as dataset:
        if predictions is not None:
            from rexthinker_edge.commands.scoring import score  # noqa: PLC0415

            numbers = chosen_numbers(dataset, options["start"], options["count"])
            contract, whole = score(dataset, predictions, options["as_published"], numbers)
        else:
            whole = contract = _ask(dataset, images, subject or "small", options, reports)
    for path in reports:
        if not _is_drawn(path):
            write_json(path, whole)
    if as_json:
        click.echo(json.dumps(contract, ensure_ascii=False))
    else:
        from rexthinker_edge.benchmarks.quality_text import describe  # noqa: PLC0415

        click.echo("\n".join(describe(whole)))


def _check_asks_nothing() -> None:
    """UsageError for options that a file of predictions would leave without effect."""
    context = click.get_current_context()
    given = [name for name in OF_ASKING if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"--predictions asks nothing: leave out {named}.")


def _subject_spec(bundle: str | None, checkpoint: str | None, dtype: str | None) -> str | None:
    if bundle and checkpoint:
        raise click.UsageError("--bundle and --checkpoint: one of them.")
    if dtype and not checkpoint:
        raise click.UsageError("--dtype goes with --checkpoint: a bundle's number format is its own.")
    return f"{checkpoint}@{dtype or 'fp32'}" if checkpoint else bundle


def _is_drawn(report: Path) -> bool:
    """Whether a report is for people; without an ending it is JSON."""
    return report.suffix.lower() in (".html", ".md")


def _check_reports(reports: tuple[Path, ...], predictions: Path | None, written: Path | None) -> None:
    """Refuse, before anything is asked, what could not be written afterwards."""
    from rexthinker_edge.benchmarks.report import check_ending, check_place  # noqa: PLC0415

    if written is not None:
        check_place(written)
    for path in reports:
        if path.suffix:
            check_ending(path)
        else:
            check_place(path)
        if predictions is not None and _is_drawn(path):
            raise click.UsageError(
                "--predictions: a file of boxes tells no thoughts, times or statuses to draw; "
                "its --report is FILE.json."
            )


def _ask(
    dataset: "Dataset", images: Path | None, subject: str, options: dict[str, Any], reports: tuple[Path, ...]
) -> dict[str, Any]:
    from rexthinker_edge.benchmarks.figures import report  # noqa: PLC0415
    from rexthinker_edge.benchmarks.predictions import write_predictions  # noqa: PLC0415
    from rexthinker_edge.runtime.answer import Status  # noqa: PLC0415

    finished, opened, peak = _run(dataset, images, subject, options)
    tell_problems(finished.problems)
    if not any(item.status for item in finished.items):
        raise DataError(
            f"{dataset.spec}: none of its records could be asked, one at least is needed. "
            "What is wrong with them stands above: mend it, or name the pictures' folder with --images."
        )
    if options["write_predictions"] is not None:
        answered = (i for i in finished.items if i.status in (Status.FOUND, Status.ABSENT))
        write_predictions(options["write_predictions"], ((item.id, item.boxes) for item in answered))
    told = {
        **{key: finished.header[key] for key in ("dataset", "subject", "plan")},
        **report(finished.items, as_published=options["as_published"]),
        "problems": [str(problem) for problem in finished.problems],
    }
    drawn = [path for path in reports if _is_drawn(path)]
    _draw(drawn, dataset, finished, opened, peak, options)
    if not options["calibrate_risk"]:
        return told
    from rexthinker_edge.commands.risk_card import store_risk  # noqa: PLC0415

    return told | {"risk": store_risk(Path(subject), finished)}


def _draw(
    reports: list[Path], dataset: "Dataset", finished: "Finished", subject: "Subject", peak: int | None,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Write the reports for people."""
    if not reports:
        return
    from rexthinker_edge.benchmarks.comparison import Subjected  # noqa: PLC0415
    from rexthinker_edge.benchmarks.report import write_report  # noqa: PLC0415
    from rexthinker_edge.benchmarks.report_alone import alone  # noqa: PLC0415
    from rexthinker_edge.benchmarks.trials import Trial  # noqa: PLC0415

    numbers = chosen_numbers(dataset, options["start"], options["count"])
    how = {key: options[key] for key in ("boxes", "workers", "threads", "orders", "device")}
    given = options["boxes"] == "given"
    told = Subjected(
        subject.name, subject.identity, subject.details, finished.items, peak, given,
        subject.device_peak_bytes(),
    )  # fmt: skip
    made = alone(told, dataset, Trial(dataset.spec, None, numbers, **how), finished.problems)
    for path in reports:
        write_report(path, made, dataset)


def _run(
    dataset: "Dataset", images: Path | None, subject: str, options: dict[str, Any]
) -> "tuple[Finished, Subject, int | None]":
    """Ask what has not been asked yet; the run, who was asked, and the most memory that took."""
    from rexthinker_edge.benchmarks.crew import Crew, Order  # noqa: PLC0415
    from rexthinker_edge.benchmarks.meter import Meter  # noqa: PLC0415
    from rexthinker_edge.benchmarks.runs import Plan, run  # noqa: PLC0415
    from rexthinker_edge.benchmarks.subjects import open_subject  # noqa: PLC0415
    from rexthinker_edge.benchmarks.trials import lines_of, peak_of_run  # noqa: PLC0415
    from rexthinker_edge.calibration.risk import check_answers  # noqa: PLC0415
    from rexthinker_edge.progress import phase  # noqa: PLC0415

    numbers = chosen_numbers(dataset, options["start"], options["count"])
    plan = Plan(boxes=options["boxes"], orders=options["orders"])
    if options["calibrate_risk"]:
        check_answers(dataset.spec, len(numbers))  # no more than that can come
    if plan.boxes == "detector" and "@" in subject:
        raise click.UsageError(
            "--boxes detector: a checkpoint has no detector. Ask a bundle, or leave it out."
        )
    threads = options["threads"] if options["workers"] == 1 else 1  # as those that ask have it
    with phase(f"opening {subject}"):
        opened = open_subject(subject, threads=threads, device=options["device"])
    path = options["out"] or default_path(opened.name, dataset, json.dumps([opened.identity, vars(plan)]))
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    before, place, workers = lines_of(path), None if images is None else str(images), options["workers"]
    with ExitStack() as stack:
        meter, crew = stack.enter_context(Meter("asking", len(numbers))), None
        if workers > 1:
            order = Order(subject, dataset.spec, place, plan, device=options["device"])
            crew = stack.enter_context(Crew(order, workers))
        finished = run(opened, dataset, numbers, path, plan, meter, asker=crew)
    return finished, opened, peak_of_run(path, before, workers)
