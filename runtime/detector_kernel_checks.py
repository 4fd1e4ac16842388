"""The part of the kernel checks that only the detector and 8-bit layers need.

Contract  As kernel_checks.py, which runs them.
Elsewhere definitions and lowerings: kernels/int8_linear.py, deformable_attention.py, word_fusion.py,
          softmax_attention.py, layer_norm.py; who asks: `doctor`.
"""

import numpy as np

from rexthinker_edge.kernels.builder import Builder
from rexthinker_edge.kernels.deformable_attention import (
    Levels,
    Spread,
    deformable_attention,
    lower_deformable_attention,
)
from rexthinker_edge.kernels.int8_linear import (
    int8_linear,
    int8_rows_linear,
    lower_even_rows,
    lower_int8_linear,
    lower_int8_rows_linear,
    round_channels,
)
from rexthinker_edge.kernels.layer_norm import layer_norm, lower_layer_norm
from rexthinker_edge.kernels.softmax_attention import (
    lower_row_attention,
    lower_windowed_attention,
    row_attention,
    windowed_attention,
)
from rexthinker_edge.kernels.word_fusion import FusionNames, FusionWeights, lower_word_fusion, word_fusion
from rexthinker_edge.runtime.kernel_checks import SINGLE, Kernel, normal

SPREAD = Spread(heads=2, levels=2, points=3, width=16)
SIDES = [(4, 5), (2, 3)]  # height and width of each level
# A code of an activation may fall on the other side of a half: one step of 1 / 255 of the greatest activation
# against outputs some three times as large, sums of 64 products.
ROUNDED = 5e-3


def detector_kernels() -> list[Kernel]:
    """Every kind of kernel of the detector and of 8-bit linear layers."""
    rng = np.random.default_rng(5)
    return [
        _int8(rng), _int8_rows(rng), _deformable(rng), _fusion(rng), _layer_norm(rng), _rows(rng),
        _windows(rng),
    ]  # fmt: skip


def _int8(rng: np.random.Generator) -> Kernel:
    x, weight, bias = normal(rng, 5, 64), round_channels(normal(rng, 32, 64)), normal(rng, 32)
    return Kernel(
        "DynamicQuantizeMatMul", ROUNDED,
        lambda g, n: lower_int8_linear(
            g, n["x"], g.constant(weight.codes), g.constant(weight.scales), g.constant(bias)
        ),
        {"x": x}, int8_linear(x, weight, bias),
    )  # fmt: skip


def _int8_rows(rng: np.random.Generator) -> Kernel:
    x, weight, bias = normal(rng, 5, 64), round_channels(normal(rng, 32, 64)), normal(rng, 32)
    x[2] *= 100  # a loud row, which must not silence the others
    return Kernel(
        "DynamicQuantizeMatMul by rows", ROUNDED,
        lambda g, n: lower_int8_rows_linear(
            g, lower_even_rows(g, n["x"]), g.constant(weight.codes), g.constant(weight.scales),
            g.constant(bias),
        ),
        {"x": x}, int8_rows_linear(x, weight, bias),
    )  # fmt: skip


def _deformable(rng: np.random.Generator) -> Kernel:
    queries, cells = 7, sum(height * width for height, width in SIDES)
    looks = SPREAD.heads * SPREAD.levels * SPREAD.points
    value, scores = normal(rng, cells, SPREAD.width), normal(rng, queries, looks)
    offsets, scale = normal(rng, queries, 2 * looks), np.full((2, 2, 1), 0.4, np.float32)
    base = normal(rng, queries, 2, 1, 1) * np.float32(0.5)
    shape = (queries, 2, SPREAD.levels, SPREAD.heads, SPREAD.points)
    places = (offsets.reshape(queries, 2, SPREAD.levels, -1) * scale + base).reshape(shape)

    def build(graph: Builder, names: dict[str, str]) -> str:
        shapes = tuple(
            graph.constant(np.array([SPREAD.heads, SPREAD.depth, *side], np.int64)) for side in SIDES
        )
        split = graph.constant(np.array([height * width for height, width in SIDES], np.int64))
        placing = graph.constant(scale), graph.constant(base)
        return lower_deformable_attention(
            graph, names["value"], names["offsets"], names["scores"], placing, Levels(split, shapes), SPREAD
        )

    return Kernel(
        "GridSample in deformable attention", SINGLE, build,
        {"value": value, "offsets": offsets, "scores": scores},
        deformable_attention(value, places, scores, SIDES, SPREAD),
    )  # fmt: skip


def _fusion(rng: np.random.Generator) -> Kernel:
    width, wide, heads = 16, 32, 2
    cells, words = normal(rng, 9, width), normal(rng, 3, width)
    sides = [(wide, width)] * 4 + [(width, wide)] * 2
    pairs = [(normal(rng, *side) * np.float32(0.25), normal(rng, side[0])) for side in sides]
    query, key, cell_value, word_value, cell_out, word_out = pairs
    cell_gain, word_gain = normal(rng, width), normal(rng, width)
    weights = FusionWeights(query, key, cell_value, word_value, cell_out, word_out, cell_gain, word_gain)

    def build(graph: Builder, names: dict[str, str]) -> str:
        stored = [(graph.constant(weight), graph.constant(bias)) for weight, bias in pairs]
        named = FusionNames(
            stored[0], stored[1], stored[2], stored[3], stored[4], stored[5],
            graph.constant(cell_gain), graph.constant(word_gain),
        )  # fmt: skip
        out = lower_word_fusion(graph, names["cells"], names["words"], named, heads, (width, wide))
        return graph.node("Concat", list(out), axis=0)

    return Kernel(
        "cells and words in one order of products", SINGLE, build, {"cells": cells, "words": words},
        np.concatenate(word_fusion(cells, words, weights, heads)),
    )  # fmt: skip


def _layer_norm(rng: np.random.Generator) -> Kernel:
    x, weight, bias = normal(rng, 7, 64), normal(rng, 64), normal(rng, 64)
    return Kernel(
        "LayerNormalization", SINGLE,
        lambda g, n: lower_layer_norm(g, n["x"], g.constant(weight), g.constant(bias), 1e-5),
        {"x": x}, layer_norm(x, weight, bias, 1e-5),
    )  # fmt: skip


def _rows(rng: np.random.Generator) -> Kernel:
    q, k, v = normal(rng, 7, 16), normal(rng, 5, 16), normal(rng, 5, 16)
    return Kernel(
        "Softmax in attention between rows", SINGLE,
        lambda g, n: lower_row_attention(g, n["q"], n["k"], n["v"], 2, 16, None),
        {"q": q, "k": k, "v": v}, row_attention(q, k, v, 2),
    )  # fmt: skip


def _windows(rng: np.random.Generator) -> Kernel:
    heads, width, cells, windows = 2, 16, 4, 3
    qkv, bias = normal(rng, windows * cells, 3 * width), normal(rng, heads, cells, cells)
    return Kernel(
        "Softmax in shifted windows", SINGLE,
        lambda g, n: lower_windowed_attention(g, n["x"], heads, (cells, width), g.constant(bias), None),
        {"x": qkv}, windowed_attention(qkv, heads, bias),
    )  # fmt: skip
