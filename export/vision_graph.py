"""Writes the vision tower as an ONNX graph, layer by layer.

Layout    patches (N, volume) in the processor's order, positions (3, 1, N), window_rows (windows, slots),
          window_lengths (windows,), row_slots (N,); features (N / merge², decoder width). Patches keep their
          order throughout: window layers gather their windows and scatter them back, everything else works
          on rows or on all rows alike.
Contract  Equal to transformers' Qwen2_5_VisionTransformerPretrainedModel for any grid of a still picture.
          fp32 keeps weights as stored. int8 rounds the blocks' and the merger's linear layers to 8 bits with
          a scale per output channel, activations by rows as they come; norms, rotation, attention and the
          patch embedding stay float32.
Elsewhere the integers fed: runtime/vision.py; operations: kernels/; what int8 costs: docs/detector.md.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import VisionConfig
from rexthinker_edge.export.graph import GraphWriter
from rexthinker_edge.kernels.gelu import lower_gelu
from rexthinker_edge.kernels.int8_linear import lower_even_rows, lower_int8_rows_linear, round_channels
from rexthinker_edge.kernels.linear import lower_linear
from rexthinker_edge.kernels.mrope import lower_mrope, rotary_table
from rexthinker_edge.kernels.patch_embed import lower_patch_embed
from rexthinker_edge.kernels.rms_norm import lower_rms_norm
from rexthinker_edge.kernels.swiglu import lower_swiglu
from rexthinker_edge.kernels.window_attention import lower_full_attention, lower_window_attention
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.qwen_pixels import MAX_ASPECT
from rexthinker_edge.runtime.vision import VisionGeometry

PRECISIONS = ("fp32", "int8")
EPSILON = 1e-6  # transformers writes it into the tower's norms, whatever the text model uses


def most_patches(config: VisionConfig, max_pixels: int) -> int:
    """Patches of the largest picture that preprocessing can give.

    A picture within `max_pixels` and the allowed aspect has sides up to sqrt(max_pixels * aspect); rounding
    to whole merged patches adds less than one of them to either side.
    """
    step = config.patch * config.merge
    longest_px = math.sqrt(max_pixels * MAX_ASPECT)
    area_px = max_pixels + 2 * step * longest_px + step**2
    return math.ceil(area_px / config.patch**2)


@dataclass(frozen=True)
class _Source:
    """What every layer needs."""

    graph: GraphWriter
    checkpoint: Checkpoint
    config: VisionConfig
    int8: bool

    def vector(self, name: str, length: int) -> str:
        return self.graph.weight(self.checkpoint.tensor(name, (length,)))

    def linears(self, x: str, *layers: tuple[str, tuple[int, int]]) -> list[str]:
        """Products of one x with several layers, each a name and the (out, in) shape of its weight."""
        even = lower_even_rows(self.graph, x) if self.int8 else None
        made = []
        for name, shape in layers:
            weight = self.checkpoint.tensor(f"{name}.weight", shape)
            bias = self.vector(f"{name}.bias", shape[0])
            if even is None:
                made.append(lower_linear(self.graph, x, self.graph.weight(weight), bias))
            else:
                rounded = round_channels(weight.float32())
                codes = self.graph.array(f"{name}.codes", rounded.codes)
                scales = self.graph.array(f"{name}.scales", rounded.scales)
                made.append(lower_int8_rows_linear(self.graph, even, codes, scales, bias))
        return made

    def linear(self, x: str, name: str, shape: tuple[int, int]) -> str:
        """One of them."""
        return self.linears(x, (name, shape))[0]


def write_vision(
    checkpoint: Checkpoint, config: VisionConfig, out_dir: Path, max_pixels: int, dry: bool = False,
    precision: str = "fp32",
) -> VisionGeometry:  # fmt: skip
    """Write `vision.onnx` and its data into `out_dir`.

    Args:
        max_pixels: the prompt's limit; it bounds the grid and so the rotary table.
        dry: check names and shapes only, without the bytes.
        precision: "fp32" or "int8", of the linear layers.

    Returns:
        What the runtime must know of it.

    Raises:
        OptionError: another precision.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"vision: {precision!r}, one of {PRECISIONS} is needed. Choose one.")
    # MRotaryEmbedding wants as many table rows as there are patches, though no position is that large.
    max_patches = most_patches(config, max_pixels)
    volume = config.patch_volume
    with GraphWriter(out_dir / "vision.onnx", dry) as graph:
        source = _Source(graph, checkpoint, config, precision == "int8" and not dry)
        patches = graph.input("patches", "float32", ["patches", volume])
        positions = graph.input("positions", "int64", [3, 1, "patches"])
        windows = (
            graph.input("window_rows", "int64", ["windows", "slots"]),
            graph.input("window_lengths", "int32", ["windows"]),
            graph.input("row_slots", "int64", ["patches"]),
        )
        quarter = config.head_dim // 4
        cos, sin = rotary_table(config.rope_theta, 2 * quarter, max_patches, copies=2)
        tables = (graph.array("rotary.cos", cos), graph.array("rotary.sin", sin))
        kernel = (config.hidden, 3, config.temporal_patch, config.patch, config.patch)
        proj = checkpoint.tensor("visual.patch_embed.proj.weight", kernel)
        x = lower_patch_embed(graph, patches, graph.weight(proj, shape=(config.hidden, volume)))
        x = graph.node("Unsqueeze", [x, graph.constant(np.array([0], np.int64))])
        for layer in range(config.depth):
            with graph.scope(f"block{layer}"):
                x = _block(source, layer, x, positions, tables, windows)
        shape: list[int | str] = ["features", config.out_hidden]
        graph.output("features", "float32", shape, _merger(source, x))
        graph.save()
    return VisionGeometry(
        config.patch, config.temporal_patch, config.merge, config.window, config.out_hidden, max_patches
    )


def _block(
    source: _Source,
    layer: int,
    x: str,
    positions: str,
    tables: tuple[str, str],
    windows: tuple[str, str, str],
) -> str:
    """One transformer block on (1, N, hidden)."""
    graph, config, name = source.graph, source.config, f"visual.blocks.{layer}"
    normed = lower_rms_norm(graph, x, source.vector(f"{name}.norm1.weight", config.hidden), EPSILON)
    packed = source.linear(normed, f"{name}.attn.qkv", (3 * config.hidden, config.hidden))
    q, k, v = graph.nodes("Split", [packed], ["*", "*", "*"], axis=2, num_outputs=3)
    quarter = config.head_dim // 4
    q, k = (
        lower_mrope(graph, part, positions, *tables, (0, quarter, quarter), config.heads) for part in (q, k)
    )
    if layer in config.full_attention:
        attended = lower_full_attention(graph, q, k, v, config.heads)
    else:
        attended = lower_window_attention(graph, q, k, v, windows, config.heads, config.hidden)
    x = graph.node("Add", [x, source.linear(attended, f"{name}.attn.proj", (config.hidden, config.hidden))])
    normed = lower_rms_norm(graph, x, source.vector(f"{name}.norm2.weight", config.hidden), EPSILON)
    wide = (config.intermediate, config.hidden)
    gate, up = source.linears(normed, (f"{name}.mlp.gate_proj", wide), (f"{name}.mlp.up_proj", wide))
    return graph.node(
        "Add", [x, source.linear(lower_swiglu(graph, gate, up), f"{name}.mlp.down_proj", wide[::-1])]
    )


def _merger(source: _Source, x: str) -> str:
    """(1, N, hidden) to (N / merge², out_hidden): the patches of a merge block side by side, two layers."""
    graph, config = source.graph, source.config
    width = config.hidden * config.merge**2
    normed = lower_rms_norm(graph, x, source.vector("visual.merger.ln_q.weight", config.hidden), EPSILON)
    merged = graph.node("Reshape", [normed, graph.constant(np.array([-1, width], np.int64))])
    inner = lower_gelu(graph, source.linear(merged, "visual.merger.mlp.0", (width, width)))
    return source.linear(inner, "visual.merger.mlp.2", (config.out_hidden, width))
