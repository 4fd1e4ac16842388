"""The gallery of a report: flipped items with their pictures, both thoughts drawn beside the boxes.

Contract  Pictures longer than `LONGEST_PX` are reduced, boxes with them, so that a page stays small. An item
          whose picture is gone by now is left out, never the report.
Elsewhere which items: comparison.py; drawing: runtime/evidence_page.py; the page: report_page.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rexthinker_edge.calibration.dataset import Dataset, Example
from rexthinker_edge.calibration.records import Problem
from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.evidence import Evidence
from rexthinker_edge.runtime.image import read_picture
from rexthinker_edge.runtime.trace import thought_of

FLIPS = 6  # of each pair
LONGEST_PX = 560


@dataclass(frozen=True)
class Flip:
    """One item, as the reference and as the subject saw it; of one subject alone, as that one did."""

    heading: str
    told: str
    sides: tuple[Evidence, ...]


def gallery(report: dict[str, Any], dataset: Dataset, most: int = FLIPS) -> list[tuple[str, list[Flip]]]:
    """For each pair its name and its worst flips, at most `most`."""
    found = []
    for pair in report["pairs"]:
        flips = [item for item in pair["worst"] if item["flip"]]
        names = (pair["reference"], pair["subject"])
        shown = (seen_item(item, names, dataset) for item in flips[:most])
        found.append((pair["subject"], [flip for flip in shown if flip is not None]))
    return found


def seen_item(item: dict[str, Any], names: Sequence[str], dataset: Dataset) -> Flip | None:
    """An item with its picture, a side for each of `names`; None where the picture is gone."""
    problems: list[Problem] = []
    example = dataset.example(item["number"], problems)
    if example is None:
        return None
    try:
        pixels, boxes = _reduced(example)
    except ImageError:
        return None
    truth = "not known" if item["truth"] is None else _names(item["category"], item["truth"])
    sides = tuple(
        Evidence(
            title=f"{name}: {item['status'][side] or 'not asked'}",
            category=item["category"],
            pixels_HWC=pixels,
            boxes=boxes,
            answers=frozenset(item["indices"][side]),
            thought=thought_of(item["text"][side]),
            notes=(("answered", _names(item["category"], item["indices"][side])),),
        )
        for side, name in enumerate(names)
    )
    told = f"item {item['number']}, {item['domain']}; the truth: {truth}"
    if item.get("first_divergence") is not None:
        told += f"; the two part at token {item['first_divergence']}"
    return Flip(item["referring"], told, sides)


def _names(category: str, indices: list[int]) -> str:
    if not indices:
        return "none"
    return f"{category} {', '.join(str(index + 1) for index in indices)}"


def _reduced(example: Example) -> tuple[Any, tuple[tuple[float, float, float, float], ...]]:
    pixels = read_picture(example.picture).pixels_HWC
    height, width = pixels.shape[:2]
    scale = min(1.0, LONGEST_PX / max(height, width))
    boxes = tuple((x0 * scale, y0 * scale, x1 * scale, y1 * scale) for x0, y0, x1, y1 in example.candidates)
    if scale == 1.0:
        return pixels, boxes
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)), boxes
