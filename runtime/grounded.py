"""Thoughts that carry their evidence: `<obj> phrase | [x1, y1, x2, y2] </obj>` in the midst of the words.

Layout    A thought is pieces: text, and references, each a phrase with one or more boxes, or points `[x, y]`.
          Several are joined by "; ". Coordinates are 0 to 1000 of the picture's width and height.
Contract  Reading never fails: what is no whole, sound reference stays text and is named as a problem with its
          place. Reading what was written gives back the pieces, neighbouring text joined; a tag that stands
          in the words themselves is written with a space in it, so that only references are tags.
Elsewhere making one of a result: explain.py; scores: benchmarks/grounding.py; the mapping: boxes.py.
Source    docs/sources.md#grounded-thoughts
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SIDE = 1000  # coordinates run from 0 to this
MOST_SHAPES = 1000  # of one reference
_TAG = re.compile(r"<(/?)obj>")
_SHAPES = re.compile(r"\[[^\[\]]*\](?:\s*;\s*\[[^\[\]]*\])*")
_NUMBER = re.compile(r"-?\d{1,6}(?:\.\d{1,6})?")
_BETWEEN = re.compile(r"(<)(/?obj>)")

Shape = tuple[float, ...]  # (x1, y1, x2, y2) or (x, y)


@dataclass(frozen=True)
class Reference:
    """A phrase, and where in the picture that is: boxes all, or points all."""

    phrase: str
    shapes: tuple[Shape, ...]

    @property
    def is_points(self) -> bool:
        """Whether points, not boxes."""
        return len(self.shapes[0]) == 2


@dataclass(frozen=True)
class GroundingProblem:
    """What is wrong with characters [start, end) of a text that was read."""

    start: int
    end: int
    what: str


@dataclass(frozen=True)
class GroundedThought:
    """What a text holds: its pieces in order, and what could not be read as a reference."""

    pieces: tuple[str | Reference, ...]
    problems: tuple[GroundingProblem, ...] = ()

    @property
    def references(self) -> tuple[Reference, ...]:
        """Those of the pieces that are one."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Reference))

    @property
    def text(self) -> str:
        """The words alone: phrases in place of references."""
        return "".join(piece if isinstance(piece, str) else piece.phrase for piece in self.pieces)


def read_grounded(text: str) -> GroundedThought:
    """Read the references of a text, whoever wrote it."""
    pieces, problems, done = list[str | Reference](), list[GroundingProblem](), 0
    for start, end, body, wrong in _tagged(text):
        found = wrong if body is None else _reference(body)
        if isinstance(found, str):
            problems.append(GroundingProblem(start, end, found))
            continue
        assert found is not None
        pieces += [text[done:start], found]
        done = end
    pieces.append(text[done:])
    return GroundedThought(tuple(_joined(pieces)), tuple(problems))


def write_grounded(pieces: Iterable[str | Reference]) -> str:
    """The text of pieces: the inverse of `read_grounded`; coordinates are rounded to whole numbers."""
    return "".join(_plain(piece) if isinstance(piece, str) else _written(piece) for piece in _joined(pieces))


def phrase_of(words: str) -> str:
    """Words as a reference may hold them: on one line, without tags, never empty."""
    return " ".join(_plain(words).split()) or "object"


def _tagged(text: str) -> Iterator[tuple[int, int, str | None, str | None]]:
    """Every `<obj>` with what it encloses, or what is wrong instead: (start, end, body, problem)."""
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if tag.group(1):
            if opened is None:
                yield tag.start(), tag.end(), None, "</obj> without <obj>"
            else:
                yield opened.start(), tag.end(), text[opened.end() : tag.start()], None
            opened = None
            continue
        if opened is not None:
            yield opened.start(), opened.end(), None, "<obj> within <obj>"
        opened = tag
    if opened is not None:
        yield opened.start(), len(text), None, "<obj> without </obj>"


def _reference(body: str) -> Reference | str:  # noqa: PLR0911 - one way out per fault
    """What stands between the tags, or what is wrong with it."""
    phrase, bar, place = body.rpartition("|")
    if not bar:
        return "no | between phrase and coordinates"
    if not phrase.strip():
        return "no phrase"
    if not _SHAPES.fullmatch(place.strip()):
        return f"coordinates are {_shown(place)}, [x1, y1, x2, y2] or [x, y] is needed, several joined by ;"
    shapes = list[Shape]()
    for written in place.strip().split(";"):
        shape = _shape(written.strip()[1:-1])
        if isinstance(shape, str):
            return shape
        shapes.append(shape)
    if len({len(shape) for shape in shapes}) > 1:
        return "boxes and points in one reference"
    if len(shapes) > MOST_SHAPES:
        return f"{len(shapes):,} instances, at most {MOST_SHAPES:,} are read"
    return Reference(" ".join(phrase.split()), tuple(shapes))


def _shape(written: str) -> Shape | str:
    numbers = [number.strip() for number in written.split(",")]
    if len(numbers) not in (2, 4):
        return f"{len(numbers)} numbers in [{_shown(written)}], four of a box or two of a point are needed"
    for number in numbers:
        if not _NUMBER.fullmatch(number):
            return f"{_shown(number)} is no number"
    shape = tuple(float(number) for number in numbers)
    if not all(0 <= value <= SIDE for value in shape):
        return f"[{_shown(written)}] leaves 0 to {SIDE}"
    if len(shape) == 4 and (shape[2] < shape[0] or shape[3] < shape[1]):
        return f"[{_shown(written)}] has its corners swapped"
    return shape


def _joined(pieces: Iterable[str | Reference]) -> Iterator[str | Reference]:
    """Neighbouring texts as one, empty ones left out."""
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if text:
            yield text
        text = ""
        yield piece
    if text:
        yield text


def _written(reference: Reference) -> str:
    assert reference.shapes, "a reference without a place"
    shapes = "; ".join(
        "[" + ", ".join(str(round(value)) for value in shape) + "]" for shape in reference.shapes
    )
    return f"<obj> {phrase_of(reference.phrase)} | {shapes} </obj>"


def _plain(text: str) -> str:
    return _BETWEEN.sub(r"\1 \2", text)


def _shown(text: str) -> str:
    short = text.strip()
    return repr(short[:40] + "…" if len(short) > 40 else short)
