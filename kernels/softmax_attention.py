"""Softmax attention of rows among rows, and of rows within windows that carry a learned bias.

Layout    Rows are (N, heads * d), heads side by side. Windows hold `area` rows each, one window after the
          other; their query, key and value stand side by side in one (W * area, 3 * heads * d) array, which
          one matrix product makes.
Contract  softmax(q kᵀ / sqrt(d) + bias) v. A bias of (N, M) is for all heads, of (heads, area, area) for all
          windows, of (W, 1, area, area) for all heads of a window.
Elsewhere the vision tower's windows of the language model: window_attention.py.
Source    docs/sources.md#detector
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder
from rexthinker_edge.kernels.grouped_query_attention import softmax

Array = NDArray[np.float32]


def row_attention(q: Array, k: Array, v: Array, heads: int, bias: Array | None = None) -> Array:
    """(N, heads * d), (M, heads * d) twice, and (N, M) to (N, heads * d)."""
    split = [x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(0, 2, 1) / np.float32(np.sqrt(split[0].shape[-1]))
    seen = softmax(scores if bias is None else scores + bias) @ split[2]
    rows: Array = seen.transpose(1, 0, 2).reshape(len(q), -1)
    return rows


def windowed_attention(qkv: Array, heads: int, bias: Array, mask: Array | None = None) -> Array:
    """Each window by itself: (W * area, 3 * heads * d) to (W * area, heads * d).

    Args:
        bias: (heads, area, area).
        mask: (W, 1, area, area) or None.
    """
    area, windows = bias.shape[-1], []
    parts = np.split(qkv.reshape(len(qkv) // area, area, -1), 3, axis=-1)
    for window, (query, key, value) in enumerate(zip(*parts, strict=True)):
        extra = bias if mask is None else bias + mask[window]
        q, k, v = (np.split(x, heads, axis=-1) for x in (query, key, value))
        seen = [row_attention(q[head], k[head], v[head], 1, extra[head]) for head in range(heads)]
        windows.append(np.concatenate(seen, axis=-1))
    return np.concatenate(windows)


def lower_row_attention(
    graph: Builder, q: str, k: str, v: str, heads: int, width: int, bias: str | None = None
) -> str:
    """`row_attention` with plain operators, which ONNX Runtime joins where it can.

    Args:
        width: heads * d.
    """
    depth = width // heads
    apart = graph.constant(np.array([-1, heads, depth], np.int64))
    split = [graph.node("Reshape", [x, apart]) for x in (q, k, v)]
    query, key, value = (
        graph.node("Transpose", [x], perm=perm)
        for x, perm in zip(split, ([1, 0, 2], [1, 2, 0], [1, 0, 2]), strict=True)
    )
    scale = graph.constant(np.array(depth**-0.5, np.float32))
    scores = graph.node("Mul", [graph.node("MatMul", [query, key]), scale])
    if bias is not None:
        scores = graph.node("Add", [scores, bias])
    seen = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
    together = graph.constant(np.array([-1, width], np.int64))
    return graph.node("Reshape", [graph.node("Transpose", [seen], perm=[1, 0, 2]), together])


def lower_windowed_attention(
    graph: Builder, qkv: str, heads: int, shape: tuple[int, int], bias: str, mask: str | None
) -> str:
    """`windowed_attention` with plain operators.

    Args:
        shape: (area, heads * d).
    """
    area, width = shape
    depth = width // heads
    apart = graph.constant(np.array([-1, area, 3, heads, depth], np.int64))
    moved = graph.node("Transpose", [graph.node("Reshape", [qkv, apart])], perm=[2, 0, 3, 1, 4])
    query, key, value = graph.nodes("Split", [moved], ["*", "*", "*"], axis=0, num_outputs=3)
    scale = graph.constant(np.array(depth**-0.5, np.float32))
    turned = graph.node("Transpose", [key], perm=[0, 1, 2, 4, 3])
    scores = graph.node("Mul", [graph.node("MatMul", [query, turned]), scale])
    scores = graph.node("Add", [scores, bias])
    if mask is not None:
        scores = graph.node("Add", [scores, mask])
    seen = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
    together = graph.constant(np.array([-1, width], np.int64))
    return graph.node("Reshape", [graph.node("Transpose", [seen], perm=[0, 1, 3, 2, 4]), together])
