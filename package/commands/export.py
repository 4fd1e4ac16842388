"""`rexthinker-edge export`: two checkpoints in, one bundle out.

Contract  Writes nothing at the target before everything has succeeded. Progress goes to standard error, and
          only where that is a terminal; one JSON line about the result goes to standard output.
Elsewhere what happens: export/pipeline.py.
"""

import tempfile
from pathlib import Path
from typing import Any

import click

CHECKPOINT = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command("export")
@click.argument("vlm_dir", metavar="CHECKPOINT", type=CHECKPOINT)
@click.option("--detector", "detector_dir", type=CHECKPOINT, required=True, help="Grounding DINO checkpoint.")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), required=True, help="The bundle to make.")
@click.option("--precision", type=click.Choice(["fp32", "int4"]), default="fp32", show_default=True)
@click.option("--max-length", type=click.IntRange(min=1), help="Tokens of prompt and answer together.")
@click.option("--block", type=int, help="Columns that share an int4 scale (128 where it fits, else 32).")
@click.option("--accuracy-level", type=int, default=4, show_default=True, help="Of int4: 0 exact, 4 fast.")
@click.option("--name", help="Name of the bundle.")
@click.option("--source", help="Where the weights come from.")
@click.option("--revision", help="Which revision of them.")
@click.option("--licence", help="Licence of the weights; it travels with the bundle.")
@click.option(
    "--notice", type=click.Path(path_type=Path, exists=True), help="File with the licence's notice."
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --out.")
@click.option("--dry-run", is_flag=True, help="Check configuration and every tensor's shape; write nothing.")
def export(vlm_dir: Path, detector_dir: Path, out_dir: Path, dry_run: bool, **chosen: Any) -> None:
    """Make a bundle of a Qwen2.5-VL CHECKPOINT directory and a detector."""
    from rexthinker_edge.export.pipeline import (  # noqa: PLC0415
        ExportOptions,
        check_checkpoint,
        describe_json,
        export_bundle,
    )
    from rexthinker_edge.export.quantize import Precision  # noqa: PLC0415

    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            config = check_checkpoint(vlm_dir, Path(scratch))
        click.echo(f"{vlm_dir}: every key honoured, every tensor in place: {config}")
        return
    notice: Path | None = chosen.pop("notice")
    chosen["precision"] = Precision(chosen["precision"])
    options = ExportOptions(**chosen, notice=None if notice is None else notice.read_text("utf-8"))
    manifest = _with_progress(lambda report: export_bundle(vlm_dir, detector_dir, out_dir, options, report))
    click.echo(describe_json(manifest))


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
