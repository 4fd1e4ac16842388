"""The drawn answer: colours by verdict, numbers as the thought counts, a file whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from rexthinker_edge.runtime.draw import ANSWER, COLORS, INK, RIM, check_target, draw_result, save_whole
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.image import read_picture
from rexthinker_edge.runtime.trace import Verdict

PICTURE = read_picture(np.full((300, 600, 3), 90, np.uint8))
BOXES = [[30, 60, 180, 240], [210, 60, 360, 240], [390, 60, 570.4, 240]]


@pytest.fixture
def drawn(make_world):
    result = make_world().thinker.look(PICTURE, "ball", boxes=BOXES).refer("the red ball")
    return np.asarray(draw_result(PICTURE, result))


def test_colours_and_widths(drawn):
    """Count coloured pixels along a row that crosses every box and no label."""
    row = [tuple(pixel) for pixel in drawn[150].tolist()]
    thin = 1
    assert row.count(COLORS[Verdict.NO_MATCH]) == 2 * thin
    assert row.count(ANSWER) == 2 * 3 * thin
    assert row.count(COLORS[Verdict.REFERENCE]) == 2 * thin
    assert row[30] == row[179] == COLORS[Verdict.NO_MATCH]
    assert row[390] == row[569] == COLORS[Verdict.REFERENCE]
    assert (drawn[150, 31:179] == 90).all()


def test_labels_are_dark_on_their_colour_with_a_rim(drawn):
    label = drawn[61:71, 31:40].reshape(-1, 3).tolist()
    assert list(COLORS[Verdict.NO_MATCH]) in label
    assert list(INK) in label or min(map(sum, label)) < 150
    assert tuple(drawn[60, 30]) == RIM


def test_the_picture_is_not_altered(drawn):
    assert (PICTURE.pixels_HWC == 90).all()
    assert drawn.shape == (300, 600, 3)


def test_boxes_at_and_below_one_pixel(make_world):
    tiny = [[0, 0, 1, 1], [599.2, 299.2, 600, 300], [10.2, 10.2, 10.4, 10.4]]
    result = make_world().thinker.look(PICTURE, "ball", boxes=tiny).refer("it")
    assert draw_result(PICTURE, result).size == (600, 300)
    small = read_picture(np.zeros((1, 1, 3), np.uint8))
    result = make_world().thinker.look(small, "ball", boxes=[[0, 0, 1, 1], [0, 0, 1, 0.5]]).refer("it")
    assert draw_result(small, result).size == (1, 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_saved(tmp_path, name):
    save_whole(Image.new("RGB", (4, 3)), tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.size == (4, 3)
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_bytes(b"before")

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OptionError, match=r"a\.png: cannot be written \(No space left on device\)"):
        save_whole(Image.new("RGB", (4, 3)), target)
    assert target.read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


def test_bad_targets(tmp_path):
    (tmp_path / "dir.png").mkdir()
    for name, message in [
        ("a.svg", "a.svg: a picture ending in .svg, one of .png, .jpg, .jpeg, .webp is needed. Rename it."),
        ("a", "a: a picture ending in nothing"),
        ("none/a.png", "a.png: its directory does not exist, a place for a file is needed."),
        ("dir.png", "dir.png: a directory of that name, a place for a file is needed."),
    ]:
        with pytest.raises(OptionError) as caught:
            check_target(tmp_path / name)
        assert message in str(caught.value)
