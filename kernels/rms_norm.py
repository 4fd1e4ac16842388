"""Root-mean-square normalisation, alone and after a residual sum.

Contract  y = x / sqrt(mean(x²) + epsilon) * weight over the last axis.
Source    docs/sources.md#rms-norm
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder


def rms_norm(x: NDArray[np.float32], weight: NDArray[np.float32], epsilon: float) -> NDArray[np.float32]:
    """(..., H) float32 and (H,) to (..., H)."""
    variance = np.mean(np.square(x), axis=-1, keepdims=True)
    normed: NDArray[np.float32] = x / np.sqrt(variance + np.float32(epsilon))
    return normed * weight


def lower_rms_norm(graph: Builder, x: str, weight: str, epsilon: float) -> str:
    """The definition as ONNX Runtime's SimplifiedLayerNormalization (below opset 23)."""
    return graph.node("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=epsilon, stash_type=1)


def lower_skip_rms_norm(graph: Builder, x: str, skip: str, weight: str, epsilon: float) -> tuple[str, str]:
    """Normalise `x + skip`; returns the normalised value and the sum. The inputs have three axes."""
    normed, _, _, total = graph.nodes(
        "SkipSimplifiedLayerNormalization", [x, skip, weight], ["*", "", "", "*"], CONTRIB, epsilon=epsilon
    )
    return normed, total
