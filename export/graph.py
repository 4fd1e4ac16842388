"""Writes an ONNX graph whose weights stream to files beside it, one tensor at a time.

Layout    NAME.onnx holds nodes and small constants; NAME.onnx.data the weights, each aligned to 64 bytes
          (4,096 from a mebibyte up) so that they can be memory-mapped.
Contract  A weight is stored in the dtype it came in. bfloat16 and float16 are followed by a Cast to float32,
          which ONNX Runtime folds at load: half the bytes, the same numbers. At no time is more than one
          weight held in memory.
Elsewhere what to write: kernels/ (one operation each), decoder_graph.py, vision_graph.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.kernels.builder import CONTRIB, Attribute

OPSET = 21
IR_VERSION = 10  # read by ONNX Runtime 1.20 and later
ELEMENT_TYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
}


@dataclass(frozen=True)
class StoredWeight:
    """Where a tensor's bytes lie: a file beside the graph, and a place in it."""

    location: str
    offset: int
    length: int


class GraphWriter:
    """Builds one graph; use as a context manager and `save` at the end."""

    def __init__(self, path: Path, dry: bool = False) -> None:
        """Write to `path` (NAME.onnx) and `path`.data, which are created or overwritten.

        Args:
            dry: leave the weights' bytes out; the result is for checking names and shapes only.
        """
        self.path, self.dry = path, dry
        self.data_name = path.name + ".data"
        self._data = (path.parent / self.data_name).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[bytes, str] = {}
        self._scope: list[str] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes made inside, so that a profile reads like the model."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def _fresh(self, op: str) -> str:
        self._count += 1
        return "/".join([*self._scope, f"{op}_{self._count}"])

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Attribute) -> str:
        """Add a node with one output and return the output's name."""
        return self.nodes(op, inputs, ["*"], domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Attribute
    ) -> list[str]:
        """Add a node; "*" in `outputs` asks for a fresh name, "" leaves an optional output out."""
        name = self._fresh(op)
        named = [f"{name}:{i}" if given == "*" else given for i, given in enumerate(outputs)]
        self._nodes.append(helper.make_node(op, inputs, named, name=name, domain=domain, **attributes))
        return named

    def constant(self, array: NDArray[Any]) -> str:
        """A small constant inside the graph; equal ones are stored once."""
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def input(self, name: str, dtype: str, shape: list[int | str]) -> str:
        """Declare a graph input; a string in `shape` names a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: list[int | str], value: str | None = None) -> None:
        """Declare a graph output, renaming `value` where given."""
        if value is not None:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"output/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape))

    def weight(
        self, tensor: Tensor, shape: tuple[int, ...] | None = None, at: StoredWeight | None = None
    ) -> str:
        """Store a tensor and return the name of its float32 (or integer) value.

        Args:
            shape: view it so, when it differs from the stored one (same number of elements).
            at: it already lies in this file beside the graph; nothing is written then.
        """
        name = self.stored(tensor, shape, at)
        if tensor.dtype in ("bfloat16", "float16"):
            return self.node("Cast", [name], to=TensorProto.FLOAT)
        return name

    def stored(
        self, tensor: Tensor, shape: tuple[int, ...] | None = None, at: StoredWeight | None = None
    ) -> str:
        """Store a tensor and return the name of its value in the dtype it came in; as `weight` otherwise."""
        assert tensor.name not in self._initializers, tensor.name
        place = self._append(tensor) if at is None else at
        proto = TensorProto(name=tensor.name, data_type=ELEMENT_TYPES[tensor.dtype])
        proto.dims.extend(tensor.shape if shape is None else shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", place.location), ("offset", place.offset), ("length", place.length)):
            proto.external_data.add(key=key, value=str(value))
        self._initializers[tensor.name] = proto
        return tensor.name

    def array(self, name: str, array: NDArray[Any]) -> str:
        """Store a float32 or integer array under `name` as a weight."""
        return self.weight(Tensor.from_array(name, array))

    def _append(self, tensor: Tensor) -> StoredWeight:
        if self.dry:
            return StoredWeight(self.data_name, 0, tensor.raw.nbytes)
        align = 4096 if tensor.raw.nbytes >= 1 << 20 else 64
        offset = -(-self._data.tell() // align) * align
        self._data.write(bytes(offset - self._data.tell()))
        self._data.write(tensor.raw.data)
        return StoredWeight(self.data_name, offset, tensor.raw.nbytes)

    def save(self) -> None:
        """Write the graph file and close the data file; nothing may be added afterwards."""
        graph = helper.make_graph(
            self._nodes, self.path.stem, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="rexthinker-edge"
        )
        self._data.close()
        self.path.write_bytes(model.SerializeToString())
