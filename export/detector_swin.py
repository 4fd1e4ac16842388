"""Swin, the detector's picture backbone, as graph nodes.

Layout    Cells of a stage are rows (N, C), row by row of the picture. Windows, shifts and paddings are row
          numbers that the runtime computes from the picture's size: `stageS.take`, `stageS.give` and for
          shifted blocks `stageS.shifted_take`, `stageS.shifted_give`, `stageS.mask`; `stageS.merge` names the
          four neighbours of each cell of the next stage. Row N, one past the last, is zero.
Contract  Equal to transformers' SwinBackbone with always_partition, as Grounding DINO uses it.
Elsewhere the numbers fed: runtime/detector_tables.py; attention: kernels/softmax_attention.py.
Source    transformers 5.23, models/swin.
"""

from typing import Any

import numpy as np

from rexthinker_edge.export.detector_writer import DetectorWriter, values
from rexthinker_edge.kernels.softmax_attention import lower_windowed_attention


def write_swin(writer: DetectorWriter, backbone: Any, pixels: str) -> list[str]:
    """Feature maps (N, C) of the asked stages.

    Args:
        backbone: transformers' SwinBackbone.
        pixels: (1, 3, height, width), sides multiples of the patch.
    """
    graph, swin, maps = writer.graph, backbone.swin, []
    projection = swin.embeddings.patch_embeddings.projection
    kernel = writer.array("swin.patch", values(projection.weight))
    x = graph.node(
        "Conv", [pixels, kernel, graph.constant(values(projection.bias))], strides=list(projection.stride)
    )
    channels = int(projection.weight.shape[0])
    x = graph.node("Transpose", [graph.node("Reshape", [x, writer.shape(channels, -1)])], perm=[1, 0])
    x = writer.norm(x, swin.embeddings.norm)
    for index, (stage, name) in enumerate(zip(swin.encoder.layers, backbone.stage_names[1:], strict=True)):
        with graph.scope(f"swin{index}"):
            tables = _tables(writer, index, {bool(block.shift_size) for block in stage.blocks})
            for depth, block in enumerate(stage.blocks):
                shifted = bool(block.shift_size)
                x = _block(writer, f"swin.{index}.{depth}", block, x, tables[shifted])
            if name in backbone.out_features:
                maps.append(writer.norm(x, backbone.hidden_states_norms[name]))
            if stage.downsample is not None:
                x = _merge(writer, index, stage.downsample, x)
    return maps


def _tables(writer: DetectorWriter, stage: int, shifts: set[bool]) -> dict[bool, tuple[str, str, str | None]]:
    """Declare the inputs of a stage: take, give and mask for plain and shifted blocks."""
    graph, made = writer.graph, {}
    for shifted in sorted(shifts):
        start = f"stage{stage}." + ("shifted_" if shifted else "")
        take = graph.input(f"{start}take", "int64", [f"stage{stage}_slots"])
        give = graph.input(f"{start}give", "int64", [f"stage{stage}_cells"])
        mask = None
        if shifted:
            sides: list[int | str] = [f"stage{stage}_windows", 1, "area", "area"]
            mask = graph.input(f"stage{stage}.mask", "float32", sides)
        made[shifted] = (take, give, mask)
    return made


def _with_zero(writer: DetectorWriter, x: str, channels: int) -> str:
    """(N + 1, C): x and a row of zeros."""
    zero = writer.graph.constant(np.zeros((1, channels), np.float32))
    return writer.graph.node("Concat", [x, zero], axis=0)


def _block(writer: DetectorWriter, name: str, block: Any, x: str, tables: tuple[str, str, str | None]) -> str:
    """Windowed attention over (N, C), then the MLP."""
    graph, attention, (take, give, mask) = writer.graph, block.attention, tables
    channels, area = int(attention.q_proj.weight.shape[1]), int(block.window_size) ** 2
    padded = _with_zero(writer, writer.norm(x, block.layernorm_before), channels)
    slots = graph.node("Gather", [padded, take], axis=0)
    qkv = writer.linear(slots, f"{name}.qkv", attention.q_proj, attention.k_proj, attention.v_proj)
    bias = values(attention.relative_position_bias()).reshape(-1, area, area)
    bias_name = graph.array(f"{name}.bias", np.ascontiguousarray(bias))
    seen = lower_windowed_attention(
        graph, qkv, attention.num_attention_heads, (area, channels), bias_name, mask
    )
    seen = writer.linear(graph.node("Gather", [seen, give], axis=0), f"{name}.out", attention.o_proj)
    x = writer.add(x, seen)
    inner = writer.norm(x, block.layernorm_after)
    return writer.add(x, writer.mlp(inner, f"{name}.mlp", block.mlp.fc1, block.mlp.fc2, "gelu"))


def _merge(writer: DetectorWriter, stage: int, downsample: Any, x: str) -> str:
    """Four neighbours to one, at twice the channels."""
    graph, wide = writer.graph, int(downsample.norm.weight.shape[0])
    rows = graph.input(f"stage{stage}.merge", "int64", [f"stage{stage}_corners"])
    beside = graph.node("Gather", [_with_zero(writer, x, wide // 4), rows], axis=0)
    beside = graph.node("Reshape", [beside, writer.shape(-1, wide)])
    return writer.linear(writer.norm(beside, downsample.norm), f"swin.{stage}.merge", downsample.reduction)
