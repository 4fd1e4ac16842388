"""Where the model should look before it writes a token: supervision of a few attention heads, training only.

Layout    Each look says: at this token of a turn, that head should attend to this prefix token or to this
          earlier token of the turn. `HEADS` gives the layer and head of every kind.
Contract  Found by reading the answer's text with the truth beside it; a place whose source cannot be told
          has no look. Nothing of this is in the exported model but the weights it shaped.
Elsewhere the loss: trainee.py; the dense turns: dense_turns.py; what it won: docs/negative-results.md.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.predicates import relations_of
from rexthinker_edge.calibration.workbench.world import Scene


class Kind(IntEnum):
    """Why a token looks somewhere."""

    COPIED = 0  # a box number, at the same number of the hint
    TOLD = 1  # a fact about "Ball 3", at the end of the hint's third box
    RECALLED = 2  # "Ball 3" itself, at the end of the hint's third box
    ORDERED = 3  # the next one of an order, at its box when all candidates are ordered
    CHOSEN = 4  # the next one of an order, at its verdict when only those that passed are
    LISTED = 5  # "Ball 3: second", at its place in the order above; "left of it", at what stands for "it"
    SEEN = 6  # another thing, at a picture token that shows it


# Layer and head. Kinds of one layer that read different keys use heads of different key heads.
HEADS: dict[Kind, tuple[int, int]] = {
    Kind.RECALLED: (2, 0),
    Kind.COPIED: (4, 0),
    Kind.SEEN: (4, 1),
    Kind.TOLD: (4, 3),
    Kind.LISTED: (4, 4),
    Kind.ORDERED: (5, 0),
    Kind.CHOSEN: (5, 3),
}

_BOX = re.compile(rb"\[(\d+), (\d+), (\d+), (\d+)\]")
_ORDER = re.compile(
    rb"^(?:From the \w+|Leftmost|Rightmost|Topmost|Bottommost|Largest|Smallest): ([^.\n]*)\.", re.MULTILINE
)
_REFERENCE = re.compile(rb"^The reference is \w+ (\d+)\.$|^The [\w ]+ is at [xy] = (\d+)\.$", re.MULTILINE)
_RELATED = re.compile(rb"(?:touches|inside|on top of|has) the (\w+) (\w+)")
_PLACED = re.compile(rb"([Tt]he [\w ]+?) is at x = (\d+), y = (\d+)|([Tt]he [\w ]+?) is at [xy] = (\d+)")


@dataclass(frozen=True)
class Truth:
    """What an answer speaks of.

    Attributes:
        boxes: (B, 4) int64, the hint's, and `box_ends` (B,) the prefix token that completes each.
        candidates: the thing of each hint box.
        cell_things: (T,) the thing under each picture token, -1 for none; `first_cell` is the prefix token
            of the first.
        centres: (things, 2) float64 in resized pixels.
    """

    scene: Scene
    category: str
    candidates: tuple[int, ...]
    boxes: NDArray[np.int64]
    box_ends: NDArray[np.int64]
    cell_things: NDArray[np.int64]
    first_cell: int
    columns: int
    centres: NDArray[np.float64]

    def cell(self, thing: int) -> int | None:
        """The prefix token of the picture cell that shows a thing nearest to its centre, if any does."""
        shown = np.flatnonzero(self.cell_things == thing)
        if not len(shown):
            return None
        middles = (np.stack([shown % self.columns, shown // self.columns], 1) + 0.5) * 28
        nearest = np.abs(middles - self.centres[thing]).sum(1).argmin()
        return self.first_cell + int(shown[nearest])


class _Reader:
    """One answer's text and the token that holds each byte of it."""

    def __init__(self, pieces: Sequence[bytes], truth: Truth) -> None:
        self.text, self.truth = b"".join(pieces), truth
        self.starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])])
        noun = truth.category.capitalize().encode()
        self.name = re.compile(rb"\b" + noun + rb" (\d+)")
        self.line = re.compile(rb"^(?:- )?" + noun + rb" (\d+)(?: \[[^\]\n]*\])?(:)([^\n]*)$", re.MULTILINE)

    def token(self, byte: int) -> int:
        return int(np.searchsorted(self.starts, byte, "right")) - 1

    def box_end(self, number: bytes) -> int | None:
        index = int(number) - 1
        return int(self.truth.box_ends[index]) if 0 <= index < len(self.truth.box_ends) else None


Look = tuple[int, int, int, int]  # place, source, kind, whether the source is a token of the turn


def find_looks(pieces: Sequence[bytes], truth: Truth) -> NDArray[np.int64]:
    """(M, 4) rows of (place, source, kind, own) for an answer.

    Args:
        pieces: the bytes of each of the answer's tokens.

    Returns:
        `place` and, where `own` is 1, `source` count the answer's tokens from 0; where `own` is 0 `source`
        counts the prefix's.
    """
    reader = _Reader(pieces, truth)
    found = [*_copied(reader), *_names(reader), *_orders(reader), *_others(reader)]
    return np.array(sorted(set(found)), np.int64).reshape(-1, 4)


def _copied(reader: _Reader) -> Iterator[Look]:
    order = {tuple(box): k for k, box in enumerate(reader.truth.boxes.tolist())}
    for match in _BOX.finditer(reader.text):
        k = order.get(tuple(int(v) for v in match.groups()))
        if k is None:
            continue
        for slot in range(4):
            place = reader.token(match.start(slot + 1)) - 1
            yield place, int(reader.truth.box_ends[k]) - 3 + slot, Kind.COPIED, 0


def _names(reader: _Reader) -> Iterator[Look]:
    for match in reader.name.finditer(reader.text):
        end = reader.box_end(match[1])
        if end is not None:
            yield reader.token(match.start(1)), end, Kind.RECALLED, 0
    for match in reader.line.finditer(reader.text):
        end = reader.box_end(match[1])
        if end is not None:
            for place in range(reader.token(match.start(2)), reader.token(match.end() - 1)):
                yield place, end, Kind.TOLD, 0


def _orders(reader: _Reader) -> Iterator[Look]:
    passed: dict[bytes, int] = {}  # the verdict token of each one that the section before let pass
    for section in re.split(rb"(?=^# )", reader.text, flags=re.MULTILINE):
        offset = reader.text.find(section)
        listed: dict[bytes, int] = {}
        for order in _ORDER.finditer(section):
            for match in reader.name.finditer(section, order.start(1), order.end(1)):
                target = reader.token(offset + match.start(1))
                listed.setdefault(match[1], target)
                end = reader.box_end(match[1])
                if match[1] in passed:
                    yield target - 1, passed[match[1]], Kind.CHOSEN, 1
                elif not passed and end is not None:
                    yield target - 1, end, Kind.ORDERED, 0
        reference = _REFERENCE.search(section)
        here: dict[bytes, int] = {}
        for line in reader.line.finditer(section):
            if line[1] in listed:
                yield reader.token(offset + line.start(2)), listed[line[1]], Kind.LISTED, 1
            elif reference and line.start() > reference.start():
                said = reader.token(offset + max(reference.start(1), reference.start(2)))
                yield reader.token(offset + line.start(2)), said, Kind.LISTED, 1
            mark = line[3].find("✅".encode())
            if mark >= 0:
                here[line[1]] = reader.token(offset + line.start(3) + mark)
        passed = here or passed


def _others(reader: _Reader) -> Iterator[Look]:
    truth = reader.truth
    for line in reader.line.finditer(reader.text):
        number = int(line[1]) - 1
        if not 0 <= number < len(truth.candidates):
            continue
        for match in _RELATED.finditer(line[3]):
            words = match[1].decode(), match[2].decode()
            for _, other, _ in relations_of(truth.scene, truth.candidates[number]):
                thing = truth.scene.things[other]
                if (thing.color, thing.category) == words:
                    begin = line.start(3) + match.start(1)
                    stop = line.start(3) + match.end(2) - 1
                    yield from _seen(reader, other, reader.token(begin), reader.token(stop))
    for match in _PLACED.finditer(reader.text):
        named = (match[1] or match[4]).decode().split()[1:]
        things = [
            i
            for i, thing in enumerate(truth.scene.things)
            if set(named) <= {thing.category, thing.color, thing.pattern}
        ]
        if len(things) == 1:
            for group in (2, 3, 5):
                if match[group]:
                    target = reader.token(match.start(group))
                    yield from _seen(reader, things[0], target, target)


def _seen(reader: _Reader, thing: int, first: int, last: int) -> Iterator[Look]:
    cell = reader.truth.cell(thing)
    if cell is not None:
        for target in range(first, last + 1):
            yield target - 1, cell, Kind.SEEN, 0
