"""Bundles made by an enemy: every one is refused by name, with one of our errors, and none ends the process.

The bundle they are made from is whole: it opens and answers, so what refuses a bad one is what was changed.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rexthinker_edge.runtime.bundle import file_sha256, open_bundle
from rexthinker_edge.runtime.errors import BundleError, RexThinkerError
from rexthinker_edge.runtime.graph_check import check_graph
from rexthinker_edge.runtime.thinker import load, small_bundle

Change = Callable[[Path], None]
GRAPHS = ("vision.onnx", "decoder.onnx")


@pytest.fixture
def bundle(tmp_path):
    """A copy of the bundled model without its cards, whose digest would be refused before the fault."""
    copy = shutil.copytree(small_bundle(), tmp_path / "enemy")
    value = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**value, "risk": None, "quality": []}))
    return copy


def reseal(directory: Path) -> None:
    """State the sizes and hashes of what stands there now: the enemy writes the manifest too."""
    value = json.loads((directory / "manifest.json").read_text())
    for name in value["files"]:
        path = directory / name
        if path.is_file():
            value["files"][name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (directory / "manifest.json").write_text(json.dumps(value))


def manifest(*path: str, value: object) -> Change:
    """Set one value of the manifest."""

    def change(directory: Path) -> None:
        whole = json.loads((directory / "manifest.json").read_text())
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (directory / "manifest.json").write_text(json.dumps(whole))

    return change


def text(old: str, new: str) -> Change:
    """Replace text of the manifest, once."""

    def change(directory: Path) -> None:
        found = (directory / "manifest.json").read_text()
        assert old in found, old
        (directory / "manifest.json").write_text(found.replace(old, new, 1))

    return change


def content(name: str, made: bytes | Callable[[bytes], bytes], sealed: bool = True) -> Change:
    """Replace a file's bytes, and state them in the manifest when `sealed`."""

    def change(directory: Path) -> None:
        path = directory / name
        path.write_bytes(made if isinstance(made, bytes) else made(path.read_bytes()))
        if sealed:
            reseal(directory)

    return change


def graph(name: str, edit: Callable[[onnx.ModelProto], None]) -> Change:
    """Edit an ONNX file."""

    def change(directory: Path) -> None:
        model = onnx.load(directory / name, load_external_data=False)
        edit(model)
        (directory / name).write_bytes(model.SerializeToString())
        reseal(directory)

    return change


def external(**entries: str) -> Callable[[onnx.ModelProto], None]:
    """Set keys of the first external weight; None removes one."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        kept = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, value in kept.items():
            tensor.external_data.add(key=key, value=value)

    return edit


def twice(model: onnx.ModelProto) -> None:
    """State one weight's location a second time, outside: readers differ in which they take."""
    tensor = next(t for t in model.graph.initializer if t.external_data)
    tensor.external_data.add(key="location", value="../outside.bin")


def custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def python_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "ai.onnx.contrib", "PyOp"


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    made = helper.make_function("", "Gelu", ["x"], ["y"], [node], [helper.make_opsetid("", 21)])
    model.functions.append(made)


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def sparse(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def hidden_outside(model: onnx.ModelProto) -> None:
    """A weight outside, in a constant of a branch of an If."""
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=value)], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def nested(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(20):
        inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner))


def huge_dims(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    tensor.dims[0] = 1 << 62


def negative_dims(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    tensor.dims[0] = -5


def wrong_type(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.external_data).data_type = 999


def string_type(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.external_data).data_type = TensorProto.STRING


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Nonsense"


def cycle(model: onnx.ModelProto) -> None:
    first = model.graph.node[0]
    first.input[0] = first.output[0]


def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "other"


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9_999


def tokenizer(edit: Callable[[dict], None], name: str = "tokenizer.json") -> Change:
    def change(directory: Path) -> None:
        value = json.loads((directory / name).read_text())
        edit(value)
        (directory / name).write_text(json.dumps(value))
        reseal(directory)

    return change


def replaced(make: Callable[[Path, Path], None], name: str = "vision.onnx.data") -> Change:
    """Move a file out of the bundle and put something else in its place."""

    def change(directory: Path) -> None:
        outside = directory.parent / "outside.bin"
        (directory / name).rename(outside)
        make(directory / name, outside)

    return change


def large_manifest(directory: Path) -> None:
    value = json.loads((directory / "manifest.json").read_text())
    value["name"] = "x" * 1_000_000
    (directory / "manifest.json").write_text(json.dumps(value))


def many_files(directory: Path) -> None:
    value = json.loads((directory / "manifest.json").read_text())
    value["files"] |= {f"f{i}": {"bytes": 0, "sha256": "0" * 64} for i in range(5000)}
    (directory / "manifest.json").write_text(json.dumps(value))


def raw_varint(data: bytes) -> bytes:
    return b"\xff" * 12 + data


def long_field(data: bytes) -> bytes:
    return b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + data


ENEMIES: dict[str, tuple[Change, str]] = {
    # the manifest's text
    "manifest empty": (content("manifest.json", b"", False), "not JSON"),
    "manifest binary": (content("manifest.json", bytes(range(256)), False), "manifest.json: "),
    "manifest cut": (content("manifest.json", lambda b: b[:-200], False), "not JSON"),
    "manifest a list": (content("manifest.json", b"[]", False), "format version None"),
    "manifest nested": (content("manifest.json", b"[" * 200_000, False), "nested too deep"),
    "manifest too large": (large_manifest, "at most 1,000,000 are allowed"),
    "manifest UTF-16": (content("manifest.json", lambda b: b.decode().encode("utf-16"), False), "codec"),
    "manifest BOM": (content("manifest.json", lambda b: b"\xef\xbb\xbf" + b, False), "not JSON"),
    "key twice": (text('"name":', '"name": "a", "name":'), "name is written twice"),
    "key twice inside": (text('"layers":', '"layers": 1, "layers":'), "layers is written twice"),
    "NaN": (text('"rope_theta": 1000.0', '"rope_theta": NaN'), "NaN is not allowed"),
    "infinity": (text('"rope_theta": 1000.0', '"rope_theta": Infinity'), "Infinity is not allowed"),
    "float too large": (text('"rope_theta": 1000.0', '"rope_theta": 1e999'), "a finite number is needed"),
    "digits by the thousand": (text('"rope_theta": 1000.0', f'"rope_theta": {"9" * 5000}'), "not JSON"),
    "newer format": (manifest("format_version", value=2), "reads up to 1"),
    "format as text": (manifest("format_version", value="1"), "format version '1'"),
    "unknown key": (manifest("code", value="import os"), "unknown key code"),
    "unknown key inside": (manifest("decoder", "custom_ops", value="x.so"), "unknown key decoder.custom_ops"),
    # its numbers
    "no layers": (manifest("decoder", "layers", value=0), "decoder.layers is 0"),
    "layers without end": (manifest("decoder", "layers", value=10**12), "decoder.layers is"),
    "negative width": (manifest("decoder", "hidden", value=-192), "decoder.hidden is -192"),
    "vocabulary without end": (manifest("decoder", "vocab", value=10**15), "decoder.vocab is"),
    "length without end": (manifest("decoder", "max_length", value=10**18), "decoder.max_length is"),
    "answer without end": (manifest("prompt", "max_new_tokens", value=10**18), "prompt.max_new_tokens is"),
    "pixels without end": (manifest("prompt", "max_pixels", value=10**18), "prompt.max_pixels is"),
    "patch of nothing": (manifest("vision", "patch", value=0), "vision.patch is 0"),
    "window of nothing": (manifest("vision", "window", value=0), "vision.window is 0"),
    "detector without size": (manifest("detector", "shortest_px", value=0), "detector.shortest_px is 0"),
    "division by nothing": (manifest("detector", "std", value=[0.0, 1.0, 1.0]), "detector.std is 0.0"),
    "picture token outside": (manifest("tokens", "image_pad", value=10**9), "token 1000000000"),
    "negative end token": (manifest("tokens", "eos", value=[-1]), "token -1"),
    "another layer count": (manifest("decoder", "layers", value=5), "more than the 5 layers"),
    "another head width": (manifest("decoder", "head_dim", value=64), "'keys.0' of shape"),
    "another vocabulary": (manifest("decoder", "vocab", value=2241), "tokens, the model has 2,241"),
    "another patch": (manifest("vision", "patch", value=16), "'patches' of shape"),
    "another dtype": (manifest("decoder", "embedding_dtype", value="object"), "embedding_dtype is 'object'"),
    "int8 that is none": (manifest("decoder", "embedding_dtype", value="int8"), "the manifest's table needs"),
    # its files
    "parent path": (text('"vision.onnx.data":', '"../vision.onnx.data":'), "a plain name inside the bundle"),
    "absolute path": (text('"vision.onnx.data":', '"/etc/passwd":'), "a plain name inside the bundle"),
    "device name": (text('"vision.onnx.data":', '"CON":'), "a plain name inside the bundle"),
    "stream name": (text('"vision.onnx.data":', '"vision.onnx::$DATA":'), "a plain name inside the bundle"),
    "five thousand files": (many_files, "missing, the manifest lists it"),
    "negative size": (manifest("files", "vision.onnx", "bytes", value=-1), "is not a size and a SHA-256"),
    "hash of another kind": (manifest("files", "vision.onnx", "sha256", value="A" * 64), "is not a size"),
    "picture not listed": (text('"picture": "golden-0.png"', '"picture": "../p.png"'), "lists no file ../p"),
    "altered small file": (content("vision.onnx", lambda b: b[:-1] + b"?", False), "SHA-256"),
    "cut data": (content("vision.onnx.data", lambda b: b[:-1], False), "bytes, the manifest says"),
    "extra file": (content("setup.py", b"import os", False), "not in the manifest"),
    "symbolic link": (replaced(lambda p, o: p.symlink_to(o)), "a link, directory or device"),
    "link to a device": (replaced(lambda p, _: p.symlink_to("/dev/zero")), "a link, directory or device"),
    "link to nowhere": (replaced(lambda p, _: p.symlink_to("nowhere")), "a link, directory or device"),
    "named pipe": (replaced(lambda p, _: os.mkfifo(p)), "a link, directory or device"),
    "directory": (replaced(lambda p, _: p.mkdir()), "a link, directory or device"),
    "manifest a pipe": (replaced(lambda p, _: os.mkfifo(p), "manifest.json"), "manifest.json: missing"),
    "manifest a link": (replaced(lambda p, o: p.symlink_to(o), "manifest.json"), "manifest.json: missing"),
    # graphs: bytes
    "graph empty": (content("vision.onnx", b""), "vision.onnx: "),
    "graph zeros": (content("vision.onnx", bytes(1000)), "vision.onnx: field number 0"),
    "graph text": (content("vision.onnx", b"hello, I am a graph"), "vision.onnx: "),
    "graph a pickle": (content("vision.onnx", b"\x80\x04\x95\x1a\x00\x00\x00"), "vision.onnx: "),
    "graph cut": (content("vision.onnx", lambda b: b[: len(b) // 2]), "vision.onnx: "),
    "graph with a long number": (content("vision.onnx", raw_varint), "more than 10 bytes"),
    "graph with a long field": (content("vision.onnx", long_field), "is cut short"),
    "graph twice": (content("vision.onnx", lambda b: b + b), "2 graphs in it"),
    "no graph": (graph("vision.onnx", no_graph), "0 graphs in it"),
    # graphs: weights elsewhere
    "weights above": (graph("vision.onnx", external(location="../outside.bin")), "lies in '../outside.bin'"),
    "weights absolute": (graph("decoder.onnx", external(location="/etc/passwd")), "lies in '/etc/passwd'"),
    "weights in a folder": (graph("vision.onnx", external(location="a/b.bin")), "lies in 'a/b.bin'"),
    "weights at an address": (
        graph("vision.onnx", external(location="*/_ORT_MEM_ADDR_/*", offset="4096")), "_ORT_MEM_ADDR_"),
    "weights at a URL": (graph("vision.onnx", external(location="http://x/y")), "lies in 'http://x/y'"),
    "weights in the manifest": (graph("vision.onnx", external(location="manifest.json")), "lies in"),
    "weights in the graph": (graph("vision.onnx", external(location="vision.onnx")), "lies in 'vision.onnx'"),
    "weights nowhere": (graph("vision.onnx", external(location="")), "lies in ''"),
    "weights with a zero byte": (graph("vision.onnx", external(location="a\0b")), "lies in"),
    "weights twice": (graph("vision.onnx", twice), "unknown or repeated keys"),
    "weights packed by another": (
        graph("vision.onnx", external(prepacked_0="x|0|1")), "unknown or repeated keys"),
    "weights in a branch": (graph("vision.onnx", hidden_outside), "lies in '/etc/passwd'"),
    "offset beyond the end": (graph("vision.onnx", external(offset=str(1 << 50))), "ends at byte"),
    "offset negative": (graph("vision.onnx", external(offset="-64")), "a whole number is needed"),
    "offset overflow": (graph("vision.onnx", external(offset=str(1 << 64))), "a whole number is needed"),
    "offset in words": (graph("vision.onnx", external(offset="0x40")), "a whole number is needed"),
    "length beyond the end": (graph("decoder.onnx", external(length=str(1 << 40))), "ends at byte"),
    "length negative": (graph("decoder.onnx", external(length="-1")), "a whole number is needed"),
    "length of another": (graph("decoder.onnx", external(length="3")), "decoder.onnx: "),
    # graphs: what they compute
    "foreign operator": (graph("vision.onnx", custom_domain), "the domain 'evil.example'"),
    "Python operator": (graph("vision.onnx", python_operator), "the domain 'ai.onnx.contrib'"),
    "functions": (graph("vision.onnx", function), "training information or functions"),
    "training": (graph("vision.onnx", training), "training information or functions"),
    "sparse weights": (graph("vision.onnx", sparse), "sparse weights"),
    "graphs in graphs": (graph("vision.onnx", nested), "nested deeper than 16"),
    "unknown operator": (graph("vision.onnx", unknown_operator), "ONNX Runtime"),
    "a cycle": (graph("vision.onnx", cycle), "ONNX Runtime"),
    "newer operators": (graph("vision.onnx", newer_opset), "ONNX Runtime"),
    "weight without end": (graph("vision.onnx", huge_dims), "ONNX Runtime"),
    "weight of negative size": (graph("vision.onnx", negative_dims), "ONNX Runtime"),
    "weight of no type": (graph("vision.onnx", wrong_type), "ONNX Runtime"),
    "weight of text": (graph("vision.onnx", string_type), "ONNX Runtime"),
    "input by another name": (graph("decoder.onnx", renamed_input), "decoder.onnx: "),
    "output missing": (graph("vision.onnx", drop_output), "vision.onnx: "),
    # tokenizers and the table
    "tokenizer empty": (content("tokenizer.json", b""), "tokenizer.json: "),
    "tokenizer nested": (content("tokenizer.json", b"[" * 300_000), "nested too deep"),
    "tokenizer a list": (content("tokenizer.json", b"[]"), "tokenizer.json: "),
    "tokenizer of another kind": (tokenizer(lambda v: v.update(decoder=None)), "tokenizer.json: "),
    "tokenizer without words": (tokenizer(lambda v: v["model"].update(vocab={})), "tokenizer.json: "),
    "token number without end": (
        tokenizer(lambda v: v["model"]["vocab"].update({"zzz": 1 << 31})), "token 2,147,483,648"),
    "token number negative": (tokenizer(lambda v: v["model"]["vocab"].update({"a": -1})), "tokenizer.json: "),
    "merges of nothing": (tokenizer(lambda v: v["model"].update(merges=[["x", "nowhere"]])), "tokenizer"),
    "tokenizer of a bad pattern": (
        tokenizer(lambda v: v.update(pre_tokenizer={
            "type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False})),
        "tokenizer.json"),
    "caption tokenizer nested": (content("detector-tokenizer.json", b"[" * 300_000), "nested too deep"),
    "caption tokenizer renumbered": (
        tokenizer(lambda v: v["model"]["vocab"].update({"[CLS]": 5}), "detector-tokenizer.json"), "the ids"),
    "table cut": (content("embeddings.bin", lambda b: b[:-2]), "embeddings.bin has"),
    "table empty": (content("embeddings.bin", b""), "embeddings.bin has 0"),
}  # fmt: skip


def test_there_are_sixty_and_more():
    assert len(ENEMIES) >= 60


@pytest.mark.parametrize("name", ENEMIES)
def test_refused_by_name(bundle, name):
    change, message = ENEMIES[name]
    change(bundle)
    with pytest.raises(RexThinkerError) as caught:
        load(bundle, threads=1)
    assert message in str(caught.value)
    assert type(caught.value) is BundleError
    assert len(str(caught.value)) < 700
    shown = str(caught.value).split(":", 1)[0]
    assert shown.startswith("enemy/") or shown in {path.name for path in bundle.iterdir()}


def test_the_untouched_bundle_opens(bundle):
    reseal(bundle)
    assert open_bundle(bundle, hashes=True).manifest.files
    assert load(bundle, threads=1).describe()


def proto(number: int, payload: bytes) -> bytes:
    """One length-delimited field, written from the definition."""
    size = b""
    left = len(payload)
    while left > 127:
        size, left = size + struct.pack("B", left & 127 | 128), left >> 7
    return struct.pack("B", number << 3 | 2) + size + struct.pack("B", left) + payload


def test_a_weight_written_by_hand(tmp_path):
    """The reader against bytes written from the format's definition, not from the library."""
    weights = tmp_path / "b"
    weights.mkdir()
    numpy_helper.from_array(np.zeros(1))  # the library is there, and not asked

    def written(location: bytes, offset: bytes = b"0", length: bytes = b"4") -> bytes:
        entries = [(b"location", location), (b"offset", offset), (b"length", length)]
        tensor = proto(8, b"w") + b"\x70\x01"
        tensor += b"".join(proto(13, proto(1, key) + proto(2, value)) for key, value in entries)
        return proto(7, proto(5, tensor)) + proto(8, proto(1, b"") + b"\x10\x15")

    files = {"g.onnx": 0, "w.data": 8}
    (weights / "g.onnx").write_bytes(written(b"w.data", b"4"))
    check_graph(weights / "g.onnx", files)
    for bad, message in [
        (written(b"w.data", b"5"), "b/g.onnx: weight 'w' ends at byte 9, w.data has 8; an ONNX graph"),
        (written(b"x.data"), "weight 'w' lies in 'x.data', which is no data file of the bundle"),
        (written("w.data\u2215".encode()), "which is no data file"),
        (written(b"\xff"), "is no UTF-8"),
    ]:
        (weights / "g.onnx").write_bytes(bad)
        with pytest.raises(BundleError, match=message.replace("(", r"\(")):
            check_graph(weights / "g.onnx", files)
