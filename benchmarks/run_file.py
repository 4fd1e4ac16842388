"""The record of a run: one JSON object a line, appended and synced item by item.

Layout    Line 1 is the header: schema `rexthinker-edge/evaluation/1`, dataset, subject, settings. Every other
          line is one item, `Item`. Beside FILE.jsonl may stand FILE.jsonl.top: the likeliest tokens of each
          position of an item's answer, int32 ids then float32 log-probabilities, (tokens, k) each; the
          item says where (`top`).
Contract  A line is written whole and synced before the next item is asked, so kill -9 costs the item under
          way and nothing else. A torn last line is cut off when the run goes on. A run goes on only with the
          header it began with; two processes cannot write one file.
Elsewhere filling it: runs.py; figures from it: figures.py.
"""

import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.records import Box, Problem
from rexthinker_edge.runtime.errors import DataError, OptionError
from rexthinker_edge.runtime.strict_json import StrictJsonError, to_dataclass

SCHEMA = "rexthinker-edge/evaluation/1"


@dataclass(frozen=True)
class Again:
    """The same item with its hints in another order; indices as in the item."""

    order: tuple[int, ...]
    status: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Forced:
    """Another run's tokens under this subject's eyes: what the reference chose, judged position by position.

    `divergence` is the KL divergence in nats from the reference's distribution to this subject's, over the
    reference's likeliest tokens and all others as one: a lower bound, close where the rest is rare.
    """

    divergence: tuple[float, ...]
    same_top: tuple[bool, ...]


@dataclass(frozen=True)
class Item:
    """One item of a run.

    Attributes:
        number: of the record in its dataset; id: its own.
        candidates: how many the record names, used or not.
        truth: candidates (by index among those asked about) that are the answer; None where unknown.
        answers: the record's answer boxes, in pixels of the original picture, as `boxes` is.
        status: None where the item could not be asked; `error` says why.
        pass_tokens: how many tokens each decoder pass gave.
        verdicts: per candidate asked about.
        confidence: of the answer, from 0 to 1; None where the subject tells none.
        verdict_confidences: per candidate, None where a verdict has none; () where the subject tells none.
        top: (byte offset, tokens, k) in the file beside.
        problems: what was wrong with its record, so that a run that goes on tells it again.
    """

    number: int
    id: int
    image_name: str
    referring: str
    domain: str
    sub_domain: str
    category: str
    candidates: int
    truth: tuple[int, ...] | None
    answers: tuple[Box, ...]
    status: str | None
    indices: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    verdicts: tuple[str, ...] = ()
    text: str = ""
    token_ids: tuple[int, ...] = ()
    tokens: dict[str, int] = field(default_factory=dict)
    pass_tokens: tuple[int, ...] = ()
    ms: dict[str, float] = field(default_factory=dict)
    again: tuple[Again, ...] = ()
    forced: Forced | None = None
    top: tuple[int, int, int] | None = None
    error: str | None = None
    confidence: float | None = None
    verdict_confidences: tuple[float | None, ...] = ()
    problems: tuple[Problem, ...] = ()


Top = tuple[NDArray[np.int32], NDArray[np.float32]]


class RunFile:
    """A run on disk, open for going on; a context manager."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Open or begin `path`.

        Raises:
            OptionError: it belongs to another run, is written by another process, or cannot be written.
            DataError: its first line is no header.
        """
        self.path, self.top_path = path, path.with_name(path.name + ".top")
        self.header = {"schema": SCHEMA, **header}
        self.items: dict[int, Item] = {}
        with ExitStack() as opened:
            try:
                self._lines = opened.enter_context(path.open("a+b"))
                _lock(self._lines, path)
                self._go_on()
                self._top = opened.enter_context(self.top_path.open("a+b"))
            except OSError as error:
                raise OptionError(
                    f"{path}: cannot be written ({error.strerror}), a writable place is needed. "
                    "Choose another."
                ) from error
            self._cut_top()
            opened.pop_all()

    def __enter__(self) -> "RunFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; an unused one beside is removed."""
        self._lines.close()
        empty = self._top.seek(0, os.SEEK_END) == 0
        self._top.close()
        if empty:
            self.top_path.unlink(missing_ok=True)

    def add(self, item: Item, top: Top | None = None) -> Item:
        """Append one item, synced; with its likeliest tokens where there are any."""
        if top is not None:
            offset = self._top.seek(0, os.SEEK_END)
            self._top.write(top[0].astype("<i4").tobytes() + top[1].astype("<f4").tobytes())
            _sync(self._top)
            item = Item(**{**item.__dict__, "top": (offset, *top[0].shape)})
        self._append(asdict(item))
        self.items[item.number] = item
        return item

    def _go_on(self) -> None:
        """Read what is there, cut a torn line off, write the header of a new file."""
        self._lines.seek(0)
        whole, header = 0, None
        for line in self._lines:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if header is None:
                header = _read_header(self.path, line)
                _check_same(self.path, header, json.loads(json.dumps(self.header)))
            elif (item := _read_item(line)) is not None:
                self.items[item.number] = item
        self._lines.truncate(whole)
        if header is None:
            self._append(self.header)

    def _cut_top(self) -> None:
        """Forget what a torn run wrote behind the last item that is whole."""
        ends = [8 * item.top[1] * item.top[2] + item.top[0] for item in self.items.values() if item.top]
        end, size = max(ends, default=0), self._top.seek(0, os.SEEK_END)
        if size < end:
            raise DataError(
                f"{self.top_path}: {size:,} bytes, {self.path.name} needs {end:,}. Copy both files again, "
                "or begin the run anew."
            )
        self._top.truncate(end)

    def _append(self, value: dict[str, Any]) -> None:
        self._lines.seek(0, os.SEEK_END)
        self._lines.write((json.dumps(value, ensure_ascii=False) + "\n").encode())
        _sync(self._lines)


def read_run(path: Path) -> tuple[dict[str, Any], list[Item]]:
    """Header and items of a run, by number; a torn last line is left out.

    Raises:
        DataError: there is no such file, or it is no run.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, a run of `evaluate` is needed. Name one.")
    items: dict[int, Item] = {}
    with path.open("rb") as stream:
        header = _read_header(path, stream.readline())
        for line in stream:
            if (item := _read_item(line)) is not None:
                items[item.number] = item
    return header, [items[number] for number in sorted(items)]


def read_top(path: Path, item: Item) -> Top | None:
    """The likeliest tokens at each position of an item's answer: ids and log-probabilities, (tokens, k).

    Args:
        path: the run's; the file beside it is read.
    """
    if item.top is None:
        return None
    offset, tokens, k = item.top
    with path.with_name(path.name + ".top").open("rb") as stream:
        stream.seek(offset)
        raw = stream.read(8 * tokens * k)
    ids = np.frombuffer(raw[: 4 * tokens * k], "<i4").reshape(tokens, k)
    return ids, np.frombuffer(raw[4 * tokens * k :], "<f4").reshape(tokens, k)


def _read_header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise DataError(
            f"{path}: its first line is no header of schema {SCHEMA}, a run of `evaluate` is needed. "
            "Give another name."
        )
    return value


def _read_item(line: bytes) -> Item | None:
    """An item; None for a line that was spoilt: its item will be asked again."""
    try:
        return to_dataclass(Item, json.loads(line))
    except (StrictJsonError, ValueError):
        return None


def _check_same(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            seen, now = json.dumps(found.get(key))[:90], json.dumps(wanted.get(key))[:90]
            raise OptionError(
                f"{path}: a run with {key} {seen}, this one has {now}; only the same run can go on. "
                "Give another --out, or remove the file."
            )


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415 - POSIX alone
    except ModuleNotFoundError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OptionError(
            f"{path}: another process is writing it, a file of its own is needed. "
            "Wait, or give another --out."
        ) from error
