"""From Swin's maps and the caption's words to the boxes where the decoder starts, as graph nodes.

Layout    Cells of all levels are rows (N, d), one level after the other; words are rows (T, d). What the
          picture's size decides comes in: `level_cells`, `level_sides`, `cell_positions`, `cell_level`,
          `cell_base` (N, 2, 1, 1) and `offset_scale` (2, levels, 1) for the sampling places, `cell_anchors`
          (N, 4) and `cell_usable` (N, 1).
Contract  Equal to transformers' encoder and its choice of the best cells, up to rounding: of cells whose
          scores are that near, either may be chosen.
Elsewhere the numbers fed: runtime/detector_tables.py; operations: kernels/.
Source    transformers 5.23, models/grounding_dino.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rexthinker_edge.export.detector_writer import DetectorWriter, values
from rexthinker_edge.kernels.deformable_attention import (
    Levels,
    Spread,
    lower_deformable_attention,
    offset_rows,
)
from rexthinker_edge.kernels.softmax_attention import lower_row_attention
from rexthinker_edge.kernels.word_fusion import FusionNames, lower_word_fusion


@dataclass(frozen=True)
class Words:
    """The caption in the graph: rows, their positions, and who sees whom."""

    rows: str  # (T, d)
    positions: str  # (T, d)
    bias: str  # (T, T)


@dataclass(frozen=True)
class Cells:
    """All cells in the graph, and what is known of where they lie."""

    rows: str  # (N, d)
    sides: tuple[str, ...]  # per level (2,) int64: height, width
    counts: str  # (levels,) int64


def spread_of(attention: Any) -> Spread:
    """Heads, levels and points of one deformable attention."""
    return Spread(attention.n_heads, attention.n_levels, attention.n_points, attention.d_model)


def level_shapes(writer: DetectorWriter, cells: Cells, spread: Spread) -> Levels:
    """Shapes (heads, depth, height, width) of every level."""
    lead = writer.shape(spread.heads, spread.depth)
    shapes = tuple(writer.graph.node("Concat", [lead, side], axis=0) for side in cells.sides)
    return Levels(cells.counts, shapes)


def write_levels(writer: DetectorWriter, model: Any, maps: list[str]) -> Cells:
    """Bring every map to width d, and make the coarser levels."""
    graph, config = writer.graph, model.config
    count = config.num_feature_levels
    sides_all = graph.input("level_sides", "int64", [count, 2])
    counts = graph.input("level_cells", "int64", [count])
    sides = tuple(
        graph.node("Gather", [sides_all, graph.constant(np.array(n, np.int64))], axis=0) for n in range(count)
    )
    levels: list[str] = []
    for n, project in enumerate(model.input_proj_vision):
        if n < len(maps):
            weight = values(project[0].weight)[:, :, 0, 0]
            rows = writer.product(maps[n], f"levels.{n}", weight, values(project[0].bias))
            made = graph.node("Transpose", [rows], perm=[1, 0])
        else:
            first = n == len(maps)
            source = graph.node("Transpose", [maps[-1]], perm=[1, 0]) if first else levels[-1]
            made = _coarser(writer, n, project[0], source, sides[n - 1])
        levels.append(_group_norm(writer, made, project[1]))
    flat = graph.node("Transpose", [graph.node("Concat", levels, axis=1)], perm=[1, 0])
    return Cells(flat, sides, counts)


def _coarser(writer: DetectorWriter, n: int, conv: Any, source: str, side: str) -> str:
    """Level n (d, cells) by a convolution of stride 2 from (channels, cells) with the named sides."""
    graph = writer.graph
    shape = graph.node("Concat", [writer.shape(1, int(conv.weight.shape[1])), side], axis=0)
    made = graph.node(
        "Conv",
        [
            graph.node("Reshape", [source, shape]),
            writer.array(f"levels.{n}.weight", values(conv.weight)),
            graph.constant(values(conv.bias)),
        ],
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
    )
    return graph.node("Reshape", [made, writer.shape(int(conv.weight.shape[0]), -1)])


def _group_norm(writer: DetectorWriter, x: str, norm: Any) -> str:
    """GroupNorm over (d, cells), as InstanceNormalization of its groups."""
    graph, groups = writer.graph, int(norm.num_groups)
    ones, zeros = (graph.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    apart = graph.node("Reshape", [x, writer.shape(1, groups, -1)])
    apart = graph.node("InstanceNormalization", [apart, ones, zeros], epsilon=norm.eps)
    x = graph.node("Reshape", [apart, writer.shape(int(norm.num_channels), -1)])
    weight, bias = (graph.constant(values(p)[:, None]) for p in (norm.weight, norm.bias))
    return graph.node("Add", [graph.node("Mul", [x, weight]), bias])


def write_encoder(writer: DetectorWriter, model: Any, cells: Cells, words: Words) -> tuple[str, str, Levels]:
    """Fuse picture and caption layer by layer.

    Returns:
        cells (N, d), words (T, d), and the shapes the decoder samples with.
    """
    graph, config = writer.graph, model.config
    wave = graph.input("cell_positions", "float32", ["cells", config.d_model])
    level = graph.input("cell_level", "int64", ["cells"])
    named = graph.node("Gather", [graph.constant(values(model.level_embed)), level], axis=0)
    positions = writer.add(wave, named)
    placing = (
        graph.input("offset_scale", "float32", [2, config.num_feature_levels, 1]),
        graph.input("cell_base", "float32", ["cells", 2, 1, 1]),
    )
    levels = level_shapes(writer, cells, spread_of(model.encoder.layers[0].deformable_layer.self_attn))
    picture, text = cells.rows, words.rows
    for index, layer in enumerate(model.encoder.layers):
        with graph.scope(f"encoder{index}"):
            name = f"encoder.{index}"
            picture, text = _fuse(writer, name, layer.fusion_layer, picture, text)
            text = _enhance(writer, name, layer.text_enhancer_layer, text, words)
            deformable = layer.deformable_layer
            query = writer.add(picture, positions)
            seen = deform(writer, name, deformable.self_attn, query, picture, placing, levels)
            picture = writer.norm(writer.add(picture, seen), deformable.self_attn_layer_norm)
            picture = feed_forward(writer, name, deformable, picture)
    return picture, text, levels


def _fuse(writer: DetectorWriter, name: str, layer: Any, picture: str, text: str) -> tuple[str, str]:
    """Both look at each other; see kernels/word_fusion.py."""
    attention, graph = layer.attn, writer.graph

    def pair(part: str) -> tuple[str, str]:
        linear = getattr(attention, part)
        stored = writer.array(f"{name}.{part}", values(linear.weight))
        return stored, graph.constant(values(linear.bias))

    names = FusionNames(
        pair("vision_proj"), pair("text_proj"),
        pair("values_vision_proj"), pair("values_text_proj"),
        pair("out_vision_proj"), pair("out_text_proj"),
        graph.constant(values(layer.vision_param)), graph.constant(values(layer.text_param)),
    )  # fmt: skip
    picture, text = writer.norm(picture, layer.layer_norm_vision), writer.norm(text, layer.layer_norm_text)
    shape = (int(attention.vision_dim), int(attention.embed_dim))
    return lower_word_fusion(graph, picture, text, names, attention.num_heads, shape)


def _enhance(writer: DetectorWriter, name: str, layer: Any, text: str, words: Words) -> str:
    """Self-attention among the caption's words, then an MLP."""
    seen = multihead(
        writer, f"{name}.words", layer.self_attn, writer.add(text, words.positions), None, text, words.bias
    )
    text = writer.norm(writer.add(text, seen), layer.layer_norm_before)
    inner = writer.mlp(text, f"{name}.words.mlp", layer.fc1, layer.fc2, "relu")
    return writer.norm(writer.add(text, inner), layer.layer_norm_after)


def multihead(
    writer: DetectorWriter, name: str, attention: Any, query: str, key: str | None, value: str,
    bias: str | None = None,
) -> str:  # fmt: skip
    """transformers' multi-head attention with its projections; `key` None: the query is the key."""
    width = int(attention.query.weight.shape[0])
    if key is None:
        both = writer.linear(query, f"{name}.qk", attention.query, attention.key)
        q, k = writer.graph.nodes("Split", [both], ["*", "*"], axis=1, num_outputs=2)
    else:
        q = writer.linear(query, f"{name}.q", attention.query)
        k = writer.linear(key, f"{name}.k", attention.key)
    v = writer.linear(value, f"{name}.v", attention.value)
    seen = lower_row_attention(writer.graph, q, k, v, attention.num_attention_heads, width, bias)
    return writer.linear(seen, f"{name}.out", attention.out_proj)


def deform(
    writer: DetectorWriter, name: str, attention: Any, query: str, source: str, placing: tuple[str, str],
    levels: Levels,
) -> str:  # fmt: skip
    """Deformable attention with its projections."""
    spread = spread_of(attention)
    offsets = writer.linear(query, f"{name}.offsets", attention.sampling_offsets, order=offset_rows(spread))
    scores = writer.linear(query, f"{name}.scores", attention.attention_weights)
    value = writer.linear(source, f"{name}.value", attention.value_proj)
    seen = lower_deformable_attention(writer.graph, value, offsets, scores, placing, levels, spread)
    return writer.linear(seen, f"{name}.seen", attention.output_proj)


def feed_forward(writer: DetectorWriter, name: str, layer: Any, x: str) -> str:
    """The MLP every deformable layer ends with."""
    inner = writer.mlp(x, f"{name}.mlp", layer.fc1, layer.fc2, "relu")
    return writer.norm(writer.add(x, inner), layer.final_layer_norm)


def write_proposals(writer: DetectorWriter, model: Any, picture: str, text: str) -> str:
    """The boxes (queries, 4) of the cells that fit the caption best, where the decoder starts."""
    graph, config = writer.graph, model.config
    usable = graph.input("cell_usable", "float32", ["cells", 1])
    anchors = graph.input("cell_anchors", "float32", ["cells", 4])
    kept = graph.node("Mul", [picture, usable])
    cell = writer.norm(writer.linear(kept, "proposals.cells", model.enc_output), model.enc_output_norm)
    fit = graph.node("Gemm", [cell, text], transB=1)
    best = graph.node("ReduceMax", [fit, writer.shape(1)], keepdims=0)
    _, chosen = graph.nodes("TopK", [best, writer.shape(config.num_queries)], ["*", "*"], axis=0)
    boxes = writer.perceptron(
        graph.node("Gather", [cell, chosen], axis=0),
        "proposals.boxes",
        model.encoder_output_bbox_embed.layers,
    )
    start = graph.node("Gather", [anchors, chosen], axis=0)
    return graph.node("Sigmoid", [writer.add(boxes, start)])
