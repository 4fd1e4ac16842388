"""`rexthinker-edge export`: two checkpoints in, one bundle out.

Contract  Writes nothing at the target before everything has succeeded. Progress goes to standard error, and
          only where that is a terminal; one JSON line about the result goes to standard output.
Elsewhere what happens: export/pipeline.py; what the options mean: export/options.py.
"""

import tempfile
from pathlib import Path
from typing import Any

import click

from rexthinker_edge.commands.engines import check_engines, export_engines, is_bundle


@click.command("export")
@click.argument("checkpoint")
@click.option("--detector", help="Grounding DINO checkpoint: a directory or a hub id.")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), help="The bundle to make.")
@click.option(
    "--target",
    type=click.Choice(["cpu", "tensorrt"]),
    default="cpu",
    show_default=True,
    help="tensorrt: also build engines for this machine's GPU; of a bundle, where CHECKPOINT names one.",
)
@click.option(
    "--quality",
    "reports",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="CHECKPOINT is a finished bundle: note in it what `evaluate --report FILE` measured of it.",
)
@click.option("--engine-precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True)
@click.option("--version-compatible", is_flag=True, help="Engines for later minor versions of TensorRT too.")
@click.option("--workspace", type=click.IntRange(min=1), help="MiB that TensorRT may try tactics with.")
@click.option("--precision", type=click.Choice(["fp32", "int8", "int4"]), default="fp32", show_default=True)
@click.option("--max-length", type=click.IntRange(min=1), help="Tokens of prompt and answer together.")
@click.option("--block", type=int, help="Columns that share an int4 scale (128 where it fits, else 32).")
@click.option("--accuracy-level", type=int, default=4, show_default=True, help="Of int4: 0 exact, 4 fast.")
@click.option(
    "--head-bits",
    type=click.Choice(["4", "8"]),
    default="8",
    show_default=True,
    help="Of the output layer, where the decoder is int4.",
)
@click.option(
    "--int8-layers",
    metavar="NAMES",
    help="Layers that take 8 bits where the decoder is int4, such as k_proj,v_proj.",
)
@click.option(
    "--embeddings",
    type=click.Choice(["kept", "int8", "int4"]),
    default="kept",
    show_default=True,
    help="Token table: as the checkpoint has it, int8 with a scale a row, or int4 with one per 32 columns.",
)
@click.option(
    "--vision",
    "--vision-precision",
    "vision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="Linear layers of the vision tower.",
)
@click.option(
    "--detector-precision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="int8: in those layers of the detector that do not move boxes; they are measured first.",
)
@click.option(
    "--golden-questions",
    type=click.IntRange(0, 3),
    default=3,
    show_default=True,
    help="Self-tests to record with the new bundle.",
)
@click.option("--golden-tokens", type=click.IntRange(min=1), help="Most tokens of a self-test's answer.")
@click.option(
    "--calibration",
    metavar="DATA",
    help="Choose integers by GPTQ on workbench:full, humanref-cot:DIR or humanref:DIR.",
)
@click.option("--samples", type=click.IntRange(min=1), default=128, show_default=True, help="How many.")
@click.option("--calibration-seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--symmetric", is_flag=True, help="Calibrated integers without zero points.")
@click.option("--damping", type=float, default=0.01, show_default=True, help="Of GPTQ's Hessian.")
@click.option(
    "--act-order",
    type=click.Choice(["none", "static", "group"]),
    default="static",
    show_default=True,
    help="Round columns of large inputs first; group: also group by them.",
)
@click.option("--no-correction", is_flag=True, help="Plain GPTQ: do not make up for earlier layers' errors.")
@click.option(
    "--tune",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Steps of training the scales of all layers together, after GPTQ.",
)
@click.option(
    "--tune-samples",
    type=click.IntRange(min=0),
    default=0,
    show_default="four a step",
    help="How many samples that is done on.",
)
@click.option("--calibration-device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--draft-traces", metavar="DATA", help="Learn what traces usually say from workbench or humanref-cot:DIR."
)
@click.option(
    "--draft-count", type=click.IntRange(min=1), default=1500, show_default=True, help="How many of them."
)
@click.option(
    "--packed-out",
    "packed_dir",
    type=click.Path(path_type=Path),
    help="Also write the calibrated integers as a checkpoint here.",
)
@click.option(
    "--packed-format",
    type=click.Choice(["compressed-tensors", "gptq", "gptq_v2"]),
    default="compressed-tensors",
    show_default=True,
)
@click.option(
    "--packed-head",
    type=click.Choice(["values", "integers"]),
    default="values",
    show_default=True,
    help="Output layer of the GPTQ formats: GPTQModel reads integers, transformers does not.",
)
@click.option("--name", help="Name of the bundle.")
@click.option("--source", help="Where the weights come from.")
@click.option("--revision", help="Which revision of them.")
@click.option("--licence", help="Licence of the weights; it travels with the bundle.")
@click.option(
    "--notice", type=click.Path(path_type=Path, exists=True), help="File with the licence's notice."
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --out.")
@click.option("--resume", is_flag=True, help="Go on behind the parts that an interrupted export finished.")
@click.option("--dry-run", is_flag=True, help="Check every tensor's shape and print what it will take.")
def export(
    checkpoint: str, detector: str | None, out_dir: Path | None, dry_run: bool, target: str,
    reports: tuple[Path, ...], **chosen: Any,
) -> None:  # fmt: skip
    """Make a bundle of a Qwen2.5-VL CHECKPOINT and a detector: directories, or hub ids (name@revision).

    With --target tensorrt CHECKPOINT may be a finished bundle: engines are built for it, on this machine.
    With --quality it is one, and its manifest takes what was measured of it.
    """
    keys = ("engine_precision", "version_compatible", "workspace")
    engine_options = {key: chosen.pop(key) for key in keys}
    if reports:
        _note_quality(checkpoint, reports)
        return
    if target == "tensorrt" and is_bundle(checkpoint):
        _engines(Path(checkpoint), dry_run, engine_options)
        return
    if detector is None or out_dir is None:
        needed = "--detector and --out are needed to make a bundle of a checkpoint."
        raise click.UsageError(needed)
    if target == "tensorrt" and not dry_run:
        from rexthinker_edge.runtime.engine import import_tensorrt  # noqa: PLC0415

        import_tensorrt()  # an export takes an hour: what it lacks is told before
    _bundle(checkpoint, detector, out_dir, dry_run, chosen)
    if target == "tensorrt" and not dry_run:
        _engines(out_dir, False, engine_options)


def _note_quality(bundle: str, reports: tuple[Path, ...]) -> None:
    """Put reports of `evaluate` into the manifest of a finished bundle."""
    from rexthinker_edge.runtime.errors import OptionError  # noqa: PLC0415
    from rexthinker_edge.runtime.measured_cards import write_quality  # noqa: PLC0415
    from rexthinker_edge.runtime.strict_json import StrictJsonError, parse  # noqa: PLC0415

    if not is_bundle(bundle):
        raise click.UsageError(
            f"--quality: {bundle} is no bundle. Export it first, then measure and note it."
        )
    read = []
    for path in reports:
        try:
            value = parse(path.read_text("utf-8"))
        except (OSError, StrictJsonError, UnicodeDecodeError) as error:
            told = f"{path}: {error}, a report of `evaluate --report` is needed. Name one."
            raise OptionError(told) from error
        read.append(value if isinstance(value, dict) else {})
    for card in write_quality(Path(bundle), read).manifest.quality:
        click.echo(card.describe())


def _engines(bundle: Path, dry_run: bool, options: dict[str, Any]) -> None:
    if dry_run:
        check_engines(bundle, options["engine_precision"])
        return
    values = options["engine_precision"], options["version_compatible"], options["workspace"]
    export_engines(bundle, *values, _with_progress)


def _bundle(checkpoint: str, detector: str, out_dir: Path, dry_run: bool, chosen: dict[str, Any]) -> None:
    """The bundle itself."""
    from rexthinker_edge.export.calibrate import take_options  # noqa: PLC0415
    from rexthinker_edge.export.embeddings import EmbeddingPrecision  # noqa: PLC0415
    from rexthinker_edge.export.hub import DETECTOR_FILES, LANGUAGE_FILES, locate  # noqa: PLC0415
    from rexthinker_edge.export.options import ExportOptions  # noqa: PLC0415
    from rexthinker_edge.export.packed_checkpoint import PackedFormat  # noqa: PLC0415
    from rexthinker_edge.export.pipeline import describe_json, export_bundle  # noqa: PLC0415
    from rexthinker_edge.export.quantize import Precision  # noqa: PLC0415

    notice: Path | None = chosen.pop("notice")
    chosen |= {
        "precision": Precision(chosen["precision"]), "head_bits": int(chosen["head_bits"]),
        "int8_layers": tuple(filter(None, (chosen["int8_layers"] or "").replace(" ", "").split(","))),
        "embeddings": EmbeddingPrecision(chosen["embeddings"]),
        "detector": chosen.pop("detector_precision"),
        "calibration": take_options(chosen), "packed_format": PackedFormat(chosen["packed_format"]),
    }  # fmt: skip
    options = ExportOptions(**chosen, notice=None if notice is None else notice.read_text("utf-8"))
    vlm_dir = _with_progress(lambda report: locate(checkpoint, LANGUAGE_FILES, report))
    detector_dir = _with_progress(lambda report: locate(detector, DETECTOR_FILES, report))
    if dry_run:
        _dry_run(vlm_dir, detector_dir, out_dir, options)
        return
    manifest = _with_progress(lambda report: export_bundle(vlm_dir, detector_dir, out_dir, options, report))
    click.echo(describe_json(manifest))


def _dry_run(vlm_dir: Path, detector_dir: Path, out_dir: Path, options: Any) -> None:
    """Check what can be checked without writing, and print the plan."""
    from rexthinker_edge.export.pipeline import check_checkpoint, plan_bundle  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        config = check_checkpoint(vlm_dir, Path(scratch))
    plan = plan_bundle(vlm_dir, detector_dir, out_dir, options)
    click.echo(f"{vlm_dir}: every key honoured, every tensor in place: {config}")
    click.echo("\n".join(plan.lines()))


def _with_progress(work: Any) -> Any:
    """Run `work(report)` under a progress bar on standard error."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("exporting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return work(report)
