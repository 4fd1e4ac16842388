"""Layer normalisation.

Contract  y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis.
Source    docs/sources.md#layer-norm
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder

Array = NDArray[np.float32]


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """(..., H) float32, (H,) and (H,) to (..., H)."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + np.float32(epsilon)) * weight + bias
    return normed


def lower_layer_norm(graph: Builder, x: str, weight: str, bias: str, epsilon: float) -> str:
    """The definition as ONNX's LayerNormalization."""
    return graph.node("LayerNormalization", [x, weight, bias], axis=-1, epsilon=epsilon)
