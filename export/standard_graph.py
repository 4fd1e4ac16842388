"""Says a bundle's graph again in standard ONNX operators with float32 weights.

What      TensorRT knows none of ONNX Runtime's own operators. Here a finished graph is read, each such
          operator is replaced by its standard lowering, stored bfloat16 and integer weights become float32,
          and the result is written beside nothing: it is a builder's input, never part of a bundle.
Contract  Equal to the graph it was made from within float32 rounding (tests/export/test_standard_graph.py).
          An operator without a lowering, or one used in a way that is not known, is an error by name.
          Weights are read and written one at a time.
Elsewhere the lowerings: kernels/standard_lowerings.py; half precision: half.py; engines: tensorrt.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from rexthinker_edge.kernels.bfloat16 import to_float32
from rexthinker_edge.kernels.builder import CONTRIB, Attribute
from rexthinker_edge.kernels.matmul_nbits import BlockWeight, dequantize, unpack
from rexthinker_edge.kernels.standard_lowerings import (
    lower_standard_attention,
    lower_standard_linear,
    lower_standard_mrope,
    lower_standard_rms_norm,
)
from rexthinker_edge.runtime.errors import ConfigError

NEWEST_OPSET = 20  # the newest that TensorRT 10.0 reads
INLINE_BYTES = 1024  # smaller constants stand in the graph, where shape inference sees them
FLOAT_STORED = (TensorProto.BFLOAT16, TensorProto.FLOAT16)
NUMPY_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}


@dataclass(frozen=True)
class Weight:
    """A constant whose value is read when it is written."""

    shape: tuple[int, ...]
    element: int
    read: Callable[[], NDArray[Any]]

    @property
    def bytes(self) -> int:
        """Bytes of the value."""
        return int(np.prod(self.shape, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(self.element).itemsize


class StandardGraph:
    """A graph being rewritten; a `Builder` for the lowerings. Make one with `standardise`."""

    def __init__(self, path: Path) -> None:
        """Read `path`, whose external data lies beside it."""
        self._directory = path.parent
        self._source = onnx.load(path, load_external_data=False)
        self.name = path.name
        self.opset = min(_opset(self._source), NEWEST_OPSET)
        self.inputs, self.outputs = list(self._source.graph.input), list(self._source.graph.output)
        self.nodes_list: list[NodeProto] = []
        self.weights: dict[str, Weight] = {}
        self._renamed: dict[str, str] = {}
        self._known: dict[bytes, str] = {}
        self._prefix, self._count = "", 0

    # what a lowering asks for

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Attribute) -> str:
        """Add a node, or return the value of an equal one that stands there already."""
        return self.nodes(op, inputs, ["*"], domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Attribute
    ) -> list[str]:
        """As `Builder.nodes`, for one output of a standard operator."""
        assert (domain, outputs) == ("", ["*"]), (domain, outputs)
        made = helper.make_node(op, [self._renamed.get(name, name) for name in inputs], ["y"], **attributes)
        key = made.SerializeToString(deterministic=True)
        if key not in self._known:
            self._count += 1
            made.name = f"{self._prefix}/{op}_{self._count}"
            made.output[0] = f"{made.name}:0"
            self.nodes_list.append(made)
            self._known[key] = made.output[0]
        return [self._known[key]]

    def constant(self, array: NDArray[Any]) -> str:
        """A constant; equal ones are kept once."""
        key = b"constant" + f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self._known:
            name = f"standard_constant_{len(self._known)}"
            self.weights[name] = Weight(array.shape, NUMPY_TYPES[array.dtype], lambda: array)
            self._known[key] = name
        return self._known[key]

    # what the rewriting asks for

    def read(self) -> None:
        """Take the source's constants and rewrite its nodes."""
        for tensor in self._source.graph.initializer:
            self.weights[tensor.name] = self._weight(tensor)
        for node in self._source.graph.node:
            self._take(node)
        for output in self.outputs:
            if (value := self._renamed.get(output.name)) is not None:
                self.nodes_list.append(helper.make_node("Identity", [value], [output.name]))
        self.drop_unused()

    def drop_unused(self) -> None:
        """Forget constants that no node reads."""
        used = {name for node in self.nodes_list for name in node.input}
        self.weights = {name: weight for name, weight in self.weights.items() if name in used}

    def _weight(self, tensor: TensorProto) -> Weight:
        def read() -> NDArray[Any]:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            if copy.data_location == TensorProto.EXTERNAL:
                load_external_data_for_tensor(copy, str(self._directory))
            if copy.data_type == TensorProto.BFLOAT16:
                return to_float32(np.frombuffer(copy.raw_data, np.uint16)).reshape(tuple(copy.dims))
            array = numpy_helper.to_array(copy)
            return array.astype(np.float32) if copy.data_type == TensorProto.FLOAT16 else array

        element = TensorProto.FLOAT if tensor.data_type in FLOAT_STORED else tensor.data_type
        return Weight(tuple(tensor.dims), element, read)

    def _take(self, node: NodeProto) -> None:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        inputs = [self._renamed.get(name, name) for name in node.input]
        if node.op_type == "Constant" and "value" in attributes:
            self.weights[node.output[0]] = self._weight(attributes["value"])
            return
        if node.op_type == "Cast" and inputs[0] in self.weights and attributes["to"] == TensorProto.FLOAT:
            if self.weights[inputs[0]].element == TensorProto.FLOAT:  # a stored bfloat16, widened by now
                self._renamed[node.output[0]] = inputs[0]
                return
        lowering = LOWERINGS.get((node.domain, node.op_type))
        if lowering is None:
            if node.domain not in ("", "ai.onnx"):
                raise ConfigError(
                    f"{self.name}: operator {node.domain}.{node.op_type} ({node.name}) has no lowering for "
                    "this target, standard ONNX operators are needed. Export the bundle with this version."
                )
            copy = NodeProto()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(inputs)
            self.nodes_list.append(copy)
            return
        self._prefix = node.name or node.output[0]
        self._renamed[node.output[0]] = lowering(self, inputs, attributes)

    def width(self, value: str) -> int:
        """The last axis of a value, inferred from the nodes so far.

        Raises:
            ConfigError: it is not a fixed number.
        """
        model = self.skeleton()
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
        found = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
        if not found or not found[-1].dim_value:
            raise ConfigError(f"{self.name}: the width of {value} is not fixed, attention needs it.")
        return int(found[-1].dim_value)

    def skeleton(self) -> onnx.ModelProto:
        """The graph with its small constants; large ones have type and shape, and no bytes."""
        return self._model({name: None for name in self.weights})

    def _model(self, places: dict[str, tuple[str, int] | None]) -> onnx.ModelProto:
        tensors = []
        for name, weight in self.weights.items():
            if weight.bytes <= INLINE_BYTES:
                tensors.append(numpy_helper.from_array(np.asarray(weight.read(), order="C"), name))
                continue
            location, offset = places[name] or ("absent", 0)
            tensor = TensorProto(name=name, data_type=weight.element, data_location=TensorProto.EXTERNAL)
            tensor.dims.extend(weight.shape)
            for key, value in (("location", location), ("offset", offset), ("length", weight.bytes)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
        graph = helper.make_graph(self.nodes_list, "standard", self.inputs, self.outputs, tensors)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9,
            producer_name="rexthinker-edge",
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write `path` and, beside it, `path`.data with the large constants."""
        places: dict[str, tuple[str, int] | None] = {}
        location = path.name + ".data"
        with (path.parent / location).open("wb") as stream:
            for name, weight in self.weights.items():
                if weight.bytes > INLINE_BYTES:
                    stream.write(bytes(-stream.tell() % 64))
                    places[name] = (location, stream.tell())
                    stream.write(np.ascontiguousarray(weight.read()).data)
        path.write_bytes(self._model(places).SerializeToString())


def standardise(path: Path) -> StandardGraph:
    """Read a bundle's graph and rewrite it; see the module's contract.

    Raises:
        ConfigError: an operator has no lowering.
    """
    graph = StandardGraph(path)
    graph.read()
    return graph


def _opset(model: onnx.ModelProto) -> int:
    return next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


Attributes = dict[str, Any]


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


LOWERINGS: dict[tuple[str, str], Callable[[StandardGraph, list[str], Attributes], str]] = {
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    (CONTRIB, "FusedMatMul"): _fused_matmul,
    (CONTRIB, "MatMulNBits"): _matmul_nbits,
    (CONTRIB, "MRotaryEmbedding"): _mrope,
    (CONTRIB, "MultiHeadAttention"): _attention,
}
