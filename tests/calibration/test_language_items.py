"""Items: the same whatever the count, shuffled, several on one picture; and the dense labels."""

import re

import numpy as np
import pytest

from rexthinker_edge.calibration.workbench.items import (
    EVERYTHING,
    describe_things,
    hint_boxes,
    item_record,
    make_item,
    make_items_for_scene,
    shuffled_candidates,
)
from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.world import Level, Scene, Thing


@pytest.mark.parametrize(
    ("level", "index", "name", "expression"),
    [
        ("easy", 1, "easy-1000000-00000001", "the fifth small box from the top"),
        ("easy", 2, "easy-1000000-00000002", "the first star from the right"),
        ("full", 1, "full-1000000-00000001", "the box above the plain orange mug"),
    ],
)
def test_items_are_pinned(level: str, index: int, name: str, expression: str) -> None:
    """A change here changes every published figure: the evaluation items are others."""
    item = make_item(level, 1_000_000, index)
    assert (item.name, item.question.expression) == (name, expression)


def test_an_item_depends_on_level_seed_and_index_alone() -> None:
    forward = [make_item(Level.EASY, 8, index) for index in range(12)]
    backward = [make_item("easy", 8, index) for index in reversed(range(12))]
    assert forward == backward[::-1]
    assert len({item.name for item in forward}) == 12
    assert forward != [make_item("easy", 9, index) for index in range(12)]


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="'hard' is not a valid Level"):
        make_item("hard", 0, 0)


def test_candidates_are_all_of_the_category_shuffled() -> None:
    items = [make_item(Level.FULL, 21, index) for index in range(80)]
    for item in items:
        mine = [i for i, thing in enumerate(item.scene.things) if thing.category == item.category]
        assert sorted(item.candidates) == mine
    many = [item for item in items if len(item.candidates) > 2]
    assert 0.3 < np.mean([item.candidates[0] < item.candidates[-1] for item in many]) < 0.7


def test_items_of_one_scene_share_picture_category_and_hint() -> None:
    scene = make_scene(Level.FULL, 5, 3)
    items = make_items_for_scene(scene, np.random.default_rng(0), 4)
    assert len(items) == 4
    assert {(item.scene, item.category, item.candidates) for item in items} == {
        (scene, items[0].category, items[0].candidates)
    }
    assert len({item.question.expression for item in items}) == 4
    assert items == make_items_for_scene(scene, np.random.default_rng(0), 4)


def _scene(level: Level, *things: Thing) -> Scene:
    return Scene(level, 0, 0, 200, 100, things, ())


BALL = Thing("ball", "red", "striped", "small", "K", (10, 20, 40, 50))
BIG = Thing("ball", "blue", "plain", "large", None, (100, 20, 160, 80))
STAR = Thing("star", "white", "plain", "small", None, (60, 20, 90, 50))


@pytest.mark.parametrize(
    ("candidates", "attributes", "category", "text"),
    [
        ((1, 0), ("color",), None, "Ball 1: blue\nBall 2: red"),
        (
            (0, 1),
            ("size", "color", "pattern", "letter"),
            None,
            "Ball 1: small red striped, letter K\nBall 2: large blue plain",
        ),
        ((0,), ("size", "color"), None, "Ball 1: red"),  # one size alone means nothing
        ((2, 0), ("color",), EVERYTHING, "Thing 1: white star\nThing 2: red ball"),
        ((2, 0), (), EVERYTHING, "Thing 1: star\nThing 2: ball"),
        ((0, 1), ("letter",), None, "Ball 1: letter K\nBall 2: ball"),
    ],
)
def test_descriptions(
    candidates: tuple[int, ...], attributes: tuple[str, ...], category: str | None, text: str
) -> None:
    assert describe_things(_scene(Level.FULL, BALL, BIG, STAR), candidates, attributes, category) == text


def test_easy_descriptions_leave_plain_out() -> None:
    scene = _scene(Level.EASY, BIG, STAR)
    assert describe_things(scene, (0,), ("color", "pattern")) == "Ball 1: blue"


def test_all_things_can_be_candidates() -> None:
    scene = _scene(Level.FULL, BALL, BIG, STAR)
    assert sorted(shuffled_candidates(scene, EVERYTHING, np.random.default_rng(1))) == [0, 1, 2]
    assert sorted(shuffled_candidates(scene, "ball", np.random.default_rng(1))) == [0, 1]


def test_hint_boxes_are_truncated_resized_pixels() -> None:
    """int(x / 200 * 84), int(y / 100 * 56), by hand."""
    scene = _scene(Level.FULL, BALL, BIG, STAR)
    assert hint_boxes(scene, (1, 0), (84, 56)).tolist() == [[42, 11, 67, 44], [4, 11, 16, 28]]


def test_a_record_says_what_the_item_says() -> None:
    item = make_item(Level.FULL, 1_000_000, 1)
    record = item_record(item, 7)
    assert (record.id, record.image_name, record.category) == (7, "full-1000000-00000001.png", item.category)
    assert record.candidate_boxes == tuple(item.scene.things[i].box for i in item.candidates)
    assert set(record.answer_boxes) == {item.scene.things[i].box for i in item.question.answers}
    assert record.trace is not None
    assert record.trace.startswith("OK, ")
    assert re.search(r"→ (✅|❌)$", record.trace)
