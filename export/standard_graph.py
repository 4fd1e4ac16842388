"""Says a bundle's graph again in standard ONNX operators with float32 weights.

What      TensorRT knows none of ONNX Runtime's own operators. Here a finished graph is read, each such
          operator is replaced by its standard lowering, stored bfloat16 and integer weights become float32,
          and the result is written beside nothing: it is a builder's input, never part of a bundle.
Contract  Equal to the graph it was made from within float32 rounding (tests/export/test_tensorrt.py).
          An operator without a lowering, or one used in a way that is not known, is an error by name.
          Weights are read and written one at a time.
Elsewhere what replaces what: standard_operators.py, kernels/standard_lowerings.py; half precision: half.py;
          engines: tensorrt.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from rexthinker_edge.kernels.bfloat16 import to_float32
from rexthinker_edge.kernels.builder import Attribute
from rexthinker_edge.runtime.errors import ConfigError

NEWEST_OPSET = (
    19  # from 20 on GridSample's "bilinear" is called "linear", which TensorRT 10.1 takes for nearest
)
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
        kind: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(self.element))
        return math.prod(self.shape) * int(kind.itemsize)


Attributes = dict[str, Any]
Lowering = Callable[["StandardGraph", list[str], Attributes], str]


class StandardGraph:
    """A graph being rewritten; a `Builder` for the lowerings. Make one with
    `standard_operators.standardise`."""

    def __init__(self, path: Path, lowerings: Mapping[tuple[str, str], "Lowering"]) -> None:
        """Take `path`, whose external data lies beside it; `lowerings` by domain and operator."""
        self._lowerings = lowerings
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
            array: NDArray[Any] = numpy_helper.to_array(copy)
            return array.astype(np.float32) if copy.data_type == TensorProto.FLOAT16 else array

        element = TensorProto.FLOAT if tensor.data_type in FLOAT_STORED else tensor.data_type
        return Weight(tuple(tensor.dims), element, read)

    def _take(self, node: NodeProto) -> None:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        inputs = [self._renamed.get(name, name) for name in node.input]
        if node.op_type == "Constant" and "value" in attributes:
            self.weights[node.output[0]] = self._weight(attributes["value"])
            return
        if node.op_type == "Cast" and self._is_float(inputs[0]) and attributes["to"] == TensorProto.FLOAT:
            self._renamed[node.output[0]] = inputs[0]  # a stored bfloat16, widened by now
            return
        lowering = self._lowerings.get((node.domain, node.op_type))
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

    def _is_float(self, name: str) -> bool:
        return name in self.weights and self.weights[name].element == TensorProto.FLOAT

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
        return self._model(dict.fromkeys(self.weights))

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


def _opset(model: onnx.ModelProto) -> int:
    return next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))
