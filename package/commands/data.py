"""`rexthinker-edge data …`: workbench pictures with questions, in the layouts of the published datasets.

Contract  Nothing of calibration is imported before a command runs.
Elsewhere the world: calibration/workbench/; the layouts: calibration/humanref.py, humanref_cot.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rexthinker_edge.calibration.records import Record

data = click.Group("data", help="Make data to train, calibrate and evaluate with.")


@data.command("make")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--level", type=click.Choice(["easy", "full"]), default="full", show_default=True)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="From 1000000 up: evaluation."
)
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="How many items.")
@click.option(
    "--layout", type=click.Choice(["humanref", "humanref-cot"]), default="humanref", show_default=True,
    help="annotations.jsonl with images/, or TSV pairs with traces.",
)  # fmt: skip
def make(directory: Path, level: str, seed: int, count: int, layout: str) -> None:
    """Write workbench items into the new folder DIRECTORY; item i of a seed never depends on the count."""
    from rexthinker_edge.calibration.humanref import write_humanref  # noqa: PLC0415
    from rexthinker_edge.calibration.humanref_cot import write_humanref_cot  # noqa: PLC0415

    write = write_humanref if layout == "humanref" else write_humanref_cot
    written = write(directory, _progress(_items(level, seed, count), count))
    click.echo(f"{written} {level} items of seed {seed} in {directory} ({layout})")


def _items(level: str, seed: int, count: int) -> "Iterator[tuple[Record, NDArray[np.uint8]]]":
    from rexthinker_edge.calibration.workbench.items import item_record, make_item  # noqa: PLC0415
    from rexthinker_edge.calibration.workbench.render import render  # noqa: PLC0415

    for index in range(count):
        item = make_item(level, seed, index)
        yield item_record(item, index), render(item.scene)


def _progress(
    items: "Iterator[tuple[Record, NDArray[np.uint8]]]", count: int
) -> "Iterator[tuple[Record, NDArray[np.uint8]]]":
    """Show how far it is, on standard error, where that is a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    console = Console(stderr=True)
    yield from track(items, "making", count, console=console, disable=not console.is_terminal, transient=True)
