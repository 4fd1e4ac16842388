"""Attention of a picture's patches, within square windows or among all of them.

Layout    q, k, v are (N, heads, d), patches in any order. `rows` (windows, slots) names the patches of each
          window, the last slots of a ragged one repeating some patch; `lengths` (windows,) counts the real
          ones; `slots` (N,) says where each patch sits in the flattened windows.
Contract  A patch attends to the real patches of its own window, in both directions. No (N, N) matrix or
          mask is ever made for window layers: they cost windows * slots².
Elsewhere which patches form a window: runtime/vision.py.
Source    docs/sources.md#window-attention
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder
from rexthinker_edge.kernels.grouped_query_attention import softmax

Array = NDArray[np.float32]


def full_attention(q: Array, k: Array, v: Array) -> Array:
    """Every patch attends to every patch: (N, heads, d) three times, to (N, heads, d)."""
    scores = np.einsum("ihd,jhd->hij", q, k) / np.float32(np.sqrt(q.shape[-1]))
    attended: Array = np.einsum("hij,jhd->ihd", softmax(scores), v)
    return attended


def window_attention(
    q: Array,
    k: Array,
    v: Array,
    rows: NDArray[np.int64],
    lengths: NDArray[np.int32],
    slots: NDArray[np.int64],
) -> Array:
    """Each window by itself: (N, heads, d) three times, to (N, heads, d)."""
    padded = np.zeros((rows.size, *q.shape[1:]), np.float32)
    for window, (members, length) in enumerate(zip(rows, lengths, strict=True)):
        real = members[:length]
        start = window * rows.shape[1]
        padded[start : start + length] = full_attention(q[real], k[real], v[real])
    return padded[slots]


def lower_full_attention(graph: Builder, q: str, k: str, v: str, heads: int) -> str:
    """The definition on (1, N, heads * d), as MultiHeadAttention."""
    return graph.node("MultiHeadAttention", [q, k, v], CONTRIB, num_heads=heads)


def lower_window_attention(
    graph: Builder, q: str, k: str, v: str, windows: tuple[str, str, str], heads: int, width: int
) -> str:
    """The definition on (1, N, width) with windows as a batch, as MultiHeadAttention with key lengths.

    Args:
        windows: names of rows, lengths and slots.
        width: heads * d.
    """
    rows, lengths, slots = windows
    flat = graph.constant(np.array([-1, width], np.int64))
    batched = [
        graph.node("Gather", [graph.node("Reshape", [part, flat]), rows], axis=0) for part in (q, k, v)
    ]
    # The filter must underflow exp() in float32 for any score: exp(x) is 0 below about -104.
    out = graph.node(
        "MultiHeadAttention", [*batched, "", lengths], CONTRIB, num_heads=heads, mask_filter_value=-1e9
    )
    kept = graph.node("Gather", [graph.node("Reshape", [out, flat]), slots], axis=0)
    return graph.node("Unsqueeze", [kept, graph.constant(np.array([0], np.int64))])
