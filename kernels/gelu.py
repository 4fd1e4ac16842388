"""The exact Gaussian error linear unit: x / 2 * (1 + erf(x / sqrt(2)))."""

import math

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Elementwise float32; slow, one `math.erf` a number."""
    erf = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0))
    y: NDArray[np.float32] = (0.5 * x * (1.0 + erf)).astype(np.float32)
    return y


def lower_gelu(graph: Builder, x: str) -> str:
    """The definition as ONNX's Gelu without approximation."""
    return graph.node("Gelu", [x], approximate="none")
