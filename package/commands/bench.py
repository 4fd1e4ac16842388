"""`rexthinker-edge bench`: what this machine can do, where the time goes, and one JSON object as last line.

Contract  Exit code 1 where drafting, or answering together, changed an answer: that is a fault, and told.
Elsewhere what is measured: benchmarks/bench.py; tables: benchmarks/bench_text.py; bundles of random numbers:
          benchmarks/random_bundle.py.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

SHAPES = ("7b", "3b", "tiny")
LEAST_SIDE_PX, MOST_SIDE_PX = 32, 8192


@click.command("bench")
@click.option("--bundle", type=click.Path(path_type=Path), help="The small bundled model when left out.")
@click.option(
    "--shape", type=click.Choice(SHAPES), help="Build and measure random numbers in a published size."
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Where --shape's bundle stays for another time."
)
@click.option("--device", default="cpu", show_default=True, help="As in `refer`.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores one model uses; all when left out.")
@click.option("--count", type=click.IntRange(min=1), help="Pictures measured: 20, or 3 for a large bundle.")
@click.option("--picture", help="Width x height in pixels: 1280x720, or 320x240 for a bundle of small ones.")
@click.option("--tokens", type=click.IntRange(min=2), help="Most tokens of an answer; the bundle's limit.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
@click.option("--json", "as_json", is_flag=True, help="The JSON object alone.")
def bench(
    bundle: Path | None, shape: str | None, keep: Path | None, picture: str | None, markdown: bool,
    as_json: bool, **given: Any,
) -> int:  # fmt: skip
    """Measure a bundle on this machine: ceilings, stages, expressions, memory, load and energy."""
    if bundle is not None and shape is not None:
        raise click.UsageError("--bundle and --shape exclude each other: give one.")
    if keep is not None and shape is None:
        raise click.UsageError("--keep goes with --shape: it says where the random bundle stays.")
    if markdown and as_json:
        raise click.UsageError("--markdown and --json exclude each other: give one.")
    from rexthinker_edge.benchmarks.bench import Plan  # noqa: PLC0415
    from rexthinker_edge.benchmarks.bench import bench as measure  # noqa: PLC0415
    from rexthinker_edge.benchmarks.bench_text import as_markdown, as_table, faults  # noqa: PLC0415
    from rexthinker_edge.benchmarks.random_bundle import random_bundle  # noqa: PLC0415

    size = None if picture is None else picture_size(picture)
    with ExitStack() as stack:
        told = stack.enter_context(_Teller())
        if shape is not None:
            opened = stack.enter_context(random_bundle(shape, keep, lambda *done: told("building", *done)))
            bundle = opened.path
        report = measure(Plan(bundle=bundle, size=size, **given), told)
    if not as_json:
        click.echo(as_markdown(report) if markdown else as_table(report))
    click.echo(json.dumps(report))
    found = faults(report)
    for fault in found:
        click.echo(f"error: {fault}", err=True)
    return 1 if found else 0


def picture_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT; UsageError on anything else."""
    width, _, height = text.partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (width, height)]
    if not all(LEAST_SIDE_PX <= side <= MOST_SIDE_PX for side in sides):
        raise click.UsageError(
            f"--picture: {text!r}, width x height of {LEAST_SIDE_PX} to {MOST_SIDE_PX} is needed, such as "
            "1280x720."
        )
    return sides[0], sides[1]


class _Teller:
    """What goes on, on standard error: a moving line on a terminal, elsewhere a line a phase."""

    def __init__(self) -> None:
        self._said = ""
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> "_Teller":
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import Progress  # noqa: PLC0415

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of `what`; 0 of it where it has just begun."""
        if self._progress is None:
            if what != self._said:
                click.echo(f"{what} …", err=True)
        elif what != self._said:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=total, completed=done)
        else:
            self._progress.update(self._task, completed=done, total=total)
        self._said = what
