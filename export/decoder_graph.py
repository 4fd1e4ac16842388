"""Writes the language model's decoder as an ONNX graph, layer by layer.

Layout    embeds (B, S, H), positions (3, B, S), last_index (B,), total_length (), rows (R,),
          attention_bias (1, 1, S, total_length): 0 where a token may look, hugely negative where it may not,
          which lets several answers share one buffer (runtime/together.py); and per layer keys and values
          (B, kv_heads, capacity, head_dim) in and out, to be bound to one buffer each.
          logits (B, R, vocab) for the tokens that `rows` names, so that a prompt pays for one row only.
Contract  Equal to transformers' Qwen2_5_VLForConditionalGeneration without its vision tower: biases on
          q, k, v and nowhere else, M-RoPE in sections, tied or untied output layer.
          A tied table is stored once: the output layer's weight is the embedding file itself.
Elsewhere operations: kernels/; integers: quantize.py; running it: runtime/decoder.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.graph import GraphWriter, StoredWeight
from rexthinker_edge.export.quantize import (
    AsStored,
    IntegerRecipe,
    Nearest,
    QuantisedLinear,
    Weights,
    head_name,
)
from rexthinker_edge.kernels.grouped_query_attention import lower_grouped_query_attention
from rexthinker_edge.kernels.linear import lower_linear
from rexthinker_edge.kernels.matmul_nbits import lower_matmul_nbits, packed_tensors
from rexthinker_edge.kernels.mrope import lower_mrope, rotary_table
from rexthinker_edge.kernels.rms_norm import lower_rms_norm, lower_skip_rms_norm
from rexthinker_edge.kernels.swiglu import lower_swiglu
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.manifest import EMBEDDINGS


@dataclass(frozen=True)
class _Source:
    """What every layer needs: the writer, the tensors, the shape, and where linear layers come from."""

    graph: GraphWriter
    checkpoint: Checkpoint
    config: TextConfig
    weights: Weights
    accuracy_level: int
    permuted: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def vector(self, name: str, length: int) -> str:
        return self.graph.weight(self.checkpoint.tensor(name, (length,)))

    def linear(self, x: str, name: str, shape: tuple[int, int], bias: bool = False) -> str:
        """A linear layer by its checkpoint name, stored or in integers."""
        bias_name = self.vector(f"{name}.bias", shape[0]) if bias else None
        found = self.weights.linear(name, shape)
        if isinstance(found, Tensor):
            return lower_linear(self.graph, x, self.graph.weight(found), bias_name)
        return self.integers(x, name, found, bias_name)

    def integers(self, x: str, name: str, found: QuantisedLinear, bias: str | None = None) -> str:
        """A linear layer in integers; symmetric ones need no zero points, the operator's own are the same."""
        weight = found.weight
        codes, scales, zeros = packed_tensors(weight)
        plain = bool((weight.zero_points == 1 << (weight.bits - 1)).all())
        if found.order is not None:
            x = self.reordered(x, f"{name}.order", found.order)
        names = (
            self.graph.array(f"{name}.codes", codes),
            self.graph.array(f"{name}.scales", scales),
            "" if plain else self.graph.array(f"{name}.zeros", zeros),
        )
        return lower_matmul_nbits(
            self.graph, x, names, (len(weight.codes), weight.columns),
            weight.bits, weight.block, self.accuracy_level, bias,
        )  # fmt: skip

    def reordered(self, x: str, name: str, order: NDArray[np.int64]) -> str:
        """x with its last axis in another order, once for all layers that want the same.

        MatMulNBits has an input g_idx for this, which its CPU kernel computes wrongly (docs/quantisation.md).
        """
        key = (x, order.tobytes())
        if key not in self.permuted:
            self.permuted[key] = self.graph.node("Gather", [x, self.graph.array(name, order)], axis=-1)
        return self.permuted[key]


def write_decoder(
    checkpoint: Checkpoint, config: TextConfig, out_dir: Path, max_length: int, recipe: IntegerRecipe | None,
    dry: bool = False, weights: Weights | None = None,
) -> DecoderGeometry:  # fmt: skip
    """Write `decoder.onnx`, its data and the embedding table into `out_dir`.

    Args:
        max_length: positions that the rotary table holds, at most the checkpoint's own limit.
        recipe: None keeps every weight as the checkpoint stores it.
        dry: check names and shapes only, without the bytes.
        weights: where linear layers come from; None: the checkpoint, rounded to nearest where the recipe
            says so.

    Returns:
        What the runtime must know of it.
    """
    if weights is None:
        weights = AsStored(checkpoint) if recipe is None else Nearest(checkpoint, recipe)
    level = 4 if recipe is None else recipe.accuracy_level
    embeddings = checkpoint.tensor("model.embed_tokens.weight", (config.vocab, config.hidden))
    if not dry:
        with (out_dir / EMBEDDINGS).open("wb") as stream:
            stream.write(embeddings.raw.data)
    with GraphWriter(out_dir / "decoder.onnx", dry) as graph:
        source = _Source(graph, checkpoint, config, weights, level)
        hidden = graph.input("embeds", "float32", ["batch", "tokens", config.hidden])
        positions = graph.input("positions", "int64", [3, "batch", "tokens"])
        lengths = (
            graph.input("last_index", "int32", ["batch"]),
            graph.input("total_length", "int32", []),
            graph.input("attention_bias", "float32", [1, 1, "tokens", "total"]),
        )
        rows = graph.input("rows", "int64", ["rows"])
        cos, sin = rotary_table(config.rope_theta, config.head_dim, max_length)
        tables = (graph.array("rotary.cos", cos), graph.array("rotary.sin", sin))
        residual, branch = hidden, None
        for layer in range(config.layers):
            with graph.scope(f"layer{layer}"):
                residual, branch = _layer(source, layer, residual, branch, positions, tables, lengths)
        assert branch is not None, "a decoder has layers"
        # Only the rows asked for are normalised and multiplied by the vocabulary.
        residual, branch = (graph.node("Gather", [v, rows], axis=1) for v in (residual, branch))
        norm = source.vector("model.norm.weight", config.hidden)
        last, _ = lower_skip_rms_norm(graph, residual, branch, norm, config.rms_norm_eps)
        graph.output("logits", "float32", ["batch", "rows", config.vocab], _head(source, last))
        graph.save()
    return DecoderGeometry(
        config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim, config.vocab,
        config.mrope_section, config.rope_theta, max_length, embeddings.dtype, branches=True,
    )  # fmt: skip


def _head(source: _Source, x: str) -> str:
    """Logits; a tied weight kept as stored is read from the embedding file."""
    config, graph = source.config, source.graph
    name = head_name(config)
    found = source.weights.linear(name, (config.vocab, config.hidden), head=True)
    if not isinstance(found, Tensor):
        return source.integers(x, name, found)
    place = StoredWeight(EMBEDDINGS, 0, found.raw.nbytes) if config.tied else None
    return lower_linear(graph, x, graph.weight(found, at=place))


def _layer(
    source: _Source, layer: int, residual: str, branch: str | None, positions: str,
    tables: tuple[str, str], lengths: tuple[str, str, str],
) -> tuple[str, str]:  # fmt: skip
    """One decoder layer: the residual stream and the branch still to be added to it, in and out."""
    graph, config, name = source.graph, source.config, f"model.layers.{layer}"
    before = source.vector(f"{name}.input_layernorm.weight", config.hidden)
    after = source.vector(f"{name}.post_attention_layernorm.weight", config.hidden)
    if branch is None:
        normed = lower_rms_norm(graph, residual, before, config.rms_norm_eps)
    else:
        normed, residual = lower_skip_rms_norm(graph, residual, branch, before, config.rms_norm_eps)
    attended = _attention(source, layer, normed, positions, tables, lengths)
    normed, residual = lower_skip_rms_norm(graph, residual, attended, after, config.rms_norm_eps)
    wide = (config.intermediate, config.hidden)
    gate = source.linear(normed, f"{name}.mlp.gate_proj", wide)
    up = source.linear(normed, f"{name}.mlp.up_proj", wide)
    return residual, source.linear(lower_swiglu(graph, gate, up), f"{name}.mlp.down_proj", wide[::-1])


def _attention(
    source: _Source,
    layer: int,
    x: str,
    positions: str,
    tables: tuple[str, str],
    lengths: tuple[str, str, str],
) -> str:
    """Projections, rotation and attention over the kept keys and values."""
    graph, config, name = source.graph, source.config, f"model.layers.{layer}.self_attn"
    kv_width = config.kv_heads * config.head_dim
    query = source.linear(x, f"{name}.q_proj", (config.hidden, config.hidden), bias=True)
    key = source.linear(x, f"{name}.k_proj", (kv_width, config.hidden), bias=True)
    value = source.linear(x, f"{name}.v_proj", (kv_width, config.hidden), bias=True)
    query = lower_mrope(graph, query, positions, *tables, config.mrope_section, config.heads)
    key = lower_mrope(graph, key, positions, *tables, config.mrope_section, config.kv_heads)
    shape: list[int | str] = ["batch", config.kv_heads, "capacity", config.head_dim]
    past = [graph.input(f"{part}.{layer}", "float32", shape) for part in ("keys", "values")]
    for part in ("keys", "values"):
        graph.output(f"new_{part}.{layer}", "float32", shape)
    cache = (past[0], past[1], f"new_keys.{layer}", f"new_values.{layer}")
    attended = lower_grouped_query_attention(
        graph, query, key, value, cache, *lengths, config.heads, config.kv_heads
    )
    return source.linear(attended, f"{name}.o_proj", (config.hidden, config.hidden))
