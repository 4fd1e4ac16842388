"""The decoder of the detector, as graph nodes: queries refine their boxes layer by layer.

Layout    Queries are rows (Q, d), boxes (Q, 4) centre x, centre y, width, height as shares of the picture.
Contract  Equal to transformers' decoder and heads; only the last layer's logits and boxes are made.
Elsewhere where the boxes start: detector_encoder.py.
Source    transformers 5.23, models/grounding_dino.
"""

from typing import Any

import numpy as np

from rexthinker_edge.export.detector_encoder import deform, feed_forward, multihead
from rexthinker_edge.export.detector_writer import DetectorWriter, values
from rexthinker_edge.kernels.deformable_attention import Levels

EDGE = 1e-5  # transformers' clamp before the logarithm


def write_decoder(
    writer: DetectorWriter, detector: Any, memory: tuple[str, str], levels: Levels, boxes: str
) -> tuple[str, str]:
    """Logits (Q, T) and boxes (Q, 4).

    Args:
        detector: transformers' GroundingDinoForObjectDetection.
        memory: cells (N, d) and words (T, d) as the encoder left them.
    """
    graph, decoder, text = writer.graph, detector.model.decoder, memory[1]
    rows = writer.array("queries", values(detector.model.query_position_embeddings.weight))
    given = boxes
    for index, layer in enumerate(decoder.layers):
        with graph.scope(f"decoder{index}"):
            given = boxes
            positions = _positions(writer, index, decoder, given)
            rows = _layer(writer, f"decoder.{index}", layer, (rows, positions, given), memory, levels)
            if index + 1 < len(decoder.layers):
                boxes = _refine(writer, f"decoder.{index}.boxes", decoder.bbox_embed[index], rows, given)
    rows = writer.norm(rows, decoder.layer_norm)
    logits = graph.node("Gemm", [rows, text], transB=1)
    return logits, _refine(writer, "boxes", detector.bbox_embed[-1], rows, given)


def _refine(writer: DetectorWriter, name: str, head: Any, rows: str, boxes: str) -> str:
    """Move the boxes in logits."""
    graph = writer.graph
    clipped = graph.node("Clip", [boxes, writer.number(EDGE), writer.number(1 - EDGE)])
    rest = graph.node("Sub", [writer.number(1), clipped])
    start = graph.node("Log", [graph.node("Div", [clipped, rest])])
    moved = writer.perceptron(rows, name, head.layers)
    return graph.node("Sigmoid", [writer.add(moved, start)])


def _positions(writer: DetectorWriter, index: int, decoder: Any, boxes: str) -> str:
    """(Q, d): where and how large each box is, y before x, through the reference head.

    transformers takes sine and cosine in turn; here they stand side by side and the head's columns follow.
    """
    graph, half = writer.graph, decoder.config.d_model // 2
    frequency = 2 * np.pi / np.float64(10_000) ** (2 * np.arange(half // 2) / half)
    apart = graph.node("Reshape", [boxes, writer.shape(-1, 4, 1)])
    angle = graph.node("Mul", [apart, graph.constant(frequency.astype(np.float32))])
    waves = graph.node("Concat", [graph.node("Sin", [angle]), graph.node("Cos", [angle])], axis=-1)
    waves = graph.node("Reshape", [waves, writer.shape(-1, 4 * half)])
    first, second = decoder.reference_points_head.layers
    columns = np.arange(4 * half).reshape(4, half // 2, 2)[[1, 0, 2, 3]].transpose(0, 2, 1).reshape(-1)
    weight = np.ascontiguousarray(values(first.weight)[:, columns])
    inner = writer.product(waves, f"decoder.{index}.places.0", weight, values(first.bias))
    return writer.linear(graph.node("Relu", [inner]), f"decoder.{index}.places.1", second)


def _layer(
    writer: DetectorWriter, name: str, layer: Any, queries: tuple[str, str, str], memory: tuple[str, str],
    levels: Levels,
) -> str:  # fmt: skip
    """Queries (rows, positions, boxes) see each other, the caption, and the picture around their boxes."""
    graph, (rows, positions, boxes), (picture, text) = writer.graph, queries, memory
    seen = multihead(writer, f"{name}.self", layer.self_attn, writer.add(rows, positions), None, rows)
    rows = writer.norm(writer.add(rows, seen), layer.self_attn_layer_norm)
    told = multihead(
        writer, f"{name}.words", layer.encoder_attn_text, writer.add(rows, positions), text, text
    )
    rows = writer.norm(writer.add(rows, told), layer.encoder_attn_text_layer_norm)
    attention = layer.encoder_attn
    middle, size = graph.nodes("Split", [boxes], ["*", "*"], axis=1, num_outputs=2)
    flat = writer.shape(-1, 2, 1, 1)
    # places count from -1 to 1: twice the share, less one
    base = graph.node("Sub", [graph.node("Mul", [middle, writer.number(2)]), writer.number(1)])
    scale = graph.node("Mul", [size, writer.number(1 / attention.n_points)])
    placing = (graph.node("Reshape", [scale, flat]), graph.node("Reshape", [base, flat]))
    around = deform(writer, name, attention, writer.add(rows, positions), picture, placing, levels)
    rows = writer.norm(writer.add(rows, around), layer.encoder_attn_layer_norm)
    return feed_forward(writer, name, layer, rows)
