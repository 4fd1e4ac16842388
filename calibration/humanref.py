"""HumanRef's own layout: `annotations.jsonl` and `images/`, written and read.

Layout    One JSON object a line: id, image_name, referring, domain, sub_domain, candidate_boxes,
          answer_boxes, answer_segmentations (COCO RLE, one per answer, here its box), and our `category`.
Contract  What is written reads back equal. Pictures are PNG: a workbench picture's JPEG artefacts are already
          in its pixels, and must not be made twice. Reading streams, `HumanRef` seeks line by line and holds
          nothing but offsets; a bad line is a `Problem`.
Elsewhere records: records.py; the sibling with traces: humanref_cot.py; the metric: benchmarks/.
Source    docs/sources.md#humanref
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration.dataset import Dataset, find_picture, line_offsets
from rexthinker_edge.calibration.records import (
    Box,
    Record,
    new_directory,
    plain_numbers,
    read_boxes,
    read_json,
    read_text,
)
from rexthinker_edge.runtime.errors import DataError

ANNOTATIONS = "annotations.jsonl"
IMAGES = "images"


def write_humanref(directory: Path | str, items: Iterable[tuple[Record, NDArray[np.uint8]]]) -> int:
    """Write records and their pictures as a HumanRef folder.

    Args:
        directory: new or empty; it appears whole when all is written.
        items: (record, (H, W, 3) uint8 RGB); pictures are named by `image_name`, which ends in .png, and one
            that several records share is written once.

    Returns:
        How many records were written.

    Raises:
        DataError: the folder is not empty or cannot be made.
    """
    count = 0
    with new_directory(Path(directory)) as folder:
        (folder / IMAGES).mkdir()
        with (folder / ANNOTATIONS).open("w", encoding="utf-8", newline="\n") as lines:
            for record, pixels_HWC in items:
                picture = folder / IMAGES / record.image_name
                if not picture.exists():
                    Image.fromarray(pixels_HWC).save(picture, "PNG")
                height, width = pixels_HWC.shape[:2]
                lines.write(json.dumps(_to_json(record, width, height), ensure_ascii=False) + "\n")
                count += 1
    return count


class HumanRef(Dataset):
    """A HumanRef folder; numbers count the lines that are not blank."""

    def __init__(self, directory: Path | str, images: Path | None = None) -> None:
        """Raises DataError when there is no `annotations.jsonl`; `images` is another folder of pictures."""
        super().__init__(f"humanref:{directory}")
        self.path = _annotations(Path(directory))
        self.folders = [*([images] if images else []), Path(directory) / IMAGES]
        self.lines = line_offsets(self.path)
        self._stream = self.path.open("rb")

    def close(self) -> None:
        """Close the annotations."""
        self._stream.close()

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, number: int) -> tuple[str, int]:
        """File name and line."""
        return self.path.name, self.lines[number][1]

    def read(self, number: int) -> Record:
        """One line as a record."""
        self._stream.seek(self.lines[number][0])
        return _from_json(read_json(self._stream.readline()))

    def picture(self, number: int, record: Record) -> Path:
        """The picture's file."""
        return find_picture(record.image_name, self.folders)


def _annotations(directory: Path) -> Path:
    path = directory / ANNOTATIONS
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, HumanRef's annotations are needed. Name the folder that holds it."
        )
    return path


def box_rle(box: Box, width: int, height: int) -> dict[str, object]:
    """COCO's compressed run lengths of a box's region.

    Args:
        box: (x0, y0, x1, y1) in pixels, rounded to whole ones and clamped to the picture.

    Returns:
        {"size": [height, width], "counts": text}, as pycocotools' `decode` reads it: runs of 0 and 1 down the
        columns, each written as differences of five bits a character.
    """
    x0, x1 = (min(max(round(v), 0), width) for v in (box[0], box[2]))
    y0, y1 = (min(max(round(v), 0), height) for v in (box[1], box[3]))
    tall = y1 - y0
    if x1 <= x0 or tall <= 0:
        runs = [width * height]
    elif tall == height:
        runs = [x0 * height, (x1 - x0) * height, (width - x1) * height]
    else:
        runs = [x0 * height + y0, *[tall, height - tall] * (x1 - x0 - 1), tall]
        runs.append(width * height - sum(runs))
    if len(runs) > 1 and runs[-1] == 0:
        runs.pop()
    return {"size": [height, width], "counts": _pack(runs)}


def _pack(runs: list[int]) -> str:
    """pycocotools' rleToString: from the fourth run on as differences to two runs before, low bits first."""
    text = []
    for k, run in enumerate(runs):
        value = run - runs[k - 2] if k > 2 else run
        while True:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text.append(chr(48 + bits + (32 if more else 0)))
            if not more:
                break
    return "".join(text)


def _to_json(record: Record, width: int, height: int) -> dict[str, object]:
    return {
        "id": record.id,
        "image_name": record.image_name,
        "referring": record.referring,
        "domain": record.domain,
        "sub_domain": record.sub_domain,
        "candidate_boxes": plain_numbers(record.candidate_boxes),
        "answer_boxes": plain_numbers(record.answer_boxes),
        "answer_segmentations": [box_rle(box, width, height) for box in record.answer_boxes],
        "category": record.category,
    }


def _from_json(fields: Any) -> Record:
    if not isinstance(fields, dict):
        raise ValueError("the line is not a JSON object")
    number = fields["id"]
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"id {number!r} is not a whole number")
    return Record(
        id=number,
        image_name=_text(fields, "image_name"),
        referring=_text(fields, "referring"),
        domain=_text(fields, "domain"),
        sub_domain=_text(fields, "sub_domain"),
        category=_text(fields, "category") if "category" in fields else "person",
        candidate_boxes=read_boxes(fields["candidate_boxes"]),
        answer_boxes=read_boxes(fields["answer_boxes"]),
    )


def _text(fields: dict[str, object], name: str) -> str:
    return read_text(fields[name], name)
