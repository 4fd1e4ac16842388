"""`rexthinker-edge data …`: workbench pictures with questions, and a look at any dataset.

Contract  Nothing of calibration is imported before a command runs.
Elsewhere the world: calibration/workbench/; the layouts: calibration/humanref.py, humanref_cot.py; opening
          any dataset: calibration/openers.py; drawing: runtime/evidence_page.py, evidence_picture.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rexthinker_edge.calibration.dataset import Example
    from rexthinker_edge.calibration.records import Problem, Record
    from rexthinker_edge.runtime.evidence import Evidence

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


@data.command("show")
@click.argument("spec", metavar="DATASET")
@click.argument("more", metavar="[N]...", nargs=-1, type=click.IntRange(min=0))
@click.option(
    "--index", "first", multiple=True, type=click.IntRange(min=0), help="Record, from 0; repeatable."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Where the pictures are, when not beside the file."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A picture (.png) or one page (.html); else as text."
)
def show(
    spec: str, first: tuple[int, ...], more: tuple[int, ...], images: Path | None, out: Path | None
) -> None:
    """Draw records of DATASET: candidates with their numbers, the answers, the trace.

    DATASET is humanref:DIR, humanref-cot:DIR, refcoco:FILE, coco:FILE or workbench:LEVEL[:SEED[:COUNT]].
    """
    from rexthinker_edge.calibration.openers import open_dataset  # noqa: PLC0415
    from rexthinker_edge.commands.judging import tell_problems, write_text  # noqa: PLC0415
    from rexthinker_edge.runtime.draw import check_target, save_whole  # noqa: PLC0415
    from rexthinker_edge.runtime.errors import DataError  # noqa: PLC0415
    from rexthinker_edge.runtime.evidence_page import page, pages_text  # noqa: PLC0415
    from rexthinker_edge.runtime.evidence_picture import picture_of  # noqa: PLC0415

    as_page = out is not None and out.suffix.lower() in {".html", ".htm"}
    if out is not None and not as_page:
        check_target(out)
    problems: list[Problem] = []
    with open_dataset(spec, images) as dataset:
        numbers = (*first, *more) or (0,)
        for number in numbers:
            dataset.check_number(number)
        shown = [_evidence(example, problems) for example in dataset.examples(problems, numbers)]
        records = [record for record in shown if record is not None]
        tell_problems(problems)
        if not records:
            raise DataError(
                f"{spec}: none of the records can be shown, see above. Choose others with --index."
            )
        if out is None:
            click.echo(pages_text(records))
        elif as_page:
            write_text(out, page(dataset.spec, records))
        else:
            save_whole(picture_of(records), out)


def _evidence(example: "Example", problems: "list[Problem]") -> "Evidence | None":
    """A record as it is shown; None, and a problem, when its picture cannot be decoded."""
    from rexthinker_edge.calibration.records import Problem  # noqa: PLC0415
    from rexthinker_edge.runtime.errors import ImageError  # noqa: PLC0415
    from rexthinker_edge.runtime.evidence import Evidence  # noqa: PLC0415
    from rexthinker_edge.runtime.image import read_picture  # noqa: PLC0415

    record = example.record
    try:
        pixels = read_picture(example.picture).pixels_HWC
    except ImageError as error:
        problems.append(Problem(record.image_name, 0, str(error)))
        return None
    answers, known = str(len(record.answer_boxes)), example.known_answers()
    if example.answers() is None:
        answers += f", {len(known)} of them among the candidates"
    notes = {"record": str(example.number), "picture": record.image_name, "domain": record.domain,
             "sub-domain": record.sub_domain, "answers": answers}  # fmt: skip
    return Evidence(
        title=record.referring,
        category=record.category,
        pixels_HWC=pixels,
        boxes=example.candidates,
        answers=known,
        thought=record.trace or "",
        notes=tuple((name, value) for name, value in notes.items() if value),
    )


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
