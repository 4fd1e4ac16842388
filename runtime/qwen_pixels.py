"""A picture as the vision tower reads it: resized, normalised, cut into patches.

Layout    `patches` row = one 14 x 14 patch, twice in time: (channel, time, row, column) flattened,
          1176 values. Rows are ordered so that the four patches of one merged token stand together:
          (grid_h / 2, grid_w / 2, 2, 2).
Contract  Equal to transformers' Qwen2VLImageProcessorPil for an RGB picture, to the last bit: PIL bicubic,
          float64 rescale by 1/255, float32 CLIP mean and standard deviation.
Elsewhere reading files: image.py; the detector's pixels: dino_pixels.py; the tower: vision.py.
Source    docs/sources.md#qwen-pixels
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.errors import ImageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 200


@dataclass(frozen=True)
class PixelLimits:
    """How large the picture may be and how it is cut, from the manifest."""

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def factor(self) -> int:
        """Side of one merged token in pixels."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class VisionInput:
    """What the vision tower takes."""

    patches: NDArray[np.float32]  # (grid_t * grid_h * grid_w, channels * time * patch * patch)
    grid_thw: tuple[int, int, int]
    resized: Size

    def merged_tokens(self, merge_size: int = 2) -> int:
        """Tokens the language model sees of it."""
        return math.prod(self.grid_thw) // merge_size**2


def smart_resize(
    height: int, width: int, min_pixels: int, max_pixels: int, factor: int = 28
) -> tuple[int, int]:
    """The size the model sees: sides divisible by `factor`, area within limits, aspect nearly kept.

    Returns:
        (height, width) in pixels. Halves round to even, as Python's `round` does.

    Raises:
        ImageError: one side is more than 200 times the other.

    Source: docs/sources.md#qwen-pixels
    """
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ImageError(
            f"picture: {width} x {height} px, one side may be at most {MAX_ASPECT} times the other. Crop it."
        )
    resized_height = round(height / factor) * factor
    resized_width = round(width / factor) * factor
    if resized_height * resized_width > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        resized_height = max(factor, math.floor(height / beta / factor) * factor)
        resized_width = max(factor, math.floor(width / beta / factor) * factor)
    elif resized_height * resized_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        resized_height = math.ceil(height * beta / factor) * factor
        resized_width = math.ceil(width * beta / factor) * factor
    return resized_height, resized_width


def qwen_pixels(pixels_HWC: NDArray[np.uint8], limits: PixelLimits) -> VisionInput:
    """Resize, normalise and cut one upright RGB picture.

    Args:
        pixels_HWC: (height, width, 3) uint8.
        limits: pixel limits and patch sizes the model was trained with.

    Raises:
        ImageError: one side is more than 200 times the other.
    """
    height, width = pixels_HWC.shape[:2]
    new_height, new_width = smart_resize(height, width, limits.min_pixels, limits.max_pixels, limits.factor)
    resized = Image.fromarray(pixels_HWC).resize((new_width, new_height), resample=Image.Resampling.BICUBIC)
    normal_HWC = _normal_values()[np.asarray(resized), np.arange(3)]
    patches, grid = _cut(normal_HWC, limits)
    return VisionInput(patches=patches, grid_thw=grid, resized=(new_width, new_height))


def _normal_values() -> NDArray[np.float32]:
    """(256, 3) float32: what each 8-bit value becomes in each channel."""
    values = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(CLIP_MEAN, dtype=np.float32), np.array(CLIP_STD, dtype=np.float32)
    return np.asarray((values[:, None] - mean) / std, dtype=np.float32)


def _cut(
    normal_HWC: NDArray[np.float32], limits: PixelLimits
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    patch, merge, time = limits.patch_size, limits.merge_size, limits.temporal_patch_size
    height, width, channels = normal_HWC.shape
    grid_h, grid_w = height // patch, width // patch
    blocks = normal_HWC.reshape(grid_h // merge, merge, patch, grid_w // merge, merge, patch, channels)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # (gh, gw, mh, mw, C, ph, pw)
    twice = np.broadcast_to(blocks[:, :, :, :, :, None], (*blocks.shape[:5], time, patch, patch))
    return np.ascontiguousarray(twice.reshape(grid_h * grid_w, -1)), (1, grid_h, grid_w)
