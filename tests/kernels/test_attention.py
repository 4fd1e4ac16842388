"""Rotation and both attentions: definition against torch or transformers, lowering against definition."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from rexthinker_edge.kernels.grouped_query_attention import (
    grouped_query_attention,
    lower_grouped_query_attention,
)
from rexthinker_edge.kernels.mrope import lower_mrope, mrope, rotary_table
from rexthinker_edge.kernels.window_attention import (
    full_attention,
    lower_full_attention,
    lower_window_attention,
    window_attention,
)

EPS = float(np.finfo(np.float32).eps)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("section", [(1, 4, 11), (16, 24, 24), (0, 4, 4)])
def test_mrope(rng, run_lowering, section):
    half, heads, count, rows = sum(section), 3, 9, 50
    x, positions = normal(rng, count, heads, 2 * half), rng.integers(0, rows, (3, count))
    cos, sin = rotary_table(10000.0, 2 * half, rows)
    y = mrope(x, positions, cos, sin, section)
    # transformers: angles per axis, the sections picked axis by axis, twice side by side.
    inverse = 1.0 / (10000.0 ** (torch.arange(0, 2 * half, 2).float() / (2 * half)))
    angles = torch.tensor(positions)[..., None].float() * inverse
    chosen = torch.cat([m[i] for i, m in enumerate(angles.split(list(section), -1))], -1)
    both = torch.cat([chosen, chosen], -1)[None]
    q = torch.tensor(x).transpose(0, 1)[None]
    reference = apply_rotary_pos_emb(q, q, both.cos(), both.sin())[0][0].transpose(0, 1).numpy()
    # An angle below 50 is off by 2 eps * 50 (its product and its frequency); two products and a sum more.
    bound = (100 + 3) * EPS * 2 * np.abs(x).max()
    assert np.abs(y - reference).max() <= bound
    arrays = {"x": x.reshape(1, count, -1), "p": positions[:, None], "c": cos, "s": sin}
    build = lambda g, n: lower_mrope(g, n["x"], n["p"], n["c"], n["s"], section, heads)  # noqa: E731
    (lowered,) = run_lowering(build, arrays)
    # same tables: two products and a sum
    assert np.abs(y.reshape(1, count, -1) - lowered).max() <= 3 * EPS * 2 * np.abs(x).max()


def test_rotary_table_pinned():
    cos, sin = rotary_table(100.0, 4, 3, copies=2)
    assert cos.shape == (3, 4)
    # frequencies 1 and 0.1, twice
    np.testing.assert_allclose(sin[2], np.sin([2.0, 0.2, 2.0, 0.2]), rtol=1e-6)
    np.testing.assert_allclose(cos[1], np.cos([1.0, 0.1, 1.0, 0.1]), rtol=1e-6)


@pytest.mark.parametrize(("heads", "kv_heads", "past", "count"), [(4, 2, 0, 7), (6, 1, 5, 3), (3, 3, 11, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_grouped_query_attention(rng, run_lowering, heads, kv_heads, past, count, biased):
    width, capacity = 16, 20
    query, key, value = (normal(rng, count, h, width) for h in (heads, kv_heads, kv_heads))
    before = [normal(rng, kv_heads, capacity, width) for _ in range(2)]
    caches = [cache.copy() for cache in before]
    total = past + count
    bias = None
    if biased:  # every other row hidden, but never a token from itself
        bias = np.where(np.arange(total) % 2, np.float32(-1e30), 0) * np.ones((count, 1), np.float32)
        bias[np.arange(count), past + np.arange(count)] = 0
    y = grouped_query_attention(query, key, value, *caches, past, bias)
    full = [torch.tensor(c[:, :total]).repeat_interleave(heads // kv_heads, 0) for c in caches]
    mask = torch.ones(count, total, dtype=torch.bool).tril(past)
    if bias is not None:
        mask &= torch.tensor(bias == 0)
    q = torch.tensor(query).transpose(0, 1)
    reference = (
        torch.nn.functional.scaled_dot_product_attention(q, *full, attn_mask=mask).transpose(0, 1).numpy()
    )
    # Scores of 16 terms stay below 30 here and enter exp: 16 * 30 eps relative on weights that sum to 1,
    # then a sum of at most 20 values of size max |v|; twice for two of them.
    bound = 2 * (16 * 30 + 20) * EPS * np.abs(caches[1][:, :total]).max()
    assert np.abs(y - reference).max() <= bound
    np.testing.assert_array_equal(caches[0][:, :past], before[0][:, :past])
    np.testing.assert_array_equal(caches[0][:, total:], before[0][:, total:])

    arrays = {
        "q": query.reshape(1, count, -1), "k": key.reshape(1, count, -1), "v": value.reshape(1, count, -1),
        "pk": before[0][None], "pv": before[1][None],
        "last": np.array([total - 1], np.int32), "total": np.array(total, np.int32),
    }  # fmt: skip
    if bias is not None:
        arrays["bias"] = bias[None, None]

    def build(g, n):
        cache = (n["pk"], n["pv"], "nk", "nv")
        out = lower_grouped_query_attention(
            g, n["q"], n["k"], n["v"], cache, n["last"], n["total"], n.get("bias", ""), heads, kv_heads
        )
        return out, "nk", "nv"

    lowered, keys, values = run_lowering(build, arrays)
    assert np.abs(y.reshape(1, count, -1) - lowered).max() <= bound
    np.testing.assert_array_equal(keys[0][:, :total], caches[0][:, :total])
    np.testing.assert_array_equal(values[0][:, :total], caches[1][:, :total])


def test_window_attention(rng, run_lowering):
    heads, width, count = 2, 8, 11
    q, k, v = (normal(rng, count, heads, width) for _ in range(3))
    order = rng.permutation(count)
    parts = np.split(order, [4, 6])  # windows of 4, 2 and 5 patches
    rows, slots = np.zeros((3, 5), np.int64), np.empty(count, np.int64)
    for window, part in enumerate(parts):
        rows[window, : len(part)] = part
        slots[part] = 5 * window + np.arange(len(part))
    lengths = np.array([4, 2, 5], np.int32)
    y = window_attention(q, k, v, rows, lengths, slots)
    window = np.empty(count, int)
    for index, part in enumerate(parts):
        window[part] = index
    mask = torch.tensor(window[:, None] == window[None])
    tensors = [torch.tensor(t).transpose(0, 1) for t in (q, k, v)]
    reference = (
        torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask).transpose(0, 1).numpy()
    )
    # as above with scores of 8 terms below 20 and at most 11 values
    bound = 2 * (8 * 20 + 11) * EPS * np.abs(v).max()
    assert np.abs(y - reference).max() <= bound

    arrays = {n: t.reshape(1, count, -1) for n, t in (("q", q), ("k", k), ("v", v))}
    windows = {"rows": rows, "lengths": lengths, "slots": slots}

    def build(g, n):
        names = (n["rows"], n["lengths"], n["slots"])
        return lower_window_attention(g, n["q"], n["k"], n["v"], names, heads, heads * width)

    (lowered,) = run_lowering(build, arrays | windows)
    assert np.abs(y.reshape(1, count, -1) - lowered).max() <= bound

    (lowered,) = run_lowering(lambda g, n: lower_full_attention(g, n["q"], n["k"], n["v"], heads), arrays)
    assert np.abs(full_attention(q, k, v).reshape(1, count, -1) - lowered).max() <= bound
