"""Tables of a picture size: against rolling and cutting a real array, and pinned."""

import dataclasses

import numpy as np
import pytest

from rexthinker_edge.runtime.detector_tables import (
    TableRules,
    cell_centres,
    make_tables,
    stage_tables,
    window_rows,
)
from rexthinker_edge.runtime.kept import Kept

RULES = TableRules(patch=4, window=3, stages=3, maps=(1, 2), levels=3, width=8, temperature=20.0)


@pytest.mark.parametrize("side", [(6, 9), (5, 7), (1, 4), (10, 2)])
@pytest.mark.parametrize("shift", [0, 1])
def test_windows_equal_padding_rolling_and_cutting(side, shift):
    height, width, window = *side, 3
    take, give, mask = window_rows(side, window, shift)
    numbers = np.full((-(-height // 3) * 3, -(-width // 3) * 3), height * width)
    numbers[:height, :width] = np.arange(height * width).reshape(side)
    rolled = np.roll(numbers, (-shift, -shift), (0, 1))
    cut = [
        rolled[top : top + 3, left : left + 3].reshape(-1)
        for top in range(0, len(rolled), 3)
        for left in range(0, rolled.shape[1], 3)
    ]
    assert np.array_equal(take, np.concatenate(cut))
    assert np.array_equal(take[give], np.arange(height * width))
    assert mask.shape == (len(cut), 1, 9, 9)
    assert (mask[0] == 0).all() or len(cut) < 4 or shift
    regions = np.zeros_like(numbers)
    for n, down in enumerate((slice(0, -3), slice(-3, -shift or None), slice(-shift, None))):
        for m, right in enumerate((slice(0, -3), slice(-3, -shift or None), slice(-shift, None))):
            if shift:
                regions[down, right] = 3 * n + m
    parts = np.array([
        regions[top : top + 3, left : left + 3].reshape(-1)
        for top in range(0, len(rolled), 3) for left in range(0, rolled.shape[1], 3)
    ])  # fmt: skip
    if shift:
        assert np.array_equal(mask[:, 0] != 0, parts[:, :, None] != parts[:, None])


def test_merge_names_four_neighbours_and_the_edge():
    merge = stage_tables((3, 3), 3)["merge"].reshape(4, 4)
    assert merge.tolist() == [[0, 3, 1, 4], [2, 5, 9, 9], [6, 9, 7, 9], [8, 9, 9, 9]]


def test_pinned_level_tables():
    tables = make_tables(16, 24, RULES)
    assert tables["level_sides"].tolist() == [[2, 3], [1, 2], [1, 1]]
    assert tables["level_cells"].tolist() == [6, 2, 1]
    assert tables["cell_level"].tolist() == [0] * 6 + [1] * 2 + [2]
    np.testing.assert_allclose(cell_centres((1, 2)), [[0.25, 0.5], [0.75, 0.5]])
    np.testing.assert_allclose(tables["cell_base"][:, :, 0, 0][6:], [[-0.5, 0], [0.5, 0], [0, 0]])
    np.testing.assert_allclose(tables["offset_scale"][:, :, 0], [[2 / 3, 1, 2], [1, 2, 2]])
    np.testing.assert_allclose(tables["cell_anchors"][8], np.log([1, 1, 0.25, 0.25]), atol=1e-6)
    assert tables["cell_usable"].all()
    assert tables["cell_positions"].shape == (9, 8)


def test_cells_at_the_very_edge_are_no_candidates():
    tables = make_tables(8, 2400, RULES)  # 300 cells of level 0 in a row: the first lies at 1/600
    assert tables["cell_usable"][0, 0] == 0
    assert np.isinf(tables["cell_anchors"][0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 10**9}, "stages is 1000000000, 1 to 8"),
        ({"window": 0}, "window is 0"),
        ({"maps": (1, 3)}, "maps is"),
        ({"maps": ()}, "maps is"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_numbers_without_bound_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RULES, **change)


def test_kept_forgets_what_was_not_asked_for_longest():
    kept, made = Kept[str, str](2), []

    def ask(key):
        return kept.get(key, lambda: made.append(key) or key.upper())

    assert [ask(key) for key in "abacab"] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]
    assert len(kept) == 2
