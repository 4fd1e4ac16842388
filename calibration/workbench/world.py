"""What a workbench picture contains: the truth that pictures, expressions and traces are made from.

Layout    Things stand in paint order: a later thing covers an earlier one.
          Boxes are (x0, y0, x1, y1) in pixels of the picture, x1/y1 exclusive, tight around
          the thing's own outline (shadow left out, hidden parts included), within the picture.
Contract  A scene is plain data; item i of seed N is the same whatever the count, level apart.
Elsewhere placing things: layout.py; painting: render.py; asking: expressions.py; reasoning: traces.py.
"""

from dataclasses import dataclass
from enum import StrEnum

CATEGORIES = ("ball", "box", "cone", "star", "ring", "mug")
EASY_CATEGORIES = ("ball", "box", "cone", "star")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
PATTERNS = ("plain", "striped", "dotted")
LETTERS = "ABCDEFGHKLMNPRSTUXYZ"


class Level(StrEnum):
    """How much of the world is used."""

    EASY = "easy"
    FULL = "full"


class RelationKind(StrEnum):
    """What one thing does to another; `first` is the subject."""

    TOUCHING = "touching"  # symmetric: listed once, first < second
    INSIDE = "inside"
    ON_TOP_OF = "on top of"


@dataclass(frozen=True)
class Thing:
    """One thing on the bench."""

    category: str
    color: str
    pattern: str
    size: str  # "small" or "large": within one picture large is at least 1.5 times small, per side
    letter: str | None
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Relation:
    """`things[first]` is `kind` `things[second]`."""

    kind: RelationKind
    first: int
    second: int


@dataclass(frozen=True)
class Scene:
    """One picture's truth. `seed` and `index` make it again, picture included."""

    level: Level
    seed: int
    index: int
    width: int
    height: int
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
