"""Which standard operators stand for each of ONNX Runtime's own, and for those that TensorRT reads wrongly.

Contract  A lowering takes an operator's inputs and attributes and returns the value that stands for its
          output. An attribute or an optional input that it does not know is an error by name.
Elsewhere the graph that is rewritten: standard_graph.py; the definitions: kernels/.
Source    docs/sources.md#tensorrt-operators
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from rexthinker_edge.export.standard_graph import Attributes, Lowering, StandardGraph, Weight
from rexthinker_edge.kernels.builder import CONTRIB
from rexthinker_edge.kernels.matmul_nbits import BlockWeight, dequantize, unpack
from rexthinker_edge.kernels.standard_lowerings import (
    lower_standard_attention,
    lower_standard_linear,
    lower_standard_mrope,
    lower_standard_rms_norm,
)
from rexthinker_edge.runtime.errors import ConfigError


def standardise(path: Path) -> StandardGraph:
    """Read a bundle's graph and rewrite it; see the module's contract.

    Raises:
        ConfigError: an operator has no lowering.
    """
    graph = StandardGraph(path, LOWERINGS)
    graph.read()
    return graph


def _only(node: str, attributes: Attributes, **known: Any) -> Attributes:
    """Attributes with defaults filled in; one that is not known is an error."""
    if unknown := sorted(set(attributes) - set(known)):
        raise ConfigError(
            f"operator {node}: attribute {unknown[0]} is set, no lowering for this target honours it. "
            "Export the bundle with this version."
        )
    return {**known, **attributes}


def _rms_norm(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    chosen = _only("SimplifiedLayerNormalization", attributes, axis=-1, epsilon=1e-5, stash_type=1)
    assert chosen["axis"] == -1, chosen
    return lower_standard_rms_norm(graph, inputs[0], inputs[1], chosen["epsilon"])


def _fused_matmul(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    chosen = _only("FusedMatMul", attributes, transA=0, transB=0, alpha=1.0, transBatchA=0, transBatchB=0)
    assert (chosen["transA"], chosen["alpha"], chosen["transBatchA"], chosen["transBatchB"]) == (0, 1.0, 0, 0)
    weight = graph.weights.get(inputs[1])
    if weight is None or not chosen["transB"]:
        return lower_standard_linear(graph, inputs[0], inputs[1], bool(chosen["transB"]))
    return lower_standard_linear(graph, inputs[0], _transposed(graph, inputs[1], weight), False)


def _transposed(graph: StandardGraph, name: str, weight: Weight) -> str:
    """A constant turned when it is written: a Transpose less in every layer."""
    turned = f"{name}.transposed"
    graph.weights[turned] = Weight(weight.shape[::-1], weight.element, lambda: weight.read().T)
    return turned


def _matmul_nbits(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    chosen = _only("MatMulNBits", attributes, K=0, N=0, bits=4, block_size=0, accuracy_level=0)
    codes, scales, *rest = inputs[1:]
    zeros = rest[0] if rest and rest[0] else None
    if any(rest[1:2]):
        raise ConfigError(f"{graph.name}: MatMulNBits with a column order has no lowering for this target.")
    stored = {name: graph.weights[name] for name in (codes, scales, zeros) if name}
    rows, columns, block, bits = chosen["N"], chosen["K"], chosen["block_size"], chosen["bits"]

    def read() -> NDArray[Any]:
        blocks = -(-columns // block)
        scale = stored[scales].read().reshape(rows, blocks)
        middle = np.full((rows, blocks), 2 ** (bits - 1), np.uint8)
        zero = middle if zeros is None else unpack(stored[zeros].read().reshape(rows, -1), bits, blocks)
        wide = unpack(stored[codes].read().reshape(rows, blocks, -1), bits, block).reshape(rows, -1)
        return dequantize(BlockWeight(wide, scale, zero, bits, block, columns)).T

    name = f"{codes}.dequantised"
    graph.weights[name] = Weight((columns, rows), TensorProto.FLOAT, read)
    product = graph.node("MatMul", [inputs[0], name])
    return graph.node("Add", [product, rest[2]]) if len(rest) > 2 and rest[2] else product


def _dynamic_int8(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    """The activations' rounding is left out: it is ONNX Runtime's way to use integer units, not the model."""
    _only("DynamicQuantizeMatMul", attributes)
    x, codes, scales, zero, bias = [*inputs, "", ""][:5]
    if zero:
        raise ConfigError(f"{graph.name}: DynamicQuantizeMatMul with a zero point has no lowering here.")
    stored, scale = graph.weights[codes], graph.weights[scales]
    name = f"{codes}.dequantised"
    graph.weights[name] = Weight(
        stored.shape, TensorProto.FLOAT, lambda: stored.read().astype(np.float32) * scale.read()
    )
    product = graph.node("MatMul", [x, name])
    return graph.node("Add", [product, bias]) if bias else product


def _gelu(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    """Opset 19 has none: the definition of kernels/gelu.py, part by part."""
    chosen = _only("Gelu", attributes, approximate=b"none")
    assert chosen["approximate"] == b"none", chosen
    half, one, root = (graph.constant(np.array(v, np.float32)) for v in (0.5, 1.0, math.sqrt(0.5)))
    inner = graph.node("Erf", [graph.node("Mul", [inputs[0], root])])
    return graph.node("Mul", [graph.node("Mul", [inputs[0], half]), graph.node("Add", [inner, one])])


def _grid_sample(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    """The names of opset 16 for its modes."""
    chosen = _only("GridSample", attributes, mode=b"linear", padding_mode=b"zeros", align_corners=0)
    mode = {b"linear": "bilinear", b"cubic": "bicubic"}.get(chosen["mode"], chosen["mode"].decode())
    return graph.node(
        "GridSample", inputs,
        mode=mode, padding_mode=chosen["padding_mode"].decode(), align_corners=chosen["align_corners"],
    )  # fmt: skip


def _mrope(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    chosen = _only(
        "MRotaryEmbedding", attributes, mrope_section=[], num_heads=0, rotary_embedding_dim=0, interleaved=0
    )
    temporal, height, width = (int(count) for count in chosen["mrope_section"])
    assert chosen["interleaved"] == 0, chosen
    return lower_standard_mrope(
        graph, inputs[0], inputs[1], inputs[2], inputs[3], (temporal, height, width), chosen["num_heads"]
    )


def _attention(graph: StandardGraph, inputs: list[str], attributes: Attributes) -> str:
    chosen = _only("MultiHeadAttention", attributes, num_heads=0, mask_filter_value=-1e4)
    query, key, value, bias, lengths, *more = [*inputs, "", "", ""][: max(5, len(inputs))]
    if bias or any(more):
        raise ConfigError(f"{graph.name}: MultiHeadAttention with more than key lengths has no lowering.")
    width = graph.width(query)
    return lower_standard_attention(graph, query, key, value, chosen["num_heads"], width, lengths or None)


LOWERINGS: dict[tuple[str, str], Lowering] = {
    ("", "Gelu"): _gelu,
    ("", "GridSample"): _grid_sample,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    (CONTRIB, "DynamicQuantizeMatMul"): _dynamic_int8,
    (CONTRIB, "FusedMatMul"): _fused_matmul,
    (CONTRIB, "MatMulNBits"): _matmul_nbits,
    (CONTRIB, "MRotaryEmbedding"): _mrope,
    (CONTRIB, "MultiHeadAttention"): _attention,
}
