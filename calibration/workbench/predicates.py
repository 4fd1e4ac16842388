"""What an expression asks of a thing: the checks, and the truth of each in a scene.

Layout    A question is a chain of checks. Each check looks at the things that passed the one before it.
          Things are named by their index in `Scene.things`.
Contract  `apply` says which things pass, or None where a thing is so near the limit that two people could
          disagree (a margin below), so such a question is never asked. Position is that of the box's centre;
          x grows to the right, y downward.
Elsewhere words for checks: wording.py; reasoning about them: traces.py; drawing them: expressions.py.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rexthinker_edge.calibration.workbench.world import RelationKind, Scene, Thing

RANK_MARGIN = 0.04  # of the picture's width or height, between neighbours in an order
SIDE_MARGIN = 0.06  # of the picture's width or height, between a thing and the reference
AREA_MARGIN = 1.2  # how much larger the largest is than the next
GAP_MARGIN = 0.03  # of the picture's longer side: a thing nearer than this may seem to touch


class Side(StrEnum):
    """Where an order starts, and where a thing lies from a reference."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"


@dataclass(frozen=True)
class Look:
    """How a thing looks. Empty fields are not asked; two colors mean either; `negated` turns it round."""

    colors: tuple[str, ...] = ()
    pattern: str | None = None
    size: str | None = None
    negated: bool = False


@dataclass(frozen=True)
class Letter:
    """The thing carries this letter."""

    letter: str


@dataclass(frozen=True)
class Rank:
    """The `count`-th from a side, or the first `count` of them (`group`), or all but that (`negated`)."""

    side: Side
    count: int
    group: bool = False
    negated: bool = False


@dataclass(frozen=True)
class Largest:
    """The largest (or the smallest) of them, or all but that one."""

    smallest: bool = False
    negated: bool = False


@dataclass(frozen=True)
class Reference:
    """A thing that an expression points to: the only one of its category with this look."""

    category: str
    color: str | None
    pattern: str | None
    index: int


@dataclass(frozen=True)
class Beside:
    """Left of, right of, above (TOP) or below (BOTTOM) a reference; the reference itself never is."""

    side: Side
    reference: Reference


@dataclass(frozen=True)
class Related:
    """Touching, inside or on top of the reference; `inverse`: it has the reference inside or on top."""

    kind: RelationKind
    reference: Reference
    inverse: bool = False


@dataclass(frozen=True)
class RareColor:
    """Its color is that of no other (or, with `common`, the color most of them have)."""

    common: bool = False


Check = Look | Letter | Rank | Largest | Beside | Related | RareColor


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        passed: indices that pass, in the order they were given.
        order: for Rank the things counted, nearest to the side first; for Largest the one found.
    """

    passed: tuple[int, ...]
    order: tuple[int, ...] = ()


def centre(thing: Thing, side: Side) -> float:
    """The centre of the thing's box along the axis of a side, in pixels."""
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2 if side in {Side.LEFT, Side.RIGHT} else (y0 + y1) / 2


def area(thing: Thing) -> float:
    """The area of the thing's box in square pixels."""
    x0, y0, x1, y1 = thing.box
    return (x1 - x0) * (y1 - y0)


def _extent(scene: Scene, side: Side) -> int:
    return scene.width if side in {Side.LEFT, Side.RIGHT} else scene.height


def apply(  # noqa: PLR0911  one return per kind of check
    check: Check, scene: Scene, things: Sequence[int]
) -> Finding | None:
    """Which of the things pass a check.

    Args:
        things: indices of the things to look at; may be empty.

    Returns:
        The finding, or None where the answer is a matter of opinion.
    """
    if isinstance(check, Look):
        return Finding(tuple(i for i in things if looks(check, scene.things[i])))
    if isinstance(check, Letter):
        return Finding(tuple(i for i in things if scene.things[i].letter == check.letter))
    if isinstance(check, Rank):
        return _rank(check, scene, things)
    if isinstance(check, Largest):
        return _largest(check, scene, things)
    if isinstance(check, Beside):
        return _beside(check, scene, things)
    if isinstance(check, RareColor):
        return _rare(check, scene, things)
    return _related(check, scene, things)


def looks(look: Look, thing: Thing) -> bool:
    """Whether one thing looks as asked."""
    fits = (
        (not look.colors or thing.color in look.colors)
        and look.pattern in {None, thing.pattern}
        and look.size in {None, thing.size}
    )
    return fits is not look.negated


def _rank(check: Rank, scene: Scene, things: Sequence[int]) -> Finding | None:
    sign = 1 if check.side in {Side.LEFT, Side.TOP} else -1
    order = sorted(things, key=lambda i: sign * centre(scene.things[i], check.side))
    counted = order[: check.count]
    limit = RANK_MARGIN * _extent(scene, check.side)
    for before, after in itertools.pairwise(order[: check.count + 1]):
        if abs(centre(scene.things[after], check.side) - centre(scene.things[before], check.side)) < limit:
            return None
    chosen = set(counted) if check.group else set(counted[check.count - 1 :])
    if check.group and len(counted) < check.count:
        chosen = set()
    return Finding(tuple(i for i in things if (i in chosen) is not check.negated), tuple(counted))


def _largest(check: Largest, scene: Scene, things: Sequence[int]) -> Finding | None:
    if not things:
        return Finding(())
    order = sorted(things, key=lambda i: area(scene.things[i]), reverse=not check.smallest)
    areas = sorted((area(scene.things[i]) for i in order[:2]), reverse=True)
    if len(areas) == 2 and areas[0] < AREA_MARGIN * areas[1]:
        return None
    return Finding(tuple(i for i in things if (i == order[0]) is not check.negated), (order[0],))


def _beside(check: Beside, scene: Scene, things: Sequence[int]) -> Finding | None:
    at = centre(scene.things[check.reference.index], check.side)
    sign = 1 if check.side in {Side.LEFT, Side.TOP} else -1
    ahead = {
        i: sign * (at - centre(scene.things[i], check.side)) for i in things if i != check.reference.index
    }
    if any(abs(d) < SIDE_MARGIN * _extent(scene, check.side) for d in ahead.values()):
        return None
    return Finding(tuple(i for i in things if i in ahead and ahead[i] > 0))


def _rare(check: RareColor, scene: Scene, things: Sequence[int]) -> Finding | None:
    colors = [scene.things[i].color for i in things]
    counts = sorted(((colors.count(c), c) for c in set(colors)), reverse=True)
    if check.common:
        if not counts or counts[0][0] < 2 or (len(counts) > 1 and counts[1][0] == counts[0][0]):
            return None
        return Finding(tuple(i for i in things if scene.things[i].color == counts[0][1]))
    return Finding(tuple(i for i in things if colors.count(scene.things[i].color) == 1))


def relations_of(scene: Scene, thing: int) -> list[tuple[RelationKind, int, bool]]:
    """Every (kind, other thing, inverse) of one thing; touching is never inverse."""
    found = []
    for relation in scene.relations:
        if relation.first == thing:
            found.append((relation.kind, relation.second, False))
        elif relation.second == thing:
            found.append((relation.kind, relation.first, relation.kind is not RelationKind.TOUCHING))
    return found


def _gap(a: Thing, b: Thing) -> float:
    across = max(a.box[0] - b.box[2], b.box[0] - a.box[2])
    down = max(a.box[1] - b.box[3], b.box[1] - a.box[3])
    return max(across, down)


def _related(check: Related, scene: Scene, things: Sequence[int]) -> Finding | None:
    """A thing near the reference that stands in another relation to it, or in none, is a borderline case."""
    target = check.reference.index
    asked = (check.kind, target, check.inverse)
    near = GAP_MARGIN * max(scene.width, scene.height)
    passed = []
    for i in things:
        if i == target:
            continue
        if asked in relations_of(scene, i):
            passed.append(i)
        elif _gap(scene.things[i], scene.things[target]) < near:
            return None
    return Finding(tuple(passed))
