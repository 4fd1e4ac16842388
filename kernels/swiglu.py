"""The gate of a feed-forward layer: silu(gate) * up, silu(x) = x * sigmoid(x)."""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder


def swiglu(gate: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.float32]:
    """Elementwise over two float32 arrays of one shape."""
    with np.errstate(over="ignore"):  # exp(-x) = inf is right: the gate is 0 then
        silu = np.divide(gate, np.float32(1.0) + np.exp(-gate), dtype=np.float32)
    return silu * up


def lower_swiglu(graph: Builder, gate: str, up: str) -> str:
    """The definition; ONNX Runtime fuses sigmoid and product."""
    silu = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])])
    return graph.node("Mul", [silu, up])
