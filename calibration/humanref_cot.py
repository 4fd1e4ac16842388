"""HumanRef-CoT: a folder of two pairs of TSV files, questions with an answer and rejections.

Layout    `humanref_cot.*` and `humanref_cot_rejection.*`, four files each (cot_pair.py). Numbered as one
          dataset, the rejections behind the others.
Contract  Written whole or not at all. What is written is read again as it was: boxes, words and traces
          exactly, pictures as JPEG.
Elsewhere reading a pair: cot_pair.py; records: records.py; the sibling without traces: humanref.py.
Source    docs/sources.md#humanref-cot
"""

import base64
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration.cot_pair import PAIR, REJECTION_PAIR, CotPair
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Record, new_directory, plain_numbers
from rexthinker_edge.runtime.errors import DataError

JPEG_QUALITY = 95


def write_humanref_cot(directory: Path | str, items: Iterable[tuple[Record, NDArray[np.uint8]]]) -> int:
    """Write records and pictures as both TSV pairs; records without an answer go to the rejection pair.

    Args:
        directory: new or empty; it appears whole when all is written.
        items: (record with a trace, (H, W, 3) uint8 RGB); neighbours with one `image_name` share a picture.

    Returns:
        How many records were written.

    Raises:
        DataError: the folder is not empty or cannot be made.
    """
    count = 0
    with new_directory(Path(directory)) as folder, ExitStack() as stack:
        pairs = {name: stack.enter_context(_PairWriter(folder, name)) for name in (PAIR, REJECTION_PAIR)}
        for record, pixels_HWC in items:
            pairs[PAIR if record.answer_boxes else REJECTION_PAIR].add(record, pixels_HWC)
            count += 1
    return count


class _TsvWriter:
    """One TSV file and its line index."""

    def __init__(self, folder: Path, name: str) -> None:
        self.lines = (folder / f"{name}.tsv").open("wb")
        self.index = (folder / f"{name}.tsv.lineidx").open("wb")

    def add(self, line: bytes) -> int:
        """Write a line; returns its byte offset."""
        offset = self.lines.tell()
        self.lines.write(line + b"\n")
        self.index.write(b"%d\n" % offset)
        return offset

    def close(self) -> None:
        self.lines.close()
        self.index.close()


class _PairWriter:
    """Pictures and annotations of one pair."""

    def __init__(self, folder: Path, name: str) -> None:
        self.images = _TsvWriter(folder, f"{name}.images")
        self.annotations = _TsvWriter(folder, f"{name}.annotations")
        self.last: tuple[str, int] | None = None

    def __enter__(self) -> "_PairWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.images.close()
        self.annotations.close()

    def add(self, record: Record, pixels_HWC: NDArray[np.uint8]) -> None:
        assert record.trace is not None, record.id
        if self.last is None or self.last[0] != record.image_name:
            jpeg = BytesIO()
            Image.fromarray(pixels_HWC).save(jpeg, "JPEG", quality=JPEG_QUALITY)
            line = record.image_name.encode() + b"\t" + base64.b64encode(jpeg.getvalue())
            self.last = (record.image_name, self.images.add(line))
        text = json.dumps(_to_json(record), ensure_ascii=False)
        self.annotations.add(f"{self.last[1]}\t{text}".encode())


def _to_json(record: Record) -> dict[str, object]:
    answers = [k for k, box in enumerate(record.candidate_boxes) if box in record.answer_boxes]
    assert len(answers) == len(record.answer_boxes), record.id
    return {
        "gt_boxes": plain_numbers([(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in record.candidate_boxes]),
        "region_map": {record.referring: answers},
        "think": record.trace,
        "category": record.category,
        "domain": record.domain,
        "sub_domain": record.sub_domain,
    }


class HumanRefCot(Dataset):
    """A folder with one or both pairs; the rejections' numbers follow the others'."""

    def __init__(self, directory: Path | str) -> None:
        """Raises DataError when there is neither pair, or a pair lacks a file."""
        present = [
            name for name in (PAIR, REJECTION_PAIR) if (Path(directory) / f"{name}.annotations.tsv").is_file()
        ]
        self.pairs: list[CotPair] = []
        try:
            for name in present or [PAIR]:
                self.pairs.append(CotPair(directory, name))
        except DataError:
            self.close()
            raise
        super().__init__(f"humanref-cot:{directory}", [p for pair in self.pairs for p in pair.problems])

    def close(self) -> None:
        """Close the files."""
        for pair in self.pairs:
            pair.close()

    def __len__(self) -> int:
        return sum(map(len, self.pairs))

    def place(self, number: int) -> tuple[str, int]:
        """File name and line."""
        pair, line = self._find(number)
        return f"{pair.name}.annotations.tsv", line + 1

    def read(self, number: int) -> Record:
        """One line as a record; its id is its number here."""
        pair, line = self._find(number)
        return replace(pair.read(line), id=number)

    def picture(self, number: int, record: Record) -> bytes:
        """The picture's file as bytes."""
        pair, line = self._find(number)
        return pair.read_picture(line)

    def doubt(self, number: int) -> str:
        """Whether the pictures' index knows the record's picture."""
        pair, line = self._find(number)
        return pair.doubt(line)

    def _find(self, number: int) -> tuple[CotPair, int]:
        for pair in self.pairs:
            if number < len(pair):
                return pair, number
            number -= len(pair)
        raise AssertionError("a number beyond the last")
