"""One pair of HumanRef-CoT's TSV files, read by line number or byte offset.

Layout    Of a pair NAME: NAME.images.tsv (`key \\t base64 JPEG`), NAME.annotations.tsv (`byte offset of the
          picture's line \\t JSON`), and an index beside each (`NAME.images.tsv.lineidx` as published, or
          `NAME.images.lineidx`), a decimal byte offset per line. JSON: gt_boxes (x, y, width, height),
          region_map {expression: [indices from 0]}, think; ours adds category, domain and sub_domain, which
          the published set lacks.
Contract  Nothing is read whole: 11.7 GB is the published size; the indices are held (8 bytes a line) and one
          line at a time, at most `MAX_LINE_BYTES`. Base64 may be wrapped as b'…'.
          A line that cannot be read, or that does not begin where the index says, is refused with one of
          `BAD` that says why; a line of an index that is no offset costs its record alone. Without an index
          of annotations their file is read through once, in pieces, for its newlines. Pictures are found by
          the annotation's own offset: an index of pictures that does not match costs nothing, and is named.
Elsewhere a folder of pairs, and writing them: humanref_cot.py; records: records.py.
Source    docs/sources.md#humanref-cot
"""

import base64
import binascii
from array import array
from bisect import bisect_left
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rexthinker_edge.calibration.records import Box, Problem, Record, read_boxes, read_json, read_text
from rexthinker_edge.runtime.errors import DataError

PAIR, REJECTION_PAIR = "humanref_cot", "humanref_cot_rejection"
MAX_LINE_BYTES = 64 * 2**20  # a picture of 48 MB; without a limit a lost newline could read 10 GB
SCAN_BYTES = 2**24
NO_OFFSET = -1  # a line of an index that is no number


class CotPair:
    """One pair, open for reading by line number.

    Raises:
        DataError: one of its two TSV files is missing.
    """

    def __init__(self, directory: Path | str, name: str = PAIR) -> None:
        folder = Path(directory)
        self.name = name
        self.problems: list[Problem] = []  # of the files; those of records come when they are read
        with ExitStack() as opened:
            self._annotations = opened.enter_context(_open(folder / f"{name}.annotations.tsv"))
            self._images = opened.enter_context(_open(folder / f"{name}.images.tsv"))
            known = self._index(folder, "annotations")
            self.offsets = beginnings(self._annotations) if known is None else known
            pictures = self._index(folder, "images")
            self.image_offsets = None if pictures is None else array("q", sorted(pictures))
            self._check_end(self._annotations, self.offsets, "annotations")
            opened.pop_all()

    def close(self) -> None:
        """Close both files."""
        self._annotations.close()
        self._images.close()

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, number: int) -> Record:
        """Record `number`; raises one of `BAD` saying what is wrong with it."""
        offset, text = self._annotation_line(number)
        self._begin(self._images, offset, "picture")
        key, tab, _ = self._images.readline(1024).partition(b"\t")
        if not tab:
            raise ValueError(f"no picture begins at byte {offset}")
        return _from_json(number, key.decode(), read_json(text))

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

    def doubt(self, number: int) -> str:
        """Whether the pictures' index knows its picture, which is found without it; "" where it does."""
        offset = self._annotation_line(number)[0]
        if self.image_offsets is None:
            return ""
        place = bisect_left(self.image_offsets, offset)
        if self.image_offsets[place : place + 1] == array("q", [offset]):
            return ""
        return f"its picture begins at byte {offset}, which {self.name}.images' index does not have"

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

    def _index(self, folder: Path, part: str) -> "array[int] | None":
        """The offsets of an index; None, and a problem, where it is not there."""
        published = folder / f"{self.name}.{part}.tsv.lineidx"
        path = published if published.is_file() else folder / f"{self.name}.{part}.lineidx"
        if not path.is_file():
            reason = "no such index; lines are found without it"
            self.problems.append(Problem(published.name, 0, reason, kept=True))
            return None
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


def beginnings(stream: BinaryIO) -> "array[int]":
    """Byte offsets at which the lines of a file begin; it is read in pieces."""
    offsets, place = array("q", [0]), 0
    stream.seek(0)
    while piece := stream.read(SCAN_BYTES):
        offsets.extend((np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + place + 1).tolist())
        place += len(piece)
    if offsets[-1] == place:
        offsets.pop()  # behind the last newline nothing begins
    return offsets


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(MAX_LINE_BYTES)
    if len(line) == MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
    return line.rstrip(b"\r\n")


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise DataError(f"{path}: no such file, a pair of TSV files is needed. Copy it beside the other.")
    return path.open("rb")


def _from_json(number: int, key: str, fields: Any) -> Record:
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
