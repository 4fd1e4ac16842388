"""Reads an ONNX file just far enough to know that it is safe to hand to ONNX Runtime.

Layout    Protocol buffers: a message is fields, each a varint key (number << 3 | wire type) and a value.
          Only the messages on the way to operators and weights are entered; weights are skipped, not read.
Contract  Refused: a file that is no ONNX model, an operator of a domain other than ONNX's and ONNX Runtime's
          own, functions, training information, weights outside the bundle's listed files or beyond their
          end, weights at a memory address, and external data with keys that are not in the list below.
          What passes may still be nonsense: ONNX Runtime then refuses it by itself.
Elsewhere the bundle's own files: bundle.py; opening graphs: parts.py.
Source    docs/bundle.md#graphs
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from rexthinker_edge.runtime.errors import BundleError

# "ai.onnx" is "" by another name. No library of ours is ever registered, so no other domain has operators.
DOMAINS = ("", "ai.onnx", "com.microsoft")
EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
EXTERNAL = 1  # TensorProto.data_location
MAX_DEPTH = 16  # of graphs inside operators
MAX_VARINT_BYTES = 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Message: {field number: message inside}. Everything else is skipped.
MODEL_GRAPH, MODEL_OPSET, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
NODE_ATTRIBUTE, NODE_DOMAIN = 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 22, 23
TENSOR_NAME, TENSOR_EXTERNAL, TENSOR_LOCATION = 8, 13, 14
OPSET_DOMAIN, ENTRY_KEY, ENTRY_VALUE = 1, 1, 2


class GraphError(ValueError):
    """What is wrong in the file; `check_graph` says in which."""


class _Field(NamedTuple):  # a graph has 50,000 of them
    """One field: its number, and its value or, of bytes, where they lie."""

    number: int
    value: int
    start: int
    stop: int
    kind: int


def check_graph(path: Path, files: Mapping[str, int]) -> None:
    """Check the ONNX file at `path`.

    Args:
        files: the bundle's files and their bytes; weights may lie in these only.

    Raises:
        BundleError: anything named in this module's contract.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Reader(data, files, path.name).model()
    except (GraphError, ValueError) as error:  # mmap says ValueError of an empty file
        raise BundleError(
            f"{path.parent.name}/{path.name}: {error}; an ONNX graph with its weights inside the bundle is "
            "needed. Do not use this bundle, or export it again."
        ) from error


class _Reader:
    """Walks one file."""

    def __init__(self, data: mmap.mmap, files: Mapping[str, int], own_name: str) -> None:
        self.data, self.files, self.own_name = data, files, own_name

    def model(self) -> None:
        graphs = 0
        for field in self.fields(0, len(self.data)):
            if field.number == MODEL_GRAPH:
                self.graph(self.inside(field), 0)
                graphs += 1
            elif field.number == MODEL_OPSET:
                for inner in self.fields(*self.inside(field)):
                    if inner.number == OPSET_DOMAIN:
                        self.domain(inner)
            elif field.number in (MODEL_TRAINING, MODEL_FUNCTIONS):
                raise GraphError("it has training information or functions, which no graph of ours has")
        if graphs != 1:
            raise GraphError(f"{graphs} graphs in it")

    def graph(self, place: tuple[int, int], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise GraphError(f"graphs nested deeper than {MAX_DEPTH}")
        for field in self.fields(*place):
            if field.number == GRAPH_NODE:
                self.node(self.inside(field), depth)
            elif field.number == GRAPH_INITIALIZER:
                self.tensor(self.inside(field))
            elif field.number == GRAPH_SPARSE:
                raise GraphError("sparse weights, which no graph of ours has")

    def node(self, place: tuple[int, int], depth: int) -> None:
        for field in self.fields(*place):
            if field.number == NODE_DOMAIN:
                self.domain(field)
            elif field.number == NODE_ATTRIBUTE:
                self.attribute(self.inside(field), depth)

    def attribute(self, place: tuple[int, int], depth: int) -> None:
        for field in self.fields(*place):
            if field.number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
                self.tensor(self.inside(field))
            elif field.number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                self.graph(self.inside(field), depth + 1)
            elif field.number in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
                raise GraphError("sparse weights, which no graph of ours has")

    def domain(self, field: _Field) -> None:
        domain = self.text(field)
        if domain not in DOMAINS:
            raise GraphError(f"operators of the domain {domain!r}, which ONNX Runtime alone has not")

    def tensor(self, place: tuple[int, int]) -> None:
        external, entries, name = False, list[tuple[str, str]](), "?"
        for field in self.fields(*place):
            if field.number == TENSOR_LOCATION:
                if field.kind != VARINT or field.value not in (0, EXTERNAL):
                    raise GraphError(f"weight {name!r} lies in no known kind of place")
                external = field.value == EXTERNAL
            elif field.number == TENSOR_EXTERNAL:
                entries.append(self.entry(self.inside(field)))
            elif field.number == TENSOR_NAME:
                name = self.text(field)[:80]
        if external or entries:
            self.external(name, entries)

    def entry(self, place: tuple[int, int]) -> tuple[str, str]:
        key, value = "", ""
        for field in self.fields(*place):
            if field.number == ENTRY_KEY:
                key = self.text(field)
            elif field.number == ENTRY_VALUE:
                value = self.text(field)
        return key, value

    def external(self, name: str, entries: list[tuple[str, str]]) -> None:
        """One weight's place in a file beside the graph."""
        stated = dict(entries)
        if len(stated) != len(entries) or any(key not in EXTERNAL_KEYS for key in stated):
            raise GraphError(f"weight {name!r} has unknown or repeated keys, {sorted(stated)[:4]}")
        location = stated.get("location", "")
        if location not in self.files or location == self.own_name:
            raise GraphError(
                f"weight {name!r} lies in {location[:80]!r}, which is no data file of the bundle"
            )
        offset, length = (_whole(name, key, stated.get(key, "0")) for key in ("offset", "length"))
        if offset + length > self.files[location]:
            raise GraphError(
                f"weight {name!r} ends at byte {offset + length:,}, {location} has {self.files[location]:,}"
            )

    def fields(self, start: int, stop: int) -> Iterator[_Field]:
        """The fields of the message in [start, stop)."""
        at = start
        while at < stop:
            key, at = self.varint(at, stop)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise GraphError(f"field number 0 at byte {at:,}")
            if kind == VARINT:
                value, at = self.varint(at, stop)
                yield _Field(number, value, at, at, kind)
                continue
            if kind == BYTES:
                size, at = self.varint(at, stop)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
            else:
                raise GraphError(f"wire type {kind} at byte {at:,}: this is no protocol buffer")
            if size > stop - at:
                raise GraphError(f"a field at byte {at:,} is cut short")
            yield _Field(number, 0, at, at + size, kind)
            at += size

    def varint(self, at: int, stop: int) -> tuple[int, int]:
        if at < stop and (first := self.data[at]) < 128:  # most are one byte
            return first, at + 1
        value = 0
        for count in range(MAX_VARINT_BYTES):
            if at + count >= stop:
                raise GraphError("it is cut short")
            byte = self.data[at + count]
            value |= (byte & 127) << (7 * count)
            if byte < 128:
                return value, at + count + 1
        raise GraphError(f"a number at byte {at:,} has more than {MAX_VARINT_BYTES} bytes")

    def inside(self, field: _Field) -> tuple[int, int]:
        if field.kind != BYTES:
            raise GraphError(f"field {field.number} at byte {field.start:,} is no message")
        return field.start, field.stop

    def text(self, field: _Field) -> str:
        start, stop = self.inside(field)
        try:
            return self.data[start:stop].decode()
        except UnicodeDecodeError as error:
            raise GraphError(f"text at byte {start:,} is no UTF-8") from error


def _whole(name: str, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        _bad_number(name, key, text)
    return int(text)


def _bad_number(name: str, key: str, text: str) -> NoReturn:
    raise GraphError(f"weight {name!r} has {key} {text[:40]!r}, a whole number is needed")
