"""HumanRef-CoT's layout: pairs of TSV files with line indices, written and read by byte offset.

Layout    Per pair NAME: NAME.images.tsv (`key \\t base64 JPEG`), NAME.annotations.tsv (`byte offset of the
          picture's line \\t JSON`), and a .lineidx beside each (`NAME.images.lineidx`), a decimal byte offset
          per line. JSON: gt_boxes (x, y, width, height), region_map {expression: [indices from 0]}, think;
          ours adds category, domain and sub_domain, which the published set lacks.
Contract  Nothing is read whole: 11.7 GB is the published size. Base64 may be wrapped as b'…'.
          A line that cannot be read is a `Problem` when iterating and a DataError when asked for by number.
Elsewhere records: records.py; the sibling without traces: humanref.py.
Source    docs/sources.md#humanref-cot
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration.records import Box, Problem, Record, new_directory, plain_numbers, read_boxes
from rexthinker_edge.runtime.errors import DataError

PAIR, REJECTION_PAIR = "humanref_cot", "humanref_cot_rejection"
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
        self.index = (folder / f"{name}.lineidx").open("wb")

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
        DataError: one of its four files is missing, or an index is not one of decimal offsets.
    """

    def __init__(self, directory: Path | str, name: str = PAIR) -> None:
        folder = Path(directory)
        self.name = name
        self.offsets = _read_index(folder / f"{name}.annotations.lineidx")
        self.image_offsets = _read_index(folder / f"{name}.images.lineidx")
        self._annotations = _open(folder / f"{name}.annotations.tsv")
        try:
            self._images = _open(folder / f"{name}.images.tsv")
        except DataError:
            self._annotations.close()
            raise

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
            return self._read(number)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.name}.annotations.tsv, line {number + 1}: {_why(error)}, a picture's offset, "
                "a tab and a JSON object are needed. Leave it out, or copy the file again."
            ) from error

    def records(self, problems: list[Problem] | None = None) -> Iterator[Record]:
        """Every record in order; the lines that cannot be read go to `problems`."""
        for number in range(len(self)):
            try:
                yield self._read(number)
            except (ValueError, KeyError, TypeError) as error:
                if problems is not None:
                    problems.append(Problem(f"{self.name}.annotations.tsv", number + 1, _why(error)))

    def jpeg(self, number: int) -> bytes:
        """The picture of record `number` as its file's bytes.

        Raises:
            DataError: the picture's line is damaged.
        """
        try:
            return self._image_line(self._annotation_line(number)[0])[1]
        except ValueError as error:
            raise DataError(
                f"{self.name}.images.tsv, picture of record {number}: {error}, "
                "a key, a tab and base64 are needed. Leave the record out, or copy the file again."
            ) from error

    def _annotation_line(self, number: int) -> tuple[int, bytes]:
        self._annotations.seek(self.offsets[number])
        offset, tab, text = self._annotations.readline().rstrip(b"\r\n").partition(b"\t")
        if not tab or not offset.isdigit():
            raise ValueError("the line has no picture offset")
        return int(offset), text

    def _read(self, number: int) -> Record:
        offset, text = self._annotation_line(number)
        self._images.seek(offset)
        key, tab, _ = self._images.readline(1024).partition(b"\t")
        if not tab:
            raise ValueError(f"no picture begins at byte {offset}")
        return _from_json(number, key.decode(), json.loads(text))

    def _image_line(self, offset: int) -> tuple[str, bytes]:
        self._images.seek(offset)
        key, tab, text = self._images.readline().rstrip(b"\r\n").partition(b"\t")
        if not tab:
            raise ValueError(f"no picture begins at byte {offset}")
        if text[:2] in {b"b'", b'b"'} and text[-1:] == text[1:2]:
            text = text[2:-1]
        try:
            return key.decode(), base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64 ({error})") from error


def _why(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise DataError(f"{path}: no such file, a TSV pair has four. Copy it beside the others.")
    return path.open("rb")


def _read_index(path: Path) -> list[int]:
    if not path.is_file():
        raise DataError(f"{path}: no such file, a TSV pair has four. Copy it beside the others.")
    lines = path.read_bytes().split()
    for number, line in enumerate(lines, 1):
        if not line.isdigit():
            raise DataError(
                f"{path}, line {number}: {line[:40]!r}, a decimal byte offset is needed. Copy the file again."
            )
    return [int(line) for line in lines]


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
    if not isinstance(indices, list) or not all(isinstance(i, int) and 0 <= i < len(boxes) for i in indices):
        raise ValueError(f"region_map {indices!r} is not a list of indices below {len(boxes)}")
    return Record(
        id=number,
        image_name=key,
        referring=str(referring),
        domain=str(fields.get("domain", "")),
        sub_domain=str(fields.get("sub_domain", "")),
        category=str(fields.get("category", "person")),
        candidate_boxes=tuple(boxes),
        answer_boxes=tuple(boxes[i] for i in indices),
        trace=think,
    )
