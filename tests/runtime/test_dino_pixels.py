"""The detector's pixels equal transformers' own, and no picture is too odd to be resized."""

import numpy as np
import pytest

from rexthinker_edge.runtime.dino_pixels import DinoPixelRules, dino_pixels, dino_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REAL = DinoPixelRules(800, 1333, 64, MEAN, STD)
SMALL = DinoPixelRules(192, 268, 32, MEAN, STD)


def reference(pixels_HWC, rules):
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (  # noqa: PLC0415
        GroundingDinoImageProcessorPil,
    )

    size = {"shortest_edge": rules.shortest_px, "longest_edge": rules.longest_px}
    return GroundingDinoImageProcessorPil(size=size)(pixels_HWC, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("rules", [REAL, SMALL], ids=["real", "small"])
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (640, 480),
        (480, 640),
        (160, 160),
        (333, 500),
        (500, 333),
        (192, 400),
        (800, 1333),
        (37, 41),
        (611, 307),
    ],
)
def test_equal_to_transformers_to_the_last_bit(width, height, rules):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(dino_pixels(pixels, rules), reference(pixels, rules))


def test_sizes_equal_transformers_for_many_sides():
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (  # noqa: PLC0415
        get_size_with_aspect_ratio,
    )

    rng = np.random.default_rng(0)
    for _ in range(3_000):
        low = int(rng.integers(1, 900))
        high = int(low * rng.uniform(1, 15)) + 1
        size = (low, high) if rng.random() < 0.5 else (high, low)
        wanted = get_size_with_aspect_ratio((size[1], size[0]), 800, 1333)
        assert dino_size(size, 800, 1333, 1) == (wanted[1], wanted[0])


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((640, 480), (1066, 800)), ((1, 1), (800, 800)), ((1, 5000), (64, 1333)), ((5000, 1), (1333, 64))],
)
def test_pinned_sizes(size, wanted):
    assert dino_size(size, 800, 1333, 64) == wanted


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (2, 300)])
def test_odd_pictures_give_finite_pixels(width, height):
    pixels = dino_pixels(np.full((height, width, 3), 255, dtype=np.uint8), SMALL)
    assert min(pixels.shape[2:]) >= 32
    assert pixels.dtype == np.float32
    assert np.allclose(pixels[0, :, 0, 0], (1 - np.array(MEAN)) / np.array(STD))
