"""Our pixels against transformers' slow processor, bit for bit."""

import numpy as np
import pytest

from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels, smart_resize

LIMITS = PixelLimits(min_pixels=16 * 28 * 28, max_pixels=1280 * 28 * 28)


@pytest.fixture(scope="module")
def reference():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (300, 201), (57, 4001), (1300, 1700), (5, 999)])
@pytest.mark.parametrize("limits", [LIMITS, PixelLimits(64 * 784, 400 * 784)])
def test_equal_to_transformers(reference, size, limits):
    picture = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = reference.Qwen2VLImageProcessorPil(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
    expected = processor(images=[picture], input_data_format="channels_last")
    ours = qwen_pixels(picture, limits)
    assert ours.patches.dtype == np.float32
    np.testing.assert_array_equal(ours.patches, expected["pixel_values"])
    assert [list(ours.grid_thw)] == np.asarray(expected["image_grid_thw"]).tolist()
    assert ours.resized == (ours.grid_thw[2] * 14, ours.grid_thw[1] * 14)


def test_smart_resize_equal_to_transformers_everywhere(reference):
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(0, 8.5, (3000, 2))).astype(int) + 1
    for height, width in sides.tolist():
        if max(height, width) / min(height, width) > 200:
            continue
        limits = (4 * 784, 1280 * 784)
        assert smart_resize(height, width, *limits) == reference.smart_resize(height, width, 28, *limits)


def test_halves_round_to_even():
    assert smart_resize(42, 70, 1, 10**9) == (56, 56)  # 1.5 -> 2, 2.5 -> 2


def test_patch_order_pinned():
    """Grid 2 x 4: the four patches of one merged token are neighbours in the picture."""
    picture = np.zeros((28, 56, 3), np.uint8)
    for row in range(2):
        for column in range(4):
            picture[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = 10 * (row * 4 + column)
    ours = qwen_pixels(picture, PixelLimits(1, 10**6))
    assert ours.grid_thw == (1, 2, 4)
    assert ours.merged_tokens() == 2
    values = np.rint((ours.patches[:, 0] * 0.26862954 + 0.48145466) * 255).astype(int)
    assert values.tolist() == [0, 10, 40, 50, 20, 30, 60, 70]


def test_too_thin():
    with pytest.raises(ImageError) as caught:
        qwen_pixels(np.zeros((1, 5000, 3), np.uint8), LIMITS)
    assert str(caught.value) == "picture: 5000 x 1 px, one side may be at most 200 times the other. Crop it."
