"""Causal attention over kept keys and values, several query heads sharing one key head.

Layout    Queries (S, heads, d), new keys and values (S, kv_heads, d); the cache is (kv_heads, capacity, d)
          and its first `past` rows are valid. Query head h reads key head h // (heads / kv_heads).
Contract  New rows are written at [past, past + S) before attending; query i sees rows [0, past + i].
          Rows behind are never read. A bias is added to the scores: hugely negative hides a row, which is how
          several answers live in one cache without seeing each other.
Elsewhere the buffers: runtime/kv_cache.py.
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder

Array = NDArray[np.float32]


def softmax(scores: Array) -> Array:
    """Over the last axis; minus infinity counts as absent."""
    exponent = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = exponent / exponent.sum(axis=-1, keepdims=True)
    return weights


def grouped_query_attention(
    query: Array, key: Array, value: Array, key_cache: Array, value_cache: Array, past: int,
    bias: Array | None = None,
) -> Array:  # fmt: skip
    """Extend the caches in place and attend: (S, heads, d) float32.

    Args:
        bias: (S, past + S) added to the scores of every head; finite, for a tile that is hidden whole must
            still have a softmax.
    """
    count, heads, width = query.shape
    kv_heads, total = key.shape[1], past + count
    key_cache[:, past:total] = key.transpose(1, 0, 2)
    value_cache[:, past:total] = value.transpose(1, 0, 2)
    seen = np.arange(total)[None] <= np.arange(past, total)[:, None]
    out = np.empty_like(query)
    for head in range(heads):
        source = head // (heads // kv_heads)
        scores = query[:, head] @ key_cache[source, :total].T / np.float32(np.sqrt(width))
        if bias is not None:
            scores = scores + bias
        weights = softmax(np.where(seen, scores, -np.inf).astype(np.float32))
        out[:, head] = weights @ value_cache[source, :total]
    return out


def lower_grouped_query_attention(
    graph: Builder, query: str, key: str, value: str, cache: tuple[str, str, str, str],
    last_index: str, total_length: str, bias: str, heads: int, kv_heads: int, domain: str = CONTRIB,
) -> str:  # fmt: skip
    """The definition as GroupQueryAttention, rotation left to MRotaryEmbedding.

    Args:
        query, key, value: (B, S, heads * d) and twice (B, S, kv_heads * d).
        cache: names of past keys, past values, present keys, present values; bind each pair to one buffer.
        last_index: (B,) int32, index of the last valid row after this pass.
        total_length: () int32, rows valid after this pass.
        bias: (1, 1, S, total_length) float32, or "" for none.
        domain: whose operator: ONNX Runtime's, or ours (native_operators.py).
    """
    past_key, past_value, present_key, present_value = cache
    unused = ["", "", "", bias] if bias else []  # rotary tables and position ids: rotation is done before
    out, _, _ = graph.nodes(
        "GroupQueryAttention",
        [query, key, value, past_key, past_value, last_index, total_length, *unused],
        ["*", present_key, present_value],
        domain, num_heads=heads, kv_num_heads=kv_heads,
    )  # fmt: skip
    return out
