"""Cells of a picture and words of a caption look at each other, at the price of the words.

What      Grounding DINO projects every cell three times to 1,024 channels and meets a handful of words
          there. Matrix products may be taken in another order: q kᵀ = x (Wq kᵀ), p (x Wv) = (p x) Wv and
          (p t) Wo = p (t Wo). Written so, the wide projections are made for words instead of cells.
Layout    cells (N, d), words (T, d), weights (out, in) as checkpoints store them; width E = heads * depth.
Contract  Equal to the plain order but for rounding. transformers also clamps scores at 50,000 below the
          greatest: no difference in float32 unless scores reach that.
Source    docs/sources.md#detector
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder
from rexthinker_edge.kernels.grouped_query_attention import softmax

Array = NDArray[np.float32]


@dataclass(frozen=True)
class FusionNames:
    """Values of one layer: weights (E, d) and biases (E,), but for `out_*`: (d, E) and (d,)."""

    query: tuple[str, str]  # of cells
    key: tuple[str, str]  # of words
    cell_value: tuple[str, str]
    word_value: tuple[str, str]
    cell_out: tuple[str, str]
    word_out: tuple[str, str]
    cell_gain: str  # (d,)
    word_gain: str  # (d,)


@dataclass(frozen=True)
class FusionWeights:
    """The arrays that `FusionNames` names."""

    query: tuple[Array, Array]
    key: tuple[Array, Array]
    cell_value: tuple[Array, Array]
    word_value: tuple[Array, Array]
    cell_out: tuple[Array, Array]
    word_out: tuple[Array, Array]
    cell_gain: Array
    word_gain: Array


def word_fusion(cells: Array, words: Array, weights: FusionWeights, heads: int) -> tuple[Array, Array]:
    """The definition, in the plain order: cells (N, d) and words (T, d), each with the other's news added."""

    def project(x: Array, layer: tuple[Array, Array]) -> Array:
        return x @ layer[0].T + layer[1]

    def split(x: Array) -> Array:
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    query, key = split(project(cells, weights.query)), split(project(words, weights.key))
    scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
    from_words = softmax(scores) @ split(project(words, weights.word_value))
    from_cells = softmax(scores.transpose(0, 2, 1)) @ split(project(cells, weights.cell_value))
    cell_news = project(from_words.transpose(1, 0, 2).reshape(len(cells), -1), weights.cell_out)
    word_news = project(from_cells.transpose(1, 0, 2).reshape(len(words), -1), weights.word_out)
    return cells + weights.cell_gain * cell_news, words + weights.word_gain * word_news


def lower_word_fusion(
    graph: Builder, cells: str, words: str, names: FusionNames, heads: int, shape: tuple[int, int]
) -> tuple[str, str]:
    """The definition with the wide projections moved to the words.

    Args:
        shape: (d, E).
    """
    width, wide = shape
    depth = wide // heads

    def form(x: str, *sides: int) -> str:
        return graph.node("Reshape", [x, graph.constant(np.array(sides, np.int64))])

    def by_head(x: str) -> str:  # (T, E) to (heads, T, depth)
        return graph.node("Transpose", [form(x, -1, heads, depth)], perm=[1, 0, 2])

    def project(x: str, layer: tuple[str, str]) -> str:
        return graph.node("Gemm", [x, *layer], transB=1)

    scale = graph.constant(np.array(depth**-0.5, np.float32))
    key = graph.node("Mul", [by_head(project(words, names.key)), scale])
    probe = form(graph.node("MatMul", [key, form(names.query[0], heads, depth, width)]), -1, width)
    bias = form(graph.node("MatMul", [key, form(names.query[1], heads, depth, 1)]), -1)
    scores = graph.node("Gemm", [cells, probe, bias], transB=1)  # (N, heads * T)
    # cells look at words: a head's shares sum to 1, so each row brings its part of the bias along
    shares = form(graph.node("Softmax", [_apart(graph, scores, heads)], axis=-1), 0, -1)
    # (heads, depth, d)
    outward = graph.node("Transpose", [form(names.cell_out[0], width, heads, depth)], perm=[1, 2, 0])
    told = form(graph.node("MatMul", [by_head(project(words, names.word_value)), outward]), -1, width)
    part = graph.node("Div", [names.cell_out[1], graph.constant(np.array(heads, np.float32))])
    told = graph.node("Mul", [graph.node("Add", [told, part]), names.cell_gain])
    cells_out = graph.node("Gemm", [shares, told, cells])
    # words look at cells
    spread = graph.node("Softmax", [graph.node("Transpose", [scores], perm=[1, 0])], axis=-1)
    gathered = form(graph.node("MatMul", [spread, cells]), heads, -1, width)
    # (heads, d, depth)
    inward = graph.node("Transpose", [form(names.cell_value[0], heads, depth, width)], perm=[0, 2, 1])
    seen = graph.node(
        "Add", [graph.node("MatMul", [gathered, inward]), form(names.cell_value[1], heads, 1, depth)]
    )
    seen = form(graph.node("Transpose", [seen], perm=[1, 0, 2]), -1, wide)
    news = graph.node("Mul", [project(seen, names.word_out), names.word_gain])
    return cells_out, graph.node("Add", [words, news])


def _apart(graph: Builder, scores: str, heads: int) -> str:
    """(N, heads * T) to (N, heads, T)."""
    return graph.node("Reshape", [scores, graph.constant(np.array([0, heads, -1], np.int64))])
