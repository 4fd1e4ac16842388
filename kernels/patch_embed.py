"""The vision tower's first layer: a 3-D convolution whose stride is its kernel, so one product a patch.

Layout    Patches (N, channels * time * patch * patch) float32, flattened in that order, and the checkpoint's
          convolution weight (out, channels, time, patch, patch), flattened in the same order.
Elsewhere cutting pictures into patches: runtime/qwen_pixels.py.
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder
from rexthinker_edge.kernels.linear import linear, lower_linear


def patch_embed(patches: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, volume) and (out, channels, time, patch, patch) to (N, out)."""
    return linear(patches, weight.reshape(len(weight), -1))


def lower_patch_embed(graph: Builder, patches: str, weight: str) -> str:
    """The definition; `weight` is already (out, volume)."""
    return lower_linear(graph, patches, weight)
