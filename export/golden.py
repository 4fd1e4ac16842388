"""The golden self-test: what this bundle answers to a few tiny pictures, recorded where it was made.

Contract  Pictures are stored as PNG inside the bundle, so no decoder's rounding comes between; candidates are
          given, so a wrong box and a wrong token are told apart; recorded on one thread.
Elsewhere the pictures: calibration/workbench/; replaying it on a device: package/commands/.
"""

from pathlib import Path

from PIL import Image

from rexthinker_edge.calibration.workbench.items import Item, item_record, make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime.bundle import Golden
from rexthinker_edge.runtime.thinker import load

SEED = 2_000_000  # beyond the seeds of training and of the 1,000-item evaluations
QUESTIONS = 3
MAX_SIDE_PX = 224  # small pictures: the test is quick and its files are light


def golden_items() -> list[Item]:
    """The first `QUESTIONS` easy items whose picture is small."""
    items: list[Item] = []
    index = 0
    while len(items) < QUESTIONS:
        item = make_item("easy", SEED, index)
        if max(item.scene.width, item.scene.height) <= MAX_SIDE_PX:
            items.append(item)
        index += 1
    return items


def write_pictures(directory: Path) -> list[tuple[str, Item]]:
    """Paint the golden pictures into a bundle that is being filled; their file names and items."""
    named = [(f"golden-{number}.png", item) for number, item in enumerate(golden_items())]
    for name, item in named:
        Image.fromarray(render(item.scene)).save(directory / name, optimize=True)
    return named


def record_answers(directory: Path, pictures: list[tuple[str, Item]]) -> tuple[Golden, ...]:
    """Ask the sealed bundle in `directory` about its own pictures."""
    thinker = load(directory, threads=1)
    recorded = []
    for name, item in pictures:
        truth = item_record(item, 0)
        detected = thinker.look(directory / name, truth.category).candidates
        result = thinker.look(directory / name, truth.category, truth.candidate_boxes).refer(truth.referring)
        recorded.append(
            Golden(
                picture=name,
                category=truth.category,
                expression=truth.referring,
                candidates=truth.candidate_boxes,
                detected=tuple(_row(candidate.box) for candidate in detected),
                token_ids=result.token_ids,
                status=result.status.value,
                boxes=tuple(_row(box) for box in result.boxes),
            )
        )
    return tuple(recorded)


def _row(box: list[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return (x0, y0, x1, y1)
