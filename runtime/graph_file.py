"""Reads a whole ONNX graph into something that can be changed, and writes it again, without `onnx`.

What      A device has no `onnx` package, and a GPU wants the decoder's graph with other types than the file
          has. Nodes, weights' entries and inputs become objects; everything else is carried over as bytes.
Layout    Protocol buffers: a message is fields, each a key (number << 3 | wire type) and a value. `Fields`
          keeps them in order: (number, wire type, int or bytes).
Contract  Reading and writing what was not changed gives a graph that ONNX Runtime takes for the same one.
          Weights' bytes are not looked at; those that lie beside the graph are not opened.
Elsewhere which files are safe to read: graph_check.py; small graphs from nothing: tiny_onnx.py; what is
          changed: half_graph.py.
Source    onnx.proto3, IR version 10; protobuf's wire format
"""

from dataclasses import dataclass, field
from pathlib import Path

from rexthinker_edge.runtime.errors import BundleError

FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, BFLOAT16 = 1, 2, 3, 6, 7, 10, 16
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}

MODEL_GRAPH, MODEL_DOMAIN, DOMAIN_NAME, DOMAIN_VERSION = 7, 8, 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUES = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_TYPE, TYPE_INT = 1, 3, 20, 2
TENSOR_TYPE, TENSOR_NAME = 2, 8
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_ELEMENT, TENSOR_SHAPE, SHAPE_AXIS = 1, 2, 1, 1, 2, 1

Fields = list[tuple[int, int, int | bytes]]


@dataclass
class Node:
    """One operator. `attributes` are messages by their name, to be read and set with the functions below."""

    op: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    name: str = ""
    attributes: dict[str, Fields] = field(default_factory=dict)

    def whole(self, attribute: str) -> int | None:
        """An attribute that is a whole number; None where it is not set."""
        for number, _, value in self.attributes.get(attribute, []):
            if number == ATTRIBUTE_INT and isinstance(value, int):
                return value
        return None

    def set_whole(self, attribute: str, value: int) -> None:
        """Set an attribute to a whole number from 0."""
        assert value >= 0, value
        self.attributes[attribute] = [
            (ATTRIBUTE_NAME, BYTES, attribute.encode()),
            (ATTRIBUTE_INT, VARINT, value),
            (ATTRIBUTE_TYPE, VARINT, TYPE_INT),
        ]


@dataclass
class Weight:
    """A weight's entry; its bytes stay where they are."""

    name: str
    element: int
    fields: Fields


@dataclass
class Value:
    """An input or output of the graph: its name, what its numbers are, and the rest as it was."""

    name: str
    element: int
    fields: Fields

    def side(self, axis: int) -> int | None:
        """The length of an axis; None where it is free or not said."""
        tensor = _fields(_only(_fields(_only(self.fields, VALUE_TYPE)), TYPE_TENSOR))
        axes = [dim for shape in _all(tensor, TENSOR_SHAPE) for dim in _all(_fields(shape), SHAPE_AXIS)]
        said = [value for number, _, value in _fields(axes[axis])] if axis < len(axes) else []
        return said[0] if said and isinstance(said[0], int) else None

    def retyped(self, element: int) -> "Value":
        """The same with other numbers."""
        kind = _fields(_only(self.fields, VALUE_TYPE))
        tensor = _set(_fields(_only(kind, TYPE_TENSOR)), TENSOR_ELEMENT, element)
        kind = _set(kind, TYPE_TENSOR, _bytes(tensor))
        return Value(self.name, element, _set(self.fields, VALUE_TYPE, _bytes(kind)))


class GraphFile:
    """A graph that may be changed: `nodes` in order, `weights`, `inputs` and `outputs` by name."""

    def __init__(self, data: bytes) -> None:
        """Read a serialised model.

        Raises:
            ValueError: it is none.
        """
        self._model = _fields(data)
        graph = _fields(_only(self._model, MODEL_GRAPH))
        self.nodes = [_node(_fields(value)) for value in _all(graph, GRAPH_NODE)]
        weights = [_weight(_fields(value)) for value in _all(graph, GRAPH_INITIALIZER)]
        self.weights = {weight.name: weight for weight in weights}
        self.inputs = _values(_all(graph, GRAPH_INPUT))
        self.outputs = _values(_all(graph, GRAPH_OUTPUT))
        read = (GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUES)
        self._rest = [item for item in graph if item[0] not in read]

    def import_domain(self, domain: str, version: int) -> None:
        """Let nodes be of another domain of operators."""
        entry: Fields = [(DOMAIN_NAME, BYTES, domain.encode()), (DOMAIN_VERSION, VARINT, version)]
        self._model = [*self._model, (MODEL_DOMAIN, BYTES, _bytes(entry))]

    def serialise(self) -> bytes:
        """The model as bytes that ONNX Runtime opens; shapes inside it are left for it to infer."""
        graph: Fields = [(GRAPH_NODE, BYTES, _node_bytes(node)) for node in self.nodes]
        graph += self._rest
        graph += [(GRAPH_INITIALIZER, BYTES, _bytes(weight.fields)) for weight in self.weights.values()]
        for number, values in ((GRAPH_INPUT, self.inputs), (GRAPH_OUTPUT, self.outputs)):
            graph += [(number, BYTES, _bytes(value.fields)) for value in values.values()]
        return _bytes(_set(self._model, MODEL_GRAPH, _bytes(graph)))


def read_graph(path: Path) -> GraphFile:
    """Read the graph at `path`, which graph_check.py has passed.

    Raises:
        BundleError: it is no ONNX graph.
    """
    try:
        return GraphFile(path.read_bytes())
    except (ValueError, IndexError) as error:
        raise BundleError(
            f"{path.parent.name}/{path.name}: {error}, an ONNX graph is needed. Copy the bundle again."
        ) from error


def _node(fields: Fields) -> Node:
    attributes = {}
    for value in _all(fields, NODE_ATTRIBUTE):
        inner = _fields(value)
        attributes[_text(inner, ATTRIBUTE_NAME)] = inner
    return Node(
        _text(fields, NODE_OP), _text(fields, NODE_DOMAIN),
        [value.decode() for value in _all(fields, NODE_INPUT)],
        [value.decode() for value in _all(fields, NODE_OUTPUT)],
        _text(fields, NODE_NAME), attributes,
    )  # fmt: skip


def _node_bytes(node: Node) -> bytes:
    fields: Fields = [(NODE_INPUT, BYTES, name.encode()) for name in node.inputs]
    fields += [(NODE_OUTPUT, BYTES, name.encode()) for name in node.outputs]
    texts = ((NODE_NAME, node.name), (NODE_OP, node.op), (NODE_DOMAIN, node.domain))
    fields += [(number, BYTES, text.encode()) for number, text in texts if text]
    fields += [(NODE_ATTRIBUTE, BYTES, _bytes(inner)) for inner in node.attributes.values()]
    return _bytes(fields)


def _weight(fields: Fields) -> Weight:
    element = next((value for number, _, value in fields if number == TENSOR_TYPE), 0)
    assert isinstance(element, int), element
    return Weight(_text(fields, TENSOR_NAME), element, fields)


def _values(values: list[bytes]) -> dict[str, Value]:
    found = {}
    for value in values:
        fields = _fields(value)
        tensor = _fields(_only(_fields(_only(fields, VALUE_TYPE)), TYPE_TENSOR))
        element = next((item for number, _, item in tensor if number == TENSOR_ELEMENT), 0)
        assert isinstance(element, int), element
        name = _text(fields, VALUE_NAME)
        found[name] = Value(name, element, fields)
    return found


def _all(fields: Fields, wanted: int) -> list[bytes]:
    return [value for number, _, value in fields if number == wanted and isinstance(value, bytes)]


def _only(fields: Fields, wanted: int) -> bytes:
    found = _all(fields, wanted)
    if len(found) != 1:
        raise ValueError(f"{len(found)} fields {wanted}")
    return found[0]


def _text(fields: Fields, wanted: int) -> str:
    found = _all(fields, wanted)
    return found[-1].decode() if found else ""


def _set(fields: Fields, wanted: int, new: int | bytes) -> Fields:
    kind = VARINT if isinstance(new, int) else BYTES
    return [(number, kind, new) if number == wanted else (number, wire, old) for number, wire, old in fields]


def _fields(data: bytes) -> Fields:
    """The fields of one message."""
    found: Fields = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _read_varint(data, at)
            found.append((number, wire, value))
            continue
        if wire == BYTES:
            size, at = _read_varint(data, at)
        elif wire in _WIDTHS:
            size = _WIDTHS[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if number == 0 or at + size > len(data):
            raise ValueError("cut short")
        found.append((number, wire, data[at : at + size]))
        at += size
    return found


def _bytes(fields: Fields) -> bytes:
    parts = []
    for number, wire, value in fields:
        parts.append(_varint(number << 3 | wire))
        if isinstance(value, int):
            parts.append(_varint(value))
        else:
            parts += [_varint(len(value)), value] if wire == BYTES else [value]
    return b"".join(parts)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("no number")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
