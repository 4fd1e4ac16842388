"""M-RoPE positions and attention windows against transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from rexthinker_edge.runtime.positions import mrope_positions, text_positions
from rexthinker_edge.runtime.vision import VisionGeometry, attention_windows, patch_positions

PAD = 500
GEOMETRY = VisionGeometry(patch=14, temporal_patch=2, merge=2, window=112, hidden=8, max_patches=400)


def theirs(ids, grids):
    """Transformers' own, without building a model: the method reads the configuration only."""
    model = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2_5_VLConfig()
    batch = torch.tensor(ids)[None]
    positions, delta = model.get_rope_index(
        batch, (batch == PAD).int(), torch.tensor(grids) if grids else None
    )
    return positions[:, 0].numpy(), int(delta) + len(ids)


grid = st.tuples(st.just(1), st.integers(1, 8).map(lambda n: 2 * n), st.integers(1, 8).map(lambda n: 2 * n))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), grid), max_size=3), st.integers(0, 9))
def test_equal_to_transformers(pictures, tail):
    """Text, picture, text, picture …; between two pictures always some text, as vision tokens are."""
    ids = []
    for text, (_, height, width) in pictures:
        ids += [1] * text + [PAD] * (height * width // 4)
    ids += [2] * tail
    grids = [g for _, g in pictures]
    if not ids:
        return
    positions, following = mrope_positions(ids, PAD, grids)
    expected, expected_following = theirs(ids, grids)
    np.testing.assert_array_equal(positions, expected)
    assert positions.dtype == np.int64
    if tail:  # transformers' delta counts from the last position, which inside a picture is not the next one
        assert following == expected_following


def test_pinned():
    positions, following = mrope_positions([7, PAD, PAD, PAD, PAD, PAD, PAD, 8], PAD, [(1, 4, 6)])
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert following == 5
    assert text_positions(5, 2).tolist() == [[5, 6]] * 3


def test_suffix_goes_on_where_the_prefix_ended():
    ids = [1, 2, *[PAD] * 6, 3, 4, 5, 6]
    whole, _ = mrope_positions(ids, PAD, [(1, 6, 4)])
    prefix, following = mrope_positions(ids[:9], PAD, [(1, 6, 4)])
    np.testing.assert_array_equal(whole, np.concatenate([prefix, text_positions(following, 3)], axis=1))


def test_wrong_counts_are_our_mistakes():
    with pytest.raises(AssertionError, match="cut short"):
        mrope_positions([PAD, PAD], PAD, [(1, 4, 4)])
    with pytest.raises(AssertionError, match="fewer pictures"):
        mrope_positions([1], PAD, [(1, 2, 2)])
    with pytest.raises(AssertionError, match="more pictures"):
        mrope_positions([PAD], PAD, [])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 14), st.integers(1, 14), st.sampled_from([56, 84, 112]))
def test_windows_equal_transformers(rows, columns, window):
    height, width = 2 * rows, 2 * columns
    geometry = VisionGeometry(14, 2, 2, window, 8, 100)
    thw = torch.tensor([[1, height, width]])
    index, bounds = get_vision_window_index(thw, spatial_merge_size=2, window_size=window, patch_size=14)
    order = (index[:, None] * 4 + torch.arange(4)).reshape(-1).numpy()
    expected = np.split(order, bounds[1:-1].tolist())
    ours = attention_windows(height, width, geometry)
    assert len(ours.rows) == len(expected)
    for members, length, theirs_members in zip(ours.rows, ours.lengths, expected, strict=True):
        np.testing.assert_array_equal(members[:length], theirs_members)
    # each patch finds itself back
    np.testing.assert_array_equal(ours.rows.reshape(-1)[ours.slots], np.arange(height * width))
    np.testing.assert_array_equal(
        patch_positions(height, width, 2)[1:], get_vision_position_ids(thw, 2).numpy().T
    )


def test_windows_pinned():
    windows = attention_windows(4, 10, VisionGeometry(14, 2, 2, 56, 8, 100))
    # 2 x 5 merged patches in windows of 2 x 2: two whole ones and a ragged column
    assert windows.lengths.tolist() == [16, 16, 8]
    assert windows.rows[2].tolist() == [16, 17, 18, 19, 36, 37, 38, 39] + [0] * 8
    assert patch_positions(2, 4, 2).tolist() == [[0] * 8, [0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]]
