"""Two things that belong together: touching, inside, on top of, or one half hiding the other.

Layout    A group is one or two things with offsets from the group's corner, in paint order.
Contract  What a relation promises is measured on the silhouettes: touching outlines meet
          within a pixel, a thing inside a ring lies wholly in its hole, a thing inside a mug
          shows at least `IN_MUG_VISIBLE` above the rim.
Elsewhere outlines: shapes.py; placing groups: layout.py.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.shapes import (
    BOX_DEPTH_X,
    BOX_DEPTH_Y,
    MUG_BODY,
    MUG_RIM,
    RING_HOLE,
    coverage,
    mug_front,
    silhouette,
)
from rexthinker_edge.calibration.workbench.world import RelationKind

IN_MUG_VISIBLE = 0.63
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Draft:
    """A thing before it has a place; sizes in pixels of the picture."""

    category: str
    color: str
    pattern: str
    size: str
    width: int
    height: int

    def mask(self) -> Mask:
        """(height, width): the pixels the thing covers."""
        return silhouette(self.category, self.width, self.height)


@dataclass(frozen=True)
class Group:
    """Things that are placed together; `members` are (thing, dx, dy) in paint order.

    `covered` is the thing of which another hides a part, if any.
    """

    members: tuple[tuple[int, int, int], ...]
    width: int
    height: int
    kind: RelationKind | None = None
    subject: int = -1
    other: int = -1
    covered: int = -1


def single(index: int, draft: Draft) -> Group:
    """A thing on its own."""
    return Group(((index, 0, 0),), draft.width, draft.height)


def tie(
    rng: np.random.Generator, kind: RelationKind, first: int, second: int, drafts: list[Draft]
) -> Group | None:
    """Put thing `first` in relation `kind` to thing `second`; `drafts[second]` may become what that needs."""
    if kind is RelationKind.TOUCHING:
        return _touching(rng, first, second, drafts)
    if kind is RelationKind.INSIDE:
        return _inside(rng, first, second, drafts)
    return _on_top(rng, first, second, drafts)


def overlap_pair(
    rng: np.random.Generator, first: int, second: int, drafts: list[Draft], visible: float
) -> Group | None:
    """Thing `second` half hides thing `first` from the side; None when that would hide too much.

    Rings are left out: what shows through a ring's hole could be taken for inside.
    """
    back, front = drafts[first], drafts[second]
    if "ring" in (back.category, front.category):
        return None
    for _ in range(6):
        shared = round(float(rng.uniform(0.22, 0.42)) * min(back.width, front.width))
        right = rng.random() < 0.5
        dx = back.width - shared if right else shared - front.width
        dy = back.height - front.height + round(float(rng.uniform(0.02, 0.2)) * front.height)
        hidden = _common(back.mask(), front.mask(), dx, dy)
        if 0.05 <= hidden <= 1 - visible - 0.03:
            return replace(_pair((first, second), (back, front), (dx, dy)), covered=first)
    return None


def _pair(
    things: tuple[int, int],
    drafts: tuple[Draft, Draft],
    offset: tuple[int, int],
    kind: RelationKind | None = None,
    roles: tuple[int, int] = (-1, -1),
) -> Group:
    """A group of two, the second painted over the first at `offset` from it."""
    dx, dy = offset
    left, top = min(0, dx), min(0, dy)
    width = max(drafts[0].width, dx + drafts[1].width) - left
    height = max(drafts[0].height, dy + drafts[1].height) - top
    members = ((things[0], -left, -top), (things[1], dx - left, dy - top))
    return Group(members, width, height, kind, *roles)


def _common(back: Mask, front: Mask, dx: int, dy: int) -> float:
    """The part of `back` under `front`, whose corner lies (dx, dy) from back's, in [0, 1]."""
    x0, x1 = max(0, dx), min(back.shape[1], dx + front.shape[1])
    y0, y1 = max(0, dy), min(back.shape[0], dy + front.shape[0])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    both = back[y0:y1, x0:x1] & front[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    return float(both.sum() / back.sum())


def _touching(rng: np.random.Generator, first: int, second: int, drafts: list[Draft]) -> Group | None:
    """Slide the second thing from the right until the outlines meet."""
    left, right = drafts[first], drafts[second]
    dy = left.height - right.height + round(float(rng.uniform(-0.12, 0.12)) * min(left.height, right.height))
    y0, y1 = max(0, dy), min(left.height, dy + right.height)
    a = left.mask()[y0:y1]
    b = right.mask()[y0 - dy : y1 - dy]
    both = a.any(axis=1) & b.any(axis=1)
    if not both.any():
        return None
    reach = left.width - np.argmax(a[:, ::-1], axis=1)
    start = np.argmax(b, axis=1)
    dx = int((reach - start)[both].max()) - 1
    if dy < 0:
        return _pair((second, first), (right, left), (-dx, -dy), RelationKind.TOUCHING, (first, second))
    return _pair((first, second), (left, right), (dx, dy), RelationKind.TOUCHING, (first, second))


def _grown(draft: Draft, width: float, height: float) -> Draft:
    """The draft at no less than this size, its shape kept."""
    factor = max(1.0, width / draft.width, height / draft.height)
    return replace(
        draft, width=int(np.ceil(draft.width * factor)), height=int(np.ceil(draft.height * factor))
    )


def _remade(draft: Draft, category: str, width_over_height: float, side: float) -> Draft:
    root = float(np.sqrt(width_over_height))
    return replace(draft, category=category, width=round(side * root), height=round(side / root))


def _inside(rng: np.random.Generator, first: int, second: int, drafts: list[Draft]) -> Group | None:
    """A small thing in a large ring's hole, or sticking out of a large mug."""
    if {drafts[first].size, drafts[second].size} != {"small", "large"}:
        return None
    if drafts[first].size == "large":
        first, second = second, first
    inner = drafts[first]
    outer = drafts[second]
    side = float(np.sqrt(outer.width * outer.height))
    if rng.random() < 0.5:
        mask = inner.mask()
        ys, xs = np.nonzero(mask)
        radius = float(np.hypot(xs + 0.5 - inner.width / 2, ys + 0.5 - inner.height / 2).max()) + 1.5
        side = max(side, 2.16 * radius / RING_HOLE)
        ring = drafts[second] = _remade(outer, "ring", 1.0, side)
        dx, dy = (ring.width - inner.width) // 2, (ring.height - inner.height) // 2
        return _pair((second, first), (ring, inner), (dx, dy), RelationKind.INSIDE, (first, second))
    mug = _grown(_remade(outer, "mug", 1.08, side), inner.width / (0.84 * MUG_BODY), 0.0)
    drafts[second] = mug
    sunk = float(rng.uniform(0.22, 0.3)) * inner.height
    dx = round(mug.width * MUG_BODY / 2 - inner.width / 2)
    wall = coverage(((mug_front(), True),), mug.width, mug.height) >= 0.5
    dy = round(mug.height * MUG_RIM * 1.9 + sunk - inner.height)
    while _common(inner.mask(), wall, -dx, -dy) > 1 - IN_MUG_VISIBLE:
        dy -= 1
    group = _pair((second, first), (mug, inner), (dx, dy), RelationKind.INSIDE, (first, second))
    return replace(group, covered=first)


def _on_top(rng: np.random.Generator, first: int, second: int, drafts: list[Draft]) -> Group | None:
    """A thing standing on a box's lid; the box is not much narrower than what it carries."""
    top = drafts[first]
    under = drafts[second]
    side = float(np.sqrt(under.width * under.height))
    if top.size == "large" and under.size == "small":
        return None
    box = _grown(_remade(under, "box", 1.1, side), top.width * 0.95, 0.0)
    drafts[second] = box
    free = box.width * (1 - BOX_DEPTH_X) - top.width
    slack = float(rng.uniform(-0.4, 0.4)) * max(free, 0.0)
    dx = round(box.width / 2 - top.width / 2 + slack)
    dy = round(box.height * BOX_DEPTH_Y * 0.6) - top.height
    return _pair((second, first), (box, top), (dx, dy), RelationKind.ON_TOP_OF, (first, second))
