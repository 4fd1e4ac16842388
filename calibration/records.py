"""Referring data in memory: one expression on one picture, whatever file it came from.

Layout    Boxes are (x0, y0, x1, y1) in pixels of the upright original picture.
Contract  A record is plain data. A line that cannot be read is a `Problem`, named and counted, and does not
          end the reading. A dataset's folder appears whole or not at all.
Elsewhere a set of them with pictures: dataset.py; files: humanref.py, humanref_cot.py, refcoco.py, coco.py;
          where workbench records come from: workbench/items.py.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.runtime.errors import DataError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Record:
    """One expression and its truth.

    Attributes:
        id: counts from 0 in its file.
        image_name: file name (HumanRef) or key (HumanRef-CoT) of the picture.
        referring: the expression.
        domain, sub_domain: HumanRef's grouping; "" where a file has none.
        category: what the candidates are; "person" in the published sets.
        candidate_boxes: every thing of the category, in hint order.
        answer_boxes: those that the expression means, copied from the candidates; empty for a rejection.
        trace: the text between <think> and </think>, or None.
    """

    id: int
    image_name: str
    referring: str
    domain: str
    sub_domain: str
    category: str
    candidate_boxes: tuple[Box, ...]
    answer_boxes: tuple[Box, ...]
    trace: str | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file: its name, line number from 1 (0: the file as a whole), and why.

    `kept` tells that the record is used all the same, without what was wrong in it.
    """

    file: str
    line: int
    reason: str
    kept: bool = False

    def __str__(self) -> str:
        return f"{place_text(self.file, self.line)}: {self.reason} ({'kept' if self.kept else 'left out'})"


def place_text(file: str, line: int) -> str:
    """ "val.jsonl, line 3", or the file alone where `line` is 0."""
    return f"{file}, line {line}" if line else file


def read_box(value: object) -> Box:
    """Four finite numbers from JSON.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(f"{value!r} is not a box of four numbers")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and _is_finite(v) for v in value):
        raise ValueError(f"{value!r} is not a box of four finite numbers")
    x0, y0, x1, y1 = (float(v) for v in value)
    return x0, y0, x1, y1


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def read_text(value: object, name: str) -> str:
    """Text that can be written again; null is "".

    Raises:
        ValueError: it is anything else, or holds half a surrogate pair.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} {value!r} is not text")
    value.encode()
    return value


def read_json(raw: bytes) -> Any:
    """A JSON value from UTF-8, a byte order mark let through.

    Raises:
        ValueError: it is none; says where that shows.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start:,} of {len(raw):,})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos:,})") from error
    except RecursionError as error:
        raise ValueError("not JSON (nested too deep)") from error


def why(error: Exception) -> str:
    """What was wrong with a line, from the error that reading it raised."""
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def read_boxes(value: object) -> tuple[Box, ...]:
    """A JSON list of boxes; ValueError where it is anything else."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list of boxes")
    return tuple(read_box(row) for row in value)


def plain_numbers(boxes: Sequence[Box]) -> list[list[int | float]]:
    """Boxes for JSON: whole numbers without a point."""
    return [[int(v) if float(v).is_integer() else float(v) for v in box] for box in boxes]


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `directory` when the block ends well and vanishes when it does not.

    Raises:
        DataError: `directory` is there already and not empty, is a file, or cannot be made.
    """
    if directory.is_file():
        raise DataError(
            f"{directory}: is a file, a new or empty folder is needed. Give another name or remove it."
        )
    if directory.is_dir() and any(directory.iterdir()):
        raise DataError(
            f"{directory}: the folder has files in it, a new or empty one is needed. "
            "Give another name or empty it first."
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be made ({error.strerror}), a writable place is needed. Give another name."
        ) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
