"""Placing things on the bench: a scene from a level, a seed and an index.

Layout    draft the things -> tie some in pairs (relations, overlaps) -> place pairs and single
          things with clear gaps between them -> sort by depth.
Contract  Item `index` of seed `seed` depends on level, seed and index alone.
          Every true relation is listed; things that share none keep a clear gap, or overlap so far
          that it cannot be taken for touching. A pair has one relation kind at most: touching is
          side by side, a thing on top of another is not also touching it.
Elsewhere outlines: shapes.py; painting: render.py; what a scene is: world.py.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.pairs import Draft, Group, overlap_pair, single, tie
from rexthinker_edge.calibration.workbench.shapes import aspect
from rexthinker_edge.calibration.workbench.world import (
    CATEGORIES,
    COLORS,
    EASY_CATEGORIES,
    LETTERS,
    Level,
    Relation,
    RelationKind,
    Scene,
    Thing,
)

MODEL_AREA_PX = 78_400  # things must be legible once the picture is reduced to this many pixels
LETTER_SIDE_PX = 34.0  # smallest thing, at that scale, that carries a letter
VISIBLE = 0.6  # least part of a thing that others leave visible


@dataclass(frozen=True)
class Limits:
    """What a level allows."""

    code: int
    categories: tuple[str, ...]
    side_px: tuple[int, int]
    thing_px: float  # least side of a thing at the model's scale


def limits(level: Level) -> Limits:
    """The ranges of a level."""
    if level is Level.EASY:
        return Limits(code=1, categories=EASY_CATEGORIES, side_px=(160, 320), thing_px=24.0)
    return Limits(code=2, categories=CATEGORIES, side_px=(160, 640), thing_px=28.0)


def generator(scene_level: Level, seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of one item; `purpose` keeps placing and painting apart."""
    return np.random.default_rng(np.random.SeedSequence([seed, index, limits(scene_level).code, purpose]))


def model_scale(width: int, height: int) -> float:
    """By how much a picture shrinks before the model sees it: at most 1."""
    return min(1.0, float(np.sqrt(MODEL_AREA_PX / (width * height))))


def make_scene(level: Level, seed: int, index: int) -> Scene:
    """Lay out item `index` of seed `seed`.

    Args:
        seed, index: non-negative.

    Returns:
        A scene of 2-12 things, at most 8 of one category, in paint order.
    """
    rng = generator(level, seed, index, 0)
    width, height = _picture_size(rng, limits(level).side_px)
    kinds: list[str] = []
    for attempt in range(200):
        if attempt % 12 == 0:
            kinds = _kinds(rng, level, max(2, 12 - attempt // 12))
        drafts = _draft(rng, level, kinds, (width, height), attempt)
        groups, used = _tie_some(rng, level, drafts)
        groups += [single(i, draft) for i, draft in enumerate(drafts) if i not in used]
        corners = _place(rng, groups, drafts, width, height)
        if corners is not None:
            return _scene((level, seed, index), (width, height), drafts, groups, corners)
    raise AssertionError(f"no layout found: {level} seed {seed} index {index}")


def _picture_size(rng: np.random.Generator, side_px: tuple[int, int]) -> tuple[int, int]:
    low, high = side_px
    long = int(rng.integers(low, high + 1))
    short = max(low, int(np.ceil(long * np.exp(rng.uniform(np.log(0.5), 0.0)))))
    return (long, short) if rng.random() < 0.6 else (short, long)


def _draft(
    rng: np.random.Generator, level: Level, kinds: list[str], size: tuple[int, int], attempt: int
) -> list[Draft]:
    """Choose how the things on the bench look; every failed attempt asks for a little less room."""
    sides, large = _sizes(rng, level, len(kinds), size, attempt)
    palette = rng.permutation(len(COLORS))[: int(rng.integers(2, 7))]
    plain = level is Level.EASY
    pattern_odds = (1.0, 0.0, 0.0) if plain else ((0.8, 0.1, 0.1), (0.4, 0.3, 0.3))[int(rng.integers(2))]
    drafts = []
    for kind, side, is_large in zip(kinds, sides, large, strict=True):
        ratio_wh = aspect(kind) * (1.0 if kind in ("ball", "ring") else float(rng.uniform(0.95, 1.05)))
        drafts.append(
            Draft(
                category=kind,
                color=COLORS[int(rng.choice(palette))],
                pattern=str(rng.choice(("plain", "striped", "dotted"), p=pattern_odds)),
                size="large" if is_large else "small",
                width=max(round(float(side * np.sqrt(ratio_wh))), 8),
                height=max(round(float(side / np.sqrt(ratio_wh))), 8),
            )
        )
    return drafts


def _sizes(
    rng: np.random.Generator, level: Level, count: int, size: tuple[int, int], attempt: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sides (root of the box's area) in pixels, and which are large: at least one is and one is not."""
    width, height = size
    large = rng.random(count) < 0.42
    if large.all() or not large.any():
        pick = int(rng.integers(count))
        large[pick] = not large[pick]
    ratio = rng.uniform(1.8, 2.2)
    units = np.where(large, ratio, 1.0) * rng.uniform(0.92, 1.08, count)
    least = limits(level).thing_px / model_scale(width, height) * 1.22
    wanted = np.sqrt(rng.uniform(0.12, 0.34) * width * height / np.square(units).sum())
    biggest = min(width, height) * 0.48 / ratio
    base = max(least, min(wanted * 0.97**attempt, biggest))
    return units * base, large


def _kinds(rng: np.random.Generator, level: Level, most: int) -> list[str]:
    """A main category with 1-8 things, and others beside it, shuffled."""
    categories = rng.permutation(limits(level).categories).tolist()
    main = int(rng.choice(np.arange(1, 9), p=(0.08, 0.14, 0.18, 0.18, 0.15, 0.11, 0.09, 0.07)))
    main = min(main, most)
    others = int(rng.integers(1 if main == 1 else 0, 6))
    others = min(others, most - main, main * (len(categories) - 1))
    kinds = [categories[0]] * main
    room = dict.fromkeys(categories[1:], main)
    for _ in range(others):
        open_kinds = [kind for kind, left in room.items() if left > 0]
        kind = str(rng.choice(open_kinds))
        room[kind] -= 1
        kinds.append(kind)
    return [str(kind) for kind in rng.permutation(kinds)]


def _tie_some(rng: np.random.Generator, level: Level, drafts: list[Draft]) -> tuple[list[Group], set[int]]:
    """Tie pairs: relations in about 40 % of full scenes, overlaps in about 35 %. May change `drafts`."""
    groups: list[Group] = []
    used: set[int] = set()
    if level is Level.EASY:
        return groups, used
    relations = int(rng.integers(1, 4)) if rng.random() < 0.55 else 0
    overlaps = int(rng.integers(1, 4)) if rng.random() < 0.38 else 0
    free = [int(i) for i in rng.permutation(len(drafts))]
    for number in range(relations + overlaps):
        if len(free) < 2:
            break
        first, second = free[0], free[1]
        if drafts[first].color == drafts[second].color:  # one outline over another must be plain to see
            free = free[1:] + free[:1]
            continue
        if number < relations:
            kind = tuple(RelationKind)[int(rng.choice(3, p=(0.28, 0.44, 0.28)))]
            group = tie(rng, kind, first, second, drafts)
        else:
            group = overlap_pair(rng, first, second, drafts, VISIBLE)
        if group is not None:
            groups.append(group)
            used |= {first, second}
            free = free[2:]
    return groups, used


def _place(
    rng: np.random.Generator, groups: list[Group], drafts: list[Draft], width: int, height: int
) -> list[tuple[int, int]] | None:
    """Find a corner for each group so that no two groups come near; None when there is no room."""
    margin = 2
    clear = 3.5 / model_scale(width, height)
    kinds = [draft.category for draft in drafts]
    if max(kinds.count(kind) for kind in kinds) > 8:
        return None
    boxes: NDArray[np.float64] = np.empty((0, 4))
    corners: dict[int, tuple[int, int]] = {}
    for number in sorted(range(len(groups)), key=lambda g: -groups[g].width * groups[g].height):
        group = groups[number]
        room_x, room_y = width - margin - group.width, height - margin - group.height
        if room_x < margin or room_y < margin:
            return None
        x = rng.integers(margin, room_x + 1, 120)
        y = rng.integers(margin, room_y + 1, 120)
        sides = (boxes[:, 2] - boxes[:, 0] + boxes[:, 3] - boxes[:, 1]) / 2
        gap = np.maximum(clear, 0.06 * (sides + (group.width + group.height) / 2) / 2)
        apart_x = np.maximum(boxes[:, 0] - (x[:, None] + group.width), x[:, None] - boxes[:, 2])
        apart_y = np.maximum(boxes[:, 1] - (y[:, None] + group.height), y[:, None] - boxes[:, 3])
        fits = (np.maximum(apart_x, apart_y) >= gap).all(axis=1)
        if not fits.any():
            return None
        chosen = int(np.argmax(fits))
        corner = int(x[chosen]), int(y[chosen])
        corners[number] = corner
        box = (*corner, corner[0] + group.width, corner[1] + group.height)
        boxes = np.concatenate([boxes, np.array([box], dtype=np.float64)])
    return [corners[number] for number in range(len(groups))]


def _scene(
    item: tuple[Level, int, int],
    size: tuple[int, int],
    drafts: list[Draft],
    groups: list[Group],
    corners: list[tuple[int, int]],
) -> Scene:
    """Put everything at its place, nearest last, and number the relations by paint order."""
    level, seed, index = item
    rng = generator(level, seed, index, 2)
    boxes: dict[int, tuple[float, float, float, float]] = {}
    depth: dict[int, tuple[int, int, int, int]] = {}  # bottom, then by group, back before front
    for group, (x, y) in zip(groups, corners, strict=True):
        for position, (thing, dx, dy) in enumerate(group.members):
            draft = drafts[thing]
            boxes[thing] = (
                float(x + dx),
                float(y + dy),
                float(x + dx + draft.width),
                float(y + dy + draft.height),
            )
            depth[thing] = (y + group.height, x, y, position)
    order = sorted(boxes, key=lambda thing: depth[thing])
    covered = {group.covered for group in groups}
    things = [_thing(drafts[i], boxes[i]) for i in order]
    things = _letters(rng, level, size, things, [i not in covered for i in order])
    rank = {thing: number for number, thing in enumerate(order)}
    relations = []
    for group in groups:
        if group.kind is not None:
            first, second = rank[group.subject], rank[group.other]
            if group.kind is RelationKind.TOUCHING:
                first, second = min(first, second), max(first, second)
            relations.append(Relation(group.kind, first, second))
    relations.sort(key=lambda r: (r.first, r.second))
    return Scene(level, seed, index, *size, tuple(things), tuple(relations))


def _thing(draft: Draft, box: tuple[float, float, float, float]) -> Thing:
    return Thing(draft.category, draft.color, draft.pattern, draft.size, None, box)


def _letters(
    rng: np.random.Generator, level: Level, size: tuple[int, int], things: list[Thing], bare: list[bool]
) -> list[Thing]:
    """Give letters to some things large enough for one and `bare`; within a category each is another."""
    if level is Level.EASY or rng.random() < 0.4:
        return things
    scale = model_scale(*size)
    taken: dict[str, list[str]] = {}
    lettered = []
    for thing, is_bare in zip(things, bare, strict=True):
        x0, y0, x1, y1 = thing.box
        fits = min(x1 - x0, y1 - y0) * scale >= LETTER_SIDE_PX and thing.category != "ring"
        if fits and is_bare and rng.random() < 0.75:
            open_letters = [c for c in LETTERS if c not in taken.get(thing.category, [])]
            letter = str(rng.choice(open_letters))
            taken.setdefault(thing.category, []).append(letter)
            lettered.append(replace(thing, letter=letter))
        else:
            lettered.append(thing)
    return lettered
