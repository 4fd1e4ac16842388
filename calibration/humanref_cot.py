"""HumanRef-CoT's layout: pairs of TSV files with line indices, written and read by byte offset.

Layout    Per pair NAME: NAME.images.tsv (`key \\t base64 JPEG`), NAME.annotations.tsv (`byte offset of the
          picture's line \\t JSON`), and an index beside each (`NAME.images.tsv.lineidx` as published, or
          `NAME.images.lineidx`), a decimal byte offset per line. JSON: gt_boxes (x, y, width, height),
          region_map {expression: [indices from 0]}, think; ours adds category, domain and sub_domain, which
          the published set lacks.
Contract  Nothing is read whole: 11.7 GB is the published size; the indices are held (8 bytes a line) and one
          line at a time, at most `MAX_LINE_BYTES`. Base64 may be wrapped as b'…'.
          A line that cannot be read, or that does not begin where the index says, is a `Problem` when
          iterating and a DataError when asked for by number; a line of an index that is no offset costs its
          record alone.
Elsewhere records: records.py; the sibling without traces: humanref.py.
Source    docs/sources.md#humanref-cot
"""

import base64
import binascii
import json
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration.dataset import BAD, Dataset
from rexthinker_edge.calibration.records import (
    Box,
    Problem,
    Record,
    new_directory,
    plain_numbers,
    read_boxes,
    read_text,
    why,
)
from rexthinker_edge.runtime.errors import DataError

PAIR, REJECTION_PAIR = "humanref_cot", "humanref_cot_rejection"
JPEG_QUALITY = 95
MAX_LINE_BYTES = 64 * 2**20  # a picture of 48 MB; without a limit a lost newline could read 10 GB
NO_OFFSET = -1  # a line of an index that is no number


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


class CotPair:
    """One pair, open for reading by line number or by offset; a context manager.

    Raises:
        DataError: one of its four files is missing.
    """

    def __init__(self, directory: Path | str, name: str = PAIR) -> None:
        folder = Path(directory)
        self.name = name
        self.problems: list[Problem] = []  # of the indices; those of records come when they are read
        self.offsets = self._index(folder, "annotations")
        self.image_offsets = self._index(folder, "images")
        self._annotations = _open(folder / f"{name}.annotations.tsv")
        try:
            self._images = _open(folder / f"{name}.images.tsv")
        except DataError:
            self._annotations.close()
            raise
        self._check_end(self._annotations, self.offsets, "annotations")

    def __enter__(self) -> "CotPair":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both files."""
        self._annotations.close()
        self._images.close()

    def __len__(self) -> int:
        return len(self.offsets)

    def record(self, number: int) -> Record:
        """Record `number`, counted from 0; its id is that number.

        Raises:
            DataError: the line does not mean what the format says.
        """
        try:
            return self.read(number)
        except BAD as error:
            raise DataError(
                f"{self.name}.annotations.tsv, line {number + 1}: {why(error)}, a picture's offset, "
                "a tab and a JSON object are needed. Leave it out, or copy the file again."
            ) from error

    def records(self, problems: list[Problem] | None = None) -> Iterator[Record]:
        """Every record in order; the lines that cannot be read go to `problems`."""
        if problems is not None:
            problems += self.problems
        for number in range(len(self)):
            try:
                yield self.read(number)
            except BAD as error:
                if problems is not None:
                    problems.append(Problem(f"{self.name}.annotations.tsv", number + 1, why(error)))

    def jpeg(self, number: int) -> bytes:
        """The picture of record `number` as its file's bytes.

        Raises:
            DataError: the picture's line is damaged.
        """
        try:
            return self.read_picture(number)
        except BAD as error:
            raise DataError(
                f"{self.name}.images.tsv, picture of record {number}: {error}, "
                "a key, a tab and base64 are needed. Leave the record out, or copy the file again."
            ) from error

    def read(self, number: int) -> Record:
        """Record `number`; raises one of `BAD` saying what is wrong with it."""
        offset, text = self._annotation_line(number)
        self._begin(self._images, offset, "picture")
        key, tab, _ = self._images.readline(1024).partition(b"\t")
        if not tab:
            raise ValueError(f"no picture begins at byte {offset}")
        return _from_json(number, key.decode(), json.loads(text))

    def read_picture(self, number: int) -> bytes:
        """Its picture; raises ValueError saying what is wrong with it."""
        offset = self._annotation_line(number)[0]
        self._begin(self._images, offset, "picture")
        _, tab, text = _line(self._images).partition(b"\t")
        if not tab:
            raise ValueError(f"no picture begins at byte {offset}")
        if text[:2] in {b"b'", b'b"'} and text[-1:] == text[1:2]:
            text = text[2:-1]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64 ({error})") from error

    def _annotation_line(self, number: int) -> tuple[int, bytes]:
        offset = self.offsets[number]
        if offset == NO_OFFSET:
            raise ValueError("its line in the index is no byte offset")
        self._begin(self._annotations, offset, "line")
        picture, tab, text = _line(self._annotations).partition(b"\t")
        if not tab or not picture.isdigit():
            raise ValueError("the line has no picture offset")
        return int(picture), text

    @staticmethod
    def _begin(stream: BinaryIO, offset: int, what: str) -> None:
        """Go to `offset`, which must follow a newline: from the middle of a number another would be read."""
        if offset:
            stream.seek(offset - 1)
            if stream.read(1) != b"\n":
                raise ValueError(f"no {what} begins at byte {offset}: the index does not match the file")
        else:
            stream.seek(0)

    def _index(self, folder: Path, part: str) -> "array[int]":
        published = folder / f"{self.name}.{part}.tsv.lineidx"
        path = published if published.is_file() else folder / f"{self.name}.{part}.lineidx"
        if not path.is_file():
            raise DataError(f"{published}: no such file, a TSV pair has four. Copy it beside the others.")
        offsets = array("q")
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                text = line.strip()
                good = text.isdigit() and len(text) < 19
                if not good:
                    reason = f"{text[:40]!r} is no decimal byte offset"
                    self.problems.append(Problem(path.name, number, reason, kept=part == "images"))
                offsets.append(int(text) if good else NO_OFFSET)
        return offsets

    def _check_end(self, stream: BinaryIO, offsets: "array[int]", part: str) -> None:
        """The index reaches the end of its file, or a problem says how much lies behind it."""
        size = stream.seek(0, 2)
        stream.seek(max((offset for offset in offsets if offset < size), default=0))
        stream.readline(MAX_LINE_BYTES)
        if (rest := size - stream.tell()) > 0:
            reason = f"{rest:,} bytes lie behind the last line that the index knows: it is cut short"
            self.problems.append(Problem(f"{self.name}.{part}.tsv", 0, reason))


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

    def _find(self, number: int) -> tuple[CotPair, int]:
        for pair in self.pairs:
            if number < len(pair):
                return pair, number
            number -= len(pair)
        raise AssertionError("a number beyond the last")


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(MAX_LINE_BYTES)
    if len(line) == MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
    return line.rstrip(b"\r\n")


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise DataError(f"{path}: no such file, a TSV pair has four. Copy it beside the others.")
    return path.open("rb")


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


def _from_json(number: int, key: str, fields: dict[str, object]) -> Record:
    if not isinstance(fields, dict):
        raise ValueError("the annotation is not a JSON object")
    boxes: list[Box] = [(x, y, x + w, y + h) for x, y, w, h in read_boxes(fields["gt_boxes"])]
    regions, think = fields["region_map"], fields["think"]
    if not isinstance(regions, dict) or len(regions) != 1:
        raise ValueError("region_map does not name one expression")
    if not isinstance(think, str):
        raise ValueError("think is not text")
    ((referring, indices),) = regions.items()
    if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < len(boxes) for i in indices):
        raise ValueError(f"region_map {indices!r} is not a list of indices below {len(boxes)}")
    return Record(
        id=number,
        image_name=key,
        referring=read_text(referring, "expression"),
        domain=read_text(fields.get("domain"), "domain"),
        sub_domain=read_text(fields.get("sub_domain"), "sub_domain"),
        category=read_text(fields.get("category"), "category") or "person",
        candidate_boxes=tuple(boxes),
        answer_boxes=tuple(boxes[i] for i in indices),
        trace=read_text(think, "think"),
    )
