"""The workbench's pictures against the truth they come with.

Oracles are silhouettes rasterised on the whole picture, and colours measured in the painted pixels.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.paint import base_color
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.calibration.workbench.shapes import BOX_DEPTH_Y, MUG_BODY, coverage, mug_front, outline
from rexthinker_edge.calibration.workbench.world import (
    CATEGORIES,
    COLORS,
    EASY_CATEGORIES,
    LETTERS,
    PATTERNS,
    Level,
    Relation,
    RelationKind,
    Scene,
    Thing,
)

COUNT = 150  # scenes of each level that are looked at
Mask = NDArray[np.bool_]


@cache
def scenes(level: Level) -> tuple[Scene, ...]:
    return tuple(make_scene(level, 1234, index) for index in range(COUNT))


def whole(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    return int(box[0]), int(box[1]), int(box[2]), int(box[3])


def mask_of(
    scene: Scene, thing: Thing, part: tuple[tuple[NDArray[np.float64], bool], ...] | None = None
) -> Mask:
    """(H, W): the pixels at least half covered by a thing, or by a part of its unit square."""
    x0, y0, x1, y1 = whole(thing.box)
    mask = np.zeros((scene.height, scene.width), dtype=bool)
    mask[y0:y1, x0:x1] = coverage(part or outline(thing.category), x1 - x0, y1 - y0) >= 0.5
    return mask


def bounds(mask: Mask) -> tuple[int, int, int, int]:
    xs, ys = np.nonzero(mask.any(axis=0))[0], np.nonzero(mask.any(axis=1))[0]
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def grown(mask: Mask) -> Mask:
    """The mask and its eight-neighbours."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    around = np.zeros_like(mask)
    for y in range(3):
        for x in range(3):
            around |= padded[y : y + height, x : x + width]
    return around


def side(thing: Thing) -> float:
    x0, y0, x1, y1 = thing.box
    return float(np.sqrt((x1 - x0) * (y1 - y0)))


def at_model_scale(scene: Scene) -> float:
    return min(1.0, float(np.sqrt(78_400 / (scene.width * scene.height))))


def one_thing(category: str, color: str, pattern: str = "plain", letter: str | None = None) -> Scene:
    """A hand-made easy picture (no JPEG) with one thing in its middle."""
    thing = Thing(category, color, pattern, "large", letter, (60.0, 50.0, 150.0, 140.0))
    return Scene(Level.EASY, 3, 1, 210, 200, (thing,), ())


def digest(scene: Scene) -> str:
    return hashlib.sha256(json.dumps(asdict(scene)).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("level", "index", "pinned"),
    [
        (Level.EASY, 0, "21a2065649fef71b"),
        (Level.EASY, 7, "e5d9b9555443c08a"),
        (Level.FULL, 0, "e265ed8dae25c1c0"),
        (Level.FULL, 7, "ef4a2776a57e564f"),
    ],
)
def test_an_item_is_the_same_everywhere_and_whatever_came_before(
    level: Level, index: int, pinned: str
) -> None:
    assert digest(make_scene(level, 2024, index)) == pinned


@pytest.mark.parametrize(
    ("level", "pinned"),
    [(Level.EASY, (111.52, 114.60, 119.25, 35.61)), (Level.FULL, (130.05, 134.15, 127.58, 33.91))],
)
def test_the_same_scene_gives_the_same_pixels(level: Level, pinned: tuple[float, ...]) -> None:
    scene = make_scene(level, 2024, 3)
    pixels = render(scene)
    assert pixels.shape == (scene.height, scene.width, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, render(scene))
    # Means and spread move by less than 0.5 when Pillow's JPEG or polygon rounding changes by one level.
    measured = (*pixels.reshape(-1, 3).mean(axis=0), pixels.std())
    assert measured == pytest.approx(pinned, abs=0.5)


def test_level_seed_and_index_all_matter() -> None:
    items = [(level, seed, index) for level in Level for seed in (0, 1) for index in (0, 1)]
    assert len({digest(make_scene(*item)) for item in items}) == len(items)


@pytest.mark.parametrize(("level", "longest"), [(Level.EASY, 320), (Level.FULL, 640)])
def test_pictures_and_counts_are_in_range(level: Level, longest: int) -> None:
    for scene in scenes(level):
        assert (scene.level, scene.seed) == (level, 1234)
        assert min(scene.width, scene.height) >= 160
        assert max(scene.width, scene.height) <= longest
        assert 0.5 <= scene.width / scene.height <= 2
        assert 2 <= len(scene.things) <= 12
        assert max(Counter(thing.category for thing in scene.things).values()) <= 8
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert all(value == int(value) for value in thing.box)
            assert 0 <= x0 < x1 <= scene.width
            assert 0 <= y0 < y1 <= scene.height


@pytest.mark.parametrize(("level", "least"), [(Level.EASY, 24), (Level.FULL, 28)])
def test_things_stay_legible_and_sizes_have_two_modes(level: Level, least: float) -> None:
    for scene in scenes(level):
        scale = at_model_scale(scene)
        small = [side(thing) for thing in scene.things if thing.size == "small"]
        large = [side(thing) for thing in scene.things if thing.size == "large"]
        assert min(large) >= 1.5 * max(small), scene.index
        for x0, y0, x1, y1 in (thing.box for thing in scene.things):
            assert min(x1 - x0, y1 - y0) * scale >= least


def test_easy_uses_its_part_of_the_world_and_full_all_of_it() -> None:
    easy = [thing for scene in scenes(Level.EASY) for thing in scene.things]
    assert {thing.category for thing in easy} == set(EASY_CATEGORIES)
    assert {(thing.pattern, thing.letter) for thing in easy} == {("plain", None)}
    assert {thing.color for thing in easy} == set(COLORS)
    assert not any(scene.relations for scene in scenes(Level.EASY))
    full = [thing for scene in scenes(Level.FULL) for thing in scene.things]
    assert {thing.category for thing in full} == set(CATEGORIES)
    assert {(thing.color, thing.pattern) for thing in full} == {(c, p) for c in COLORS for p in PATTERNS}
    related = sum(bool(scene.relations) for scene in scenes(Level.FULL)) / COUNT
    assert 0.28 <= related <= 0.52  # 0.4, three standard errors of 150 scenes either way
    assert {r.kind for scene in scenes(Level.FULL) for r in scene.relations} == set(RelationKind)


@pytest.mark.parametrize("level", list(Level))
def test_the_commonest_category_has_one_to_eight_things(level: Level) -> None:
    most = Counter(max(Counter(t.category for t in scene.things).values()) for scene in scenes(level))
    assert set(most) == set(range(1, 9))
    assert sum(count for number, count in most.items() if number >= 3) > COUNT / 2


def test_letters_are_few_large_and_distinct_within_a_category() -> None:
    lettered = 0
    for scene in scenes(Level.FULL):
        named = [(thing.category, thing.letter) for thing in scene.things if thing.letter is not None]
        assert len(set(named)) == len(named)
        lettered += len(named)
        for thing in scene.things:
            if thing.letter is not None:
                x0, y0, x1, y1 = thing.box
                assert thing.letter in LETTERS
                assert min(x1 - x0, y1 - y0) * at_model_scale(scene) >= 34
    total = sum(len(scene.things) for scene in scenes(Level.FULL))
    assert 0.15 <= lettered / total <= 0.35


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_outline_fills_its_unit_square(category: str) -> None:
    points = np.concatenate([polygon for polygon, inside in outline(category) if inside])
    assert points.min(axis=0) == pytest.approx([0, 0], abs=0.002)  # arcs are 48 chords
    assert points.max(axis=0) == pytest.approx([1, 1], abs=0.002)


@pytest.mark.parametrize("level", list(Level))
def test_boxes_are_tight_around_the_whole_thing(level: Level) -> None:
    for scene in scenes(level):
        for thing in scene.things:
            seen = bounds(mask_of(scene, thing))
            assert np.abs(np.subtract(seen, thing.box)).max() <= 1, (scene.index, thing)


@pytest.mark.parametrize("category", CATEGORIES)
def test_painted_pixels_fill_the_box(category: str) -> None:
    scene = one_thing(category, "red")
    pixels = render(scene).astype(int)
    seen = bounds(pixels[..., 0] - pixels[..., 1] > 60)  # the bench and its shadows are nearly grey
    assert np.abs(np.subtract(seen, scene.things[0].box)).max() <= 1


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_colour_is_nearest_to_its_own_name(category: str, color: str, pattern: str) -> None:
    scene = one_thing(category, color, pattern)
    inner = mask_of(scene, scene.things[0])
    found = render(scene)[inner].astype(float)
    lights = np.linspace(0.4, 1.1, 15)  # light changes brightness, not hue
    lit = np.array([base_color(name) for name in COLORS], dtype=float)[:, None] * lights[:, None]
    lit[COLORS.index("black")] *= 2  # a sheen keeps black things from being holes
    distances = np.abs(found[:, None, None] - lit).sum(axis=3).min(axis=2)
    nearest = Counter(distances.argmin(axis=1).tolist())
    assert COLORS[nearest.most_common(1)[0][0]] == color


@pytest.mark.parametrize("category", [c for c in CATEGORIES if c != "ring"])
@pytest.mark.parametrize("color", COLORS)
def test_a_letter_is_tall_and_in_contrast(category: str, color: str) -> None:
    bare, lettered = one_thing(category, color), one_thing(category, color, letter="E")
    changed = np.abs(render(lettered).astype(int) - render(bare)).max(axis=2) > 90
    x0, y0, x1, y1 = bounds(changed)
    assert y1 - y0 >= 0.4 * 90
    assert x1 - x0 >= 0.2 * 90
    thing = mask_of(lettered, lettered.things[0])
    assert not (changed & ~grown(thing)).any()


def test_at_least_six_tenths_of_every_thing_shows() -> None:
    for scene in scenes(Level.FULL):
        masks = [mask_of(scene, thing) for thing in scene.things]
        totals = [int(mask.sum()) for mask in masks]
        holders = {r.first: r.second for r in scene.relations if r.kind is RelationKind.INSIDE}
        visible = [mask.copy() for mask in masks]
        for number in range(len(masks)):
            for behind in range(number):
                if holders.get(number) != behind or scene.things[behind].category == "ring":
                    visible[behind] &= ~masks[number]
            holder = holders.get(number)
            if holder is not None and scene.things[holder].category == "mug":
                visible[number] &= ~mask_of(scene, scene.things[holder], ((mug_front(), True),))
        for number, thing in enumerate(scene.things):
            assert visible[number].sum() >= 0.6 * totals[number], (scene.index, number, thing)


def check_relation(scene: Scene, kind: RelationKind, subject: Thing, other: Thing) -> None:
    """The definition of each relation, on pixels."""
    a, b = mask_of(scene, subject), mask_of(scene, other)
    ax0, ay0, ax1, ay1 = subject.box
    bx0, by0, bx1, by1 = other.box
    if kind is RelationKind.TOUCHING:
        assert (grown(a) & b).any()
        assert (a & b).sum(axis=1).max() <= 1
    elif kind is RelationKind.INSIDE and other.category == "ring":
        assert not (a & ~hole_of(scene, other)).any()
    elif kind is RelationKind.INSIDE:
        assert other.category == "mug"
        assert bx0 <= ax0 < ax1 <= bx0 + MUG_BODY * (bx1 - bx0) + 1
        assert ay0 < by0 < ay1 < (by0 + by1) / 2
        assert subject.letter is None  # its lower half is out of sight
    else:
        assert other.category == "box"
        assert by0 <= ay1 <= by0 + BOX_DEPTH_Y * (by1 - by0)
        assert bx0 <= (ax0 + ax1) / 2 <= bx1


def hole_of(scene: Scene, ring: Thing) -> Mask:
    polygon, inside = outline("ring")[1]
    assert not inside
    return mask_of(scene, ring, ((polygon, True),))


def test_a_later_thing_covers_an_earlier_one_and_a_mug_hides_what_stands_in_it() -> None:
    mug = Thing("mug", "blue", "plain", "large", None, (40.0, 60.0, 150.0, 160.0))
    ball = Thing("ball", "red", "plain", "small", None, (60.0, 50.0, 100.0, 90.0))
    beside = Scene(Level.EASY, 3, 1, 210, 200, (mug, ball), ())
    within = replace(beside, relations=(Relation(RelationKind.INSIDE, 1, 0),))
    wall = mask_of(within, mug, ((mug_front(), True),))
    for scene, seen_over_wall in ((beside, True), (within, False)):
        pixels = render(scene).astype(int)
        red = pixels[..., 0] - pixels[..., 1] > 60
        assert red[54:70, 78:82].all()  # above the mug
        assert (red & wall).any() == seen_over_wall


def test_relations_are_true() -> None:
    for scene in scenes(Level.FULL):
        for relation in scene.relations:
            assert relation.first != relation.second
            if relation.kind is RelationKind.TOUCHING:
                assert relation.first < relation.second
            else:
                assert relation.first == relation.second + 1  # painted right after what carries it
            check_relation(scene, relation.kind, scene.things[relation.first], scene.things[relation.second])


@pytest.mark.parametrize("level", list(Level))
def test_things_without_a_relation_are_apart_or_overlap_from_the_side(level: Level) -> None:
    for scene in scenes(level):
        related = [frozenset((r.first, r.second)) for r in scene.relations]
        assert len(set(related)) == len(related)
        for i, j in combinations(range(len(scene.things)), 2):
            if frozenset((i, j)) in related:
                continue
            a, b = scene.things[i], scene.things[j]
            gap_x = max(a.box[0], b.box[0]) - min(a.box[2], b.box[2])
            gap_y = max(a.box[1], b.box[1]) - min(a.box[3], b.box[3])
            if max(gap_x, gap_y) >= 0.04 * (side(a) + side(b)) / 2:
                assert max(gap_x, gap_y) * at_model_scale(scene) >= 2
                continue
            assert level is Level.FULL
            assert "ring" not in (a.category, b.category)
            assert -gap_x >= 0.15 * min(a.box[2] - a.box[0], b.box[2] - b.box[0])
            assert (mask_of(scene, a) & mask_of(scene, b)).any()
            assert a.color != b.color
            assert a.letter is None  # the one behind
