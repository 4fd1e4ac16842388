"""Writes `detector-text.onnx`: a caption in, its words as the detector meets them out.

Layout    inputs input_ids (T,), position_ids (T,) int64 and text_bias (T, T) float32, 0 where a row sees a
          column and float32's least number where not; outputs text (T, d) and text_positions (T, d).
Contract  Everything here depends on the caption alone, so a caption needs it once. The table of word vectors
          stays in bfloat16 and only the rows asked for are widened. All token types are 0: one sentence.
Elsewhere who keeps the outputs: runtime/detector.py.
Source    transformers 5.23, models/bert and models/grounding_dino.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.export.detector_writer import DetectorWriter, values
from rexthinker_edge.kernels.softmax_attention import lower_row_attention


def write_text(writer: DetectorWriter, model: Any) -> None:
    """BERT, the projection to d, and the sinusoids of positions.

    Args:
        model: transformers' GroundingDinoModel.
    """
    graph, bert, config = writer.graph, model.text_backbone, model.config
    ids = graph.input("input_ids", "int64", ["tokens"])
    positions = graph.input("position_ids", "int64", ["tokens"])
    bias = graph.input("text_bias", "float32", ["tokens", "tokens"])
    table = bert.embeddings
    x = writer.add(
        _rows(writer, "word_table", values(table.word_embeddings.weight), ids),
        graph.constant(values(table.token_type_embeddings.weight)[0]),
    )
    x = writer.add(x, _rows(writer, "place_table", values(table.position_embeddings.weight), positions))
    x = writer.norm(x, table.LayerNorm)
    for index, layer in enumerate(bert.encoder.layer):
        with graph.scope(f"bert{index}"):
            x = _layer(writer, f"bert.{index}", layer, x, bias)
    text = writer.linear(x, "text.projection", model.text_projection)
    graph.output("text", "float32", ["tokens", config.d_model], text)
    places = sinusoid_rows(int(table.position_embeddings.weight.shape[0]), config.d_model)
    placed = graph.node("Gather", [graph.array("sinusoids", places), positions], axis=0)
    graph.output("text_positions", "float32", ["tokens", config.d_model], placed)


def _rows(writer: DetectorWriter, name: str, table: NDArray[np.float32], index: str) -> str:
    """Rows of a table, kept in bfloat16 where that is exact."""
    bits = table.view(np.uint32)
    if np.any(bits & 0xFFFF):
        return writer.graph.node("Gather", [writer.graph.array(name, table), index], axis=0)
    raw = (bits >> 16).astype(np.uint16).reshape(-1).view(np.uint8)
    stored = writer.graph.stored(Tensor(name, "bfloat16", table.shape, raw))
    rows = writer.graph.node("Gather", [stored, index], axis=0)
    return writer.graph.node("Cast", [rows], to=TensorProto.FLOAT)


def _layer(writer: DetectorWriter, name: str, layer: Any, x: str, bias: str) -> str:
    """One BERT layer over (T, hidden)."""
    own, out = layer.attention.self, layer.attention.output
    width = int(own.query.weight.shape[0])
    parts = writer.linear(x, f"{name}.qkv", own.query, own.key, own.value)
    q, k, v = writer.graph.nodes("Split", [parts], ["*", "*", "*"], axis=1, num_outputs=3)
    seen = lower_row_attention(writer.graph, q, k, v, own.num_attention_heads, width, bias)
    x = writer.norm(writer.add(writer.linear(seen, f"{name}.out", out.dense), x), out.LayerNorm)
    inner = writer.mlp(x, f"{name}.mlp", layer.intermediate.dense, layer.output.dense, "gelu")
    return writer.norm(writer.add(inner, x), layer.output.LayerNorm)


def sinusoid_rows(count: int, width: int) -> NDArray[np.float32]:
    """(count, width): row p holds sine and cosine in turn of p · 2π / 10000^(2i / width)."""
    pair = torch.arange(width) // 2
    angle = torch.arange(count)[:, None].float() * (2 * torch.pi) / 10_000 ** (2 * pair / width)
    return np.asarray(torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).numpy())
