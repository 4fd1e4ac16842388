"""Boxes between two pictures, their overlap, and what a caller's boxes may be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rexthinker_edge.runtime.boxes import MAX_BOXES, check_boxes, iou, to_resized_px
from rexthinker_edge.runtime.errors import BoxError

SIZE = (640, 480)
side = st.integers(1, 4000)


def by_definition(box: list[float], original: tuple[int, int], resized: tuple[int, int]) -> list[int]:
    """The training script's own arithmetic, one number at a time."""
    made = []
    for value, before, after in zip(box, original * 2, resized * 2, strict=True):
        made.append(max(0, min(int(value / before * after), after - 1)))
    return made


@settings(max_examples=50)
@given(side, side, side, side, st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=5))
def test_hint_is_the_training_formula(width, height, new_width, new_height, fractions):
    boxes = [
        [min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height]
        for a, b, c, d in fractions
    ]
    hints = to_resized_px(np.array(boxes).reshape(-1, 4), (width, height), (new_width, new_height))
    assert hints.dtype == np.int64
    assert hints.tolist() == [by_definition(box, (width, height), (new_width, new_height)) for box in boxes]


def test_hint_pinned():
    hints = to_resized_px(np.array([[10.5, 20.0, 640.0, 479.9]]), SIZE, (644, 476))
    assert hints.tolist() == [[10, 19, 643, 475]]  # 10.57, 19.83, 644 clamped, 475.9


def test_iou_by_counting_cells():
    rng = np.random.default_rng(3)
    corners = np.sort(rng.integers(0, 12, (6, 2, 2)), axis=1)
    boxes = corners.reshape(6, 4)
    cells = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in boxes]
    counted = [[len(a & b) / max(1, len(a | b)) for b in cells] for a in cells]
    assert iou(boxes, boxes) == pytest.approx(np.array(counted), abs=1e-15)
    assert iou([[0, 0, 2, 2]], [[1, 0, 3, 2]]).tolist() == [[pytest.approx(1 / 3)]]
    assert iou(np.zeros((0, 4)), boxes).shape == (0, 6)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, float("nan"), 5]], "candidate box 0: [0, 0, nan, 5] is not finite"),
        ([[0, 0, 5, 5], [9, 0, 3, 5]], "candidate box 1: [9, 0, 3, 5] has its corners swapped"),
        ([[600, 0, 660, 20]], "candidate box 0: [600, 0, 660, 20] lies outside the picture of 640 x 480 px"),
        ([[-5, 0, 60, 20]], "lies outside the picture"),
        ([[7, 7, 7, 20]], "candidate box 0: [7, 7, 7, 20] has no area"),
        ([[640, 3, 640.5, 9]], "has no area"),  # within the slack, but nothing of it in the picture
        ([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]], "candidate box 2: [1, 2, 3, 4] is the same as box 0"),
        (
            [[0, i, 5, i + 1] for i in range(500 // 2)] * 2,
            "candidate boxes: 500 of them, at most 200 are allowed",
        ),
        ([[1, 2, 3]], "candidate boxes: an array of shape (1, 3), (N, 4) is needed"),
        ([[1, 2, 3, 4], [1]], "candidate boxes: not rows of numbers"),
        ([["a", 2, 3, 4]], "candidate boxes: not rows of numbers"),
        ({"boxes": 3}, "candidate boxes: not rows of numbers"),
    ],
)
def test_refused(boxes, message):
    with pytest.raises(BoxError) as caught:
        check_boxes(boxes, SIZE)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


def test_accepted():
    assert check_boxes([], SIZE).shape == (0, 4)
    # a rounding beyond the edge is clamped, order is kept
    assert check_boxes([[9, 9, 640.6, 20], [-0.5, 0, 3, 4]], SIZE).tolist() == [[9, 9, 640, 20], [0, 0, 3, 4]]
    assert len(check_boxes([[0, i, 5, i + 1] for i in range(MAX_BOXES)], SIZE)) == MAX_BOXES


def test_detector_boxes_that_are_wrong_are_named():
    with pytest.raises(BoxError, match=r"candidate box 0: .* is not finite"):
        to_resized_px(np.array([[0, 0, np.inf, 1]]), SIZE, SIZE)
    with pytest.raises(BoxError, match=r"candidate box 0: .* swapped"):
        to_resized_px(np.array([[5, 0, 1, 1]]), SIZE, SIZE)
