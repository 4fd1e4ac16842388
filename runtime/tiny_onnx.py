"""Just enough of ONNX's file format to write a few nodes and to read which weights a file holds.

What      A device has no `onnx` package. The self-test still wants small graphs of real operators, and the
          forecast wants the shapes of a bundle's weights; both are a few fields of Protocol Buffers.
Contract  `TinyGraph` is a `kernels.Builder`, so the very lowerings of the models are what it tests.
          `read_contents` never reads weights' bytes.
Elsewhere the self-test: kernel_checks.py; forecasts: roofline.py; writing real graphs: export/graph.py.
Source    onnx.proto3, IR version 10; protobuf's wire format
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Attribute
from rexthinker_edge.runtime.errors import BundleError

OPSET, IR_VERSION = 21, 10
ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, (list, tuple)):
        kind, field = (6, 7) if any(isinstance(item, float) for item in value) else (7, 8)
        items = b"".join(
            _varint(field << 3 | 5) + struct.pack("<f", item) if kind == 6 else _number(field, int(item))
            for item in value
        )
        return _text(1, name) + items + _number(20, kind)
    if isinstance(value, float):
        return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    return _text(1, name) + _text(4, value) + _number(20, 3)


def _value(name: str, element: int, shape: list[int | str] | None) -> bytes:
    tensor = _number(1, element)
    if shape is not None:
        dims = b"".join(
            _text(1, _text(2, side) if isinstance(side, str) else _number(1, side)) for side in shape
        )
        tensor += _text(2, dims)
    return _text(1, name) + _text(2, _text(1, tensor))


class TinyGraph:
    """A small graph in memory; a `Builder`."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []

    def node(self, op: str, inputs: list[str], domain: str = "", **attributes: Attribute) -> str:
        """As `Builder.node`."""
        return self.nodes(op, inputs, ["*"], domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Attribute
    ) -> list[str]:
        """As `Builder.nodes`."""
        count = len(self._nodes)
        names = [f"v{count}.{place}" if name == "*" else name for place, name in enumerate(outputs)]
        parts = [_text(1, name) for name in inputs] + [_text(2, name) for name in names]
        parts += [_text(4, op), _text(7, domain)]
        parts += [_text(5, _attribute(name, value)) for name, value in attributes.items()]
        self._nodes.append(b"".join(parts))
        return names

    def constant(self, array: NDArray[Any]) -> str:
        """As `Builder.constant`."""
        name = f"c{len(self._constants)}"
        parts = [_number(1, side) for side in array.shape]
        parts += [_number(2, ELEMENTS[array.dtype.name]), _text(8, name), _text(9, array.tobytes())]
        self._constants.append(b"".join(parts))
        return name

    def input(self, name: str, array: NDArray[Any]) -> str:
        """Declare an input of an array's type and shape."""
        self._inputs.append(_value(name, ELEMENTS[array.dtype.name], list(array.shape)))
        return name

    def free_input(self, name: str, kind: str = "float32") -> str:
        """Declare an input of any shape."""
        self._inputs.append(_value(name, ELEMENTS[kind], None))
        return name

    def output(self, name: str) -> str:
        """Declare a float32 output of any shape."""
        self._outputs.append(_value(name, ELEMENTS["float32"], None))
        return name

    def serialise(self) -> bytes:
        """The model as bytes that ONNX Runtime opens."""
        parts = [_text(1, node) for node in self._nodes] + [_text(2, "tiny")]
        parts += [_text(5, constant) for constant in self._constants]
        parts += [_text(11, value) for value in self._inputs] + [_text(12, value) for value in self._outputs]
        opsets = [_text(8, _text(1, "") + _number(2, OPSET)), _text(8, _text(1, CONTRIB) + _number(2, 1))]
        return b"".join([_number(1, IR_VERSION), _text(7, b"".join(parts)), *opsets])


@dataclass(frozen=True)
class Contents:
    """What a graph file holds, as far as a forecast needs it."""

    nodes: int
    weights: dict[str, tuple[int, ...]]  # initializer: its axes


def read_contents(path: Path) -> Contents:
    """Count the nodes of an ONNX file and read its weights' shapes.

    Raises:
        BundleError: the file is no ONNX graph.
    """
    nodes, weights = 0, {}
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        try:
            with memoryview(raw) as view:
                for field, value in _fields(view):
                    if field == 7 and isinstance(value, memoryview):
                        for inner, item in _fields(value):
                            nodes += inner == 1
                            if inner == 5 and isinstance(item, memoryview):
                                name, shape = _tensor(item)
                                weights[name] = shape
                                item.release()
                            elif isinstance(item, memoryview):
                                item.release()
                    if isinstance(value, memoryview):
                        value.release()
        except (ValueError, IndexError) as error:
            raise BundleError(
                f"{path.parent.name}/{path.name}: {error}, an ONNX graph is needed. Copy the bundle again."
            ) from error
    return Contents(nodes, weights)


def _tensor(view: memoryview) -> tuple[str, tuple[int, ...]]:
    name, shape = "", list[int]()
    for field, value in _fields(view):
        if field == 1 and isinstance(value, int):
            shape.append(value)
        elif field == 1 and isinstance(value, memoryview):  # packed
            place = 0
            while place < len(value):
                side, place = _read_varint(value, place)
                shape.append(side)
        elif field == 8 and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        if isinstance(value, memoryview):
            value.release()
    return name, tuple(shape)


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one message; 4- and 8-byte numbers are passed over."""
    place = 0
    while place < len(view):
        key, place = _read_varint(view, place)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, place = _read_varint(view, place)
            yield field, number
        elif wire == 2:
            length, place = _read_varint(view, place)
            if place + length > len(view):
                raise ValueError("cut short")
            yield field, view[place : place + length]
            place += length
        elif wire in (1, 5):
            place += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("no number")
