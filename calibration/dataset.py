"""A dataset as everything here reads it: records by number, and the picture of each when it is asked for.

Layout    `numbers` count from 0 over what the file holds, bad ones included, so that a number always means
          the same record. An `Example` is a record with its picture and the candidates that can be asked
          about.
Contract  Nothing is fatal but a file that is missing or none of ours: a bad line, a missing picture, an index
          that does not match leave their record out; a box outside the picture, without area or given twice
          is left out of the candidates (a box partly outside is clipped). Each is a named `Problem`.
          A record's own boxes stay as the file has them: the metric is computed on those.
Elsewhere opening one by name: openers.py; the record: records.py; asking a model: benchmarks/runs.py.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration.records import Box, Problem, Record, place_text, why
from rexthinker_edge.runtime.boxes import EDGE_SLACK_PX, MAX_BOXES, Size
from rexthinker_edge.runtime.errors import DataError
from rexthinker_edge.runtime.image import FORMATS, ORIENTATION

PictureSource = Path | bytes | NDArray[np.uint8]
BAD = (
    ValueError,
    KeyError,
    TypeError,
    OSError,
    RecursionError,
)  # what reading a damaged line or picture raises


@dataclass(frozen=True)
class Example:
    """One question, ready to be asked.

    Attributes:
        number: of the record in its dataset.
        picture: path, file bytes or (H, W, 3) uint8 RGB.
        size: (width, height) of the upright picture.
        candidates: what may be asked about, distinct boxes within the picture.
        origin: for each candidate its index in `record.candidate_boxes`.
    """

    number: int
    record: Record
    picture: PictureSource
    size: Size
    candidates: tuple[Box, ...]
    origin: tuple[int, ...]

    def answers(self) -> frozenset[int] | None:
        """Candidates (by index in `candidates`) that are the truth; None where an answer is no candidate."""
        found = self.known_answers()
        known = {self.record.candidate_boxes[self.origin[i]] for i in found}
        return found if known == set(self.record.answer_boxes) else None

    def known_answers(self) -> frozenset[int]:
        """Candidates that are an answer, whether or not every answer is a candidate."""
        wanted = set(self.record.answer_boxes)
        return frozenset(i for i, k in enumerate(self.origin) if self.record.candidate_boxes[k] in wanted)


class Dataset(ABC):
    """Records by number; a context manager. Made by `open_dataset`."""

    def __init__(self, spec: str, file_problems: Iterable[Problem] = ()) -> None:
        """`file_problems` are those of the files as wholes, which belong to no record."""
        self.spec = spec
        self.file_problems = tuple(file_problems)

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most hold no file open
        """Close the files."""

    @abstractmethod
    def __len__(self) -> int:
        """How many numbers there are, bad records included."""

    @abstractmethod
    def place(self, number: int) -> tuple[str, int]:
        """File name and line (or row, from 1) of a record, for messages."""

    @abstractmethod
    def read(self, number: int) -> Record:
        """A record; raises one of `BAD` saying what is wrong with it."""

    @abstractmethod
    def picture(self, number: int, record: Record) -> PictureSource:
        """A record's picture, not decoded; raises one of `BAD` when it is missing or damaged."""

    def doubt(self, number: int) -> str:
        """What is wrong around a record that can be used all the same; "" where nothing is."""
        return ""

    def record(self, number: int) -> Record:
        """A record by number.

        Raises:
            DataError: there is no such number, or the record cannot be read.
        """
        self.check_number(number)
        try:
            return self.read(number)
        except BAD as error:
            raise DataError(
                f"{place_text(*self.place(number))}: {why(error)}, a whole record is needed. "
                "Leave it out, or copy the file again."
            ) from error

    def check_number(self, number: int) -> None:
        """Raise DataError when there is no such record."""
        if not 0 <= number < len(self):
            raise DataError(
                f"{self.spec}: record {number:,} asked for, there are {len(self):,}, counted from 0. "
                "Give a smaller number."
            )

    def records(
        self, problems: list[Problem], numbers: Iterable[int] | None = None
    ) -> Iterator[tuple[int, Record]]:
        """Every readable record, or those of `numbers`, with its number; the others go to `problems`."""
        problems += self.file_problems
        for number in range(len(self)) if numbers is None else numbers:
            try:
                record = self.read(number)
            except BAD as error:
                problems.append(Problem(*self.place(number), why(error)))
                continue
            yield number, record

    def examples(self, problems: list[Problem], numbers: Iterable[int] | None = None) -> Iterator[Example]:
        """Every example, or those of `numbers`, that can be asked; what is wrong goes to `problems`."""
        problems += self.file_problems
        for number in range(len(self)) if numbers is None else numbers:
            example = self.example(number, problems)
            if example is not None:
                yield example

    def example(self, number: int, problems: list[Problem]) -> Example | None:
        """One example; None, and a problem, when record or picture cannot be used."""
        place = self.place(number)
        try:
            record = self.read(number)
            source = self.picture(number, record)
            size = picture_size(source)
            doubt = self.doubt(number)
        except BAD as error:
            problems.append(Problem(*place, why(error)))
            return None
        if doubt:
            problems.append(Problem(*place, doubt, kept=True))
        kept: dict[Box, int] = {}
        for index, box in enumerate(record.candidate_boxes):
            usable, reason = usable_box(box, size)
            if usable is not None and (first := kept.get(usable)) is not None:
                usable, reason = None, f"candidate {{}} is the same as candidate {first}"
            if usable is not None and len(kept) == MAX_BOXES:
                usable, reason = None, f"candidate {{}} is more than the {MAX_BOXES} a prompt may hold"
            if reason:
                problems.append(Problem(*place, reason.format(index), kept=True))
            if usable is not None:
                kept[usable] = index
        return Example(number, record, source, size, tuple(kept), tuple(kept.values()))


def usable_box(box: Box, size: Size) -> tuple[Box | None, str]:
    """A box within the picture, and what was wrong with it (with `{}` for its number), if anything."""
    width, height = size
    x0, y0, x1, y1 = (min(max(v, 0.0), float(side)) for v, side in zip(box, size * 2, strict=True))
    shown = "[" + ", ".join(f"{value:g}" for value in box) + "]"
    if box[2] <= box[0] or box[3] <= box[1]:
        return None, f"candidate {{}} {shown} has no area"
    if x1 <= x0 or y1 <= y0:
        return None, f"candidate {{}} {shown} lies outside the picture of {width} x {height} px"
    over = max(abs(a - b) for a, b in zip((x0, y0, x1, y1), box, strict=True))
    if over > EDGE_SLACK_PX:
        return (x0, y0, x1, y1), (
            f"candidate {{}} {shown} reaches {over:g} px out of the picture of {width} x {height} px: clipped"
        )
    return (x0, y0, x1, y1), ""


def picture_size(source: PictureSource) -> Size:
    """(width, height) of the upright picture, from its header.

    Raises:
        ValueError: it is missing, or no picture.
    """
    if isinstance(source, np.ndarray):
        return int(source.shape[1]), int(source.shape[0])
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source), formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    except FileNotFoundError as error:
        raise ValueError("the picture is missing") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture cannot be read ({' '.join(str(error).split())[:120]})") from error
    return (height, width) if turned else (width, height)


def find_picture(name: str, folders: Iterable[Path]) -> Path:
    """A picture by the name a file gives it: below one of the folders, with its path or without.

    Raises:
        ValueError: it is nowhere, or its name leaves the folder.
    """
    parts = Path(name).parts
    if not parts or ".." in parts or os.path.isabs(name):
        raise ValueError(f"picture name {name!r} does not stay within the folder")
    for folder in folders:
        for candidate in (
            folder / name,
            folder / "images" / name,
            folder / parts[-1],
            folder / "images" / parts[-1],
        ):
            if candidate.is_file():
                return candidate
    raise ValueError(f"the picture {name} is missing")


def line_offsets(path: Path) -> list[tuple[int, int]]:
    """(byte offset, line number from 1) of every line of a file that is not blank; reads it in pieces."""
    found, offset = [], 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                found.append((offset, number))
            offset += len(line)
    return found
