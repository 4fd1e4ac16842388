"""A picture as the detector reads it: resized, normalised, channels first.

Layout    (1, 3, height, width) float32.
Contract  Equal to transformers' GroundingDinoImageProcessorPil for an RGB picture, to the last bit: PIL
          bilinear, rescale by 1/255, mean and standard deviation. One departure: a side never falls below
          `least_px`, where transformers makes pictures of no height, or with fewer cells than queries.
Elsewhere reading files: image.py; the language model's pixels: qwen_pixels.py; the detector: detector.py.
Source    docs/sources.md#dino-pixels
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.runtime.boxes import Size


@dataclass(frozen=True)
class DinoPixelRules:
    """How a picture is resized and normalised, from the manifest."""

    shortest_px: int
    longest_px: int
    least_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def dino_size(size: Size, shortest_px: int, longest_px: int, least_px: int) -> Size:
    """The size the detector sees: shorter side `shortest_px`, unless the longer would pass `longest_px`.

    Args:
        size: (width, height) of the upright picture.
        least_px: neither side falls below it, at the price of a bent aspect in very long pictures.

    Returns:
        (width, height) in pixels.

    Source: docs/sources.md#dino-pixels
    """
    width, height = size
    low, high = min(size), max(size)
    shortest, exact = shortest_px, float(shortest_px)
    if high / low * shortest_px > longest_px:
        exact = longest_px * low / high
        shortest = round(exact)
    if low == shortest:
        new = size
    elif width < height:
        new = (shortest, int(exact * height / width))
    else:
        new = (int(exact * width / height), shortest)
    return max(new[0], least_px), max(new[1], least_px)


def dino_pixels(pixels_HWC: NDArray[np.uint8], rules: DinoPixelRules) -> NDArray[np.float32]:
    """Resize and normalise one upright RGB picture.

    Args:
        pixels_HWC: (height, width, 3) uint8.

    Returns:
        (1, 3, new height, new width) float32.
    """
    size = dino_size(
        (pixels_HWC.shape[1], pixels_HWC.shape[0]), rules.shortest_px, rules.longest_px, rules.least_px
    )
    resized = Image.fromarray(pixels_HWC).resize(size, resample=Image.Resampling.BILINEAR)
    normal_HWC = _normal_values(rules)[np.asarray(resized), np.arange(3)]
    return np.ascontiguousarray(normal_HWC.transpose(2, 0, 1)[None])


def _normal_values(rules: DinoPixelRules) -> NDArray[np.float32]:
    """(256, 3) float32: what each 8-bit value becomes in each channel."""
    values = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(rules.mean, dtype=np.float32), np.array(rules.std, dtype=np.float32)
    return np.asarray((values[:, None] - mean) / std, dtype=np.float32)
