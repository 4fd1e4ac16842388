"""A linear layer: y = x Wᵀ + b.

Layout    Weights are (out, in) as checkpoints store them: nothing is transposed on disk.
Elsewhere the same with 4-bit weights: matmul_nbits.py.
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder


def linear(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(..., in) float32 times (out, in) to (..., out), plus (out,) where given."""
    y = x @ weight.T
    return y if bias is None else y + bias


def lower_linear(graph: Builder, x: str, weight: str, bias: str | None = None) -> str:
    """The definition as FusedMatMul with a transposed right side, which ONNX Runtime packs at load."""
    y = graph.node("FusedMatMul", [x, weight], CONTRIB, transB=1)
    return y if bias is None else graph.node("Add", [y, bias])


def lower_rows_linear(graph: Builder, x: str, weight: str, bias: str | None = None) -> str:
    """The definition for (rows, in) as Gemm, which ONNX Runtime joins with an activation behind it."""
    return graph.node("Gemm", [x, weight] if bias is None else [x, weight, bias], transB=1)
