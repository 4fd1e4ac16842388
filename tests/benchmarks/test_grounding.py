"""Grounding scores against oracles that count pixels and try every pairing."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rexthinker_edge.benchmarks.grounding import most_pairs, point_f1, score_grounding, union_iou
from rexthinker_edge.runtime.grounded import read_grounded

SIDE = 12
corners = st.tuples(*[st.integers(0, SIDE)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def painted(boxes):
    canvas = np.zeros((SIDE, SIDE), bool)
    for x0, y0, x1, y1 in boxes:
        canvas[y0:y1, x0:x1] = True
    return canvas


@given(st.lists(corners, max_size=5), st.lists(corners, max_size=5))
@settings(max_examples=300, deadline=None)
def test_union_iou_counts_pixels(first, second):
    a, b = painted(first), painted(second)
    expected = (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0
    assert union_iou(first, second) == pytest.approx(expected, abs=1e-12)


def best_by_trying(hits):
    rows, columns = hits.shape
    if rows > columns:
        return best_by_trying(hits.T)
    tried = permutations(range(columns), rows)
    return max((sum(hits[r, c] for r, c in enumerate(choice)) for choice in tried), default=0)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**25 - 1))
@settings(max_examples=300, deadline=None)
def test_most_pairs_tries_everything(rows, columns, bits):
    flat = [bits >> k & 1 for k in range(rows * columns)]
    hits = np.array(flat, bool).reshape(rows, columns)
    assert most_pairs(hits) == best_by_trying(hits)


def test_most_pairs_of_many():
    chain = np.eye(1500, dtype=bool) | np.eye(1500, k=-1, dtype=bool)
    assert most_pairs(chain) == 1500  # no recursion


def test_points():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [5, 5, 8, 8]]
    assert point_f1([[6, 6], [7, 7], [25, 5]], boxes) == 1.0  # the small one lies in the large one
    assert point_f1([[25, 5], [26, 5]], boxes) == pytest.approx(2 * 1 / 5)  # two for one count once
    assert point_f1([], boxes) == 0.0
    assert point_f1([], []) == 1.0
    mask = np.zeros((4, 6), bool)
    mask[1, 5] = True
    assert point_f1([[5.5, 1.2]], [mask]) == 1.0
    assert point_f1([[1.2, 5.5], [9, 9]], [mask]) == 0.0  # x first; outside is no hit


def test_a_thought():
    thought = read_grounded(
        "<obj> the Red Ball | [0, 0, 100, 100] </obj> and <obj> mugs | [50, 50]; [500, 500] </obj>, "
        "<obj> cat | [1, 1, 2, 2] </obj>, <obj> broken </obj>"
    )
    truth = {
        "the red ball": [(0, 0, 100, 50), (0, 50, 100, 100)],
        "mugs": [(0, 0, 99, 99), (200, 200, 300, 300)],
        "box": [(1, 2, 3, 4)],
    }
    scored = score_grounding(thought, truth)
    assert scored.phrases == {"the red ball": 1.0, "mugs": 0.5, "box": 0.0}
    assert (scored.unknown, scored.malformed, scored.mean) == (1, 1, 0.5)
    assert score_grounding(read_grounded("nothing"), {}).mean == 1.0
