"""A narrow graph grown to real sizes, against one that has them from the start."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from rexthinker_edge.benchmarks.peers import genai_model
from rexthinker_edge.benchmarks.peers.genai_model import NARROW, Filled, grow, packed_tensors
from rexthinker_edge.benchmarks.peers.shape import SHAPES, Shape, choose_shape

onnx = pytest.importorskip("onnx")
HIDDEN, VOCAB, WIDE = 128, 1024, 896
SIZES = {NARROW["vocab"]: VOCAB, NARROW["intermediate"]: WIDE}


def _narrow(place: Path) -> None:
    """Token table, up, down, and output layer, as the builder writes them: int4, blocks of 128."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    vocab, wide = NARROW["vocab"], NARROW["intermediate"]
    tensors = [numpy_helper.from_array(np.ones((vocab, HIDDEN), np.float32), "table")]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["embedded"])]
    sides = (
        ("embedded", "up", wide, HIDDEN),
        ("up", "down", HIDDEN, wide),
        ("down", "logits", vocab, HIDDEN),
    )
    for given, name, rows, columns in sides:
        blocks = columns // 128
        parts = {
            f"{name}.weight": np.zeros((rows, blocks, 64), np.uint8),
            f"{name}.scales": np.ones((rows, blocks), np.float32),
            f"{name}.zeros": np.full((rows, -(-blocks // 2)), 0x88, np.uint8),
        }
        tensors += [numpy_helper.from_array(value, key) for key, value in parts.items()]
        sizes = {"K": columns, "N": rows, "bits": 4, "block_size": 128, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", [given, *parts], [name], domain="com.microsoft", **sizes)
        )
    graph = helper.make_graph(
        nodes, "narrow", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", vocab])], tensors,
        value_info=[helper.make_tensor_value_info("up", TensorProto.FLOAT, ["b", "s", wide])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    place.mkdir()
    onnx.save(
        model, str(place / "model.onnx"), save_as_external_data=True, location="model.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    (place / "genai_config.json").write_text(json.dumps({"model": {"vocab_size": vocab}}))
    (place / "tokenizer.json").write_text("{}")


def test_a_narrow_graph_is_grown_and_runs(tmp_path: Path) -> None:
    _narrow(tmp_path / "narrow")
    out = tmp_path / "out"
    out.mkdir()
    grow(tmp_path / "narrow", out, SIZES)
    assert json.loads((out / "genai_config.json").read_text()) == {"model": {"vocab_size": VOCAB}}
    assert (out / "tokenizer.json").is_file()
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["b", "s", VOCAB]
    (logits,) = session.run(None, {"input_ids": np.array([[1, VOCAB - 1]], np.int64)})
    assert logits.shape == (1, 2, VOCAB)
    # table 0.02, then three layers whose products keep a deviation: each has 4-bit codes of random numbers
    assert 0.01 < np.std(logits) < 0.04
    assert not np.array_equal(logits[0, 0], logits[0, 1])


def test_a_filled_tensor_repeats_its_block_to_its_end() -> None:
    pieces = list(Filled((2, 5), np.arange(4, dtype=np.uint8)).pieces())
    assert b"".join(pieces) == bytes([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])


def test_narrow_sizes_are_none_of_a_shapes_own() -> None:
    for name in SHAPES:
        shape = choose_shape(name, 1, 64)
        others = {shape.hidden, shape.kv_width, shape.hidden + 2 * shape.kv_width}
        assert not others & set(NARROW.values()), name
    assert all(size % genai_model.GPTQ_GROUP == 0 for size in NARROW.values())


def test_packed_tensors_have_the_sizes_of_gptq() -> None:
    tensors = packed_tensors(Shape("small", 1, 1, 256, 2, 1, 384, 640, 1e-6, 1e6, 256))
    down = "model.layers.0.mlp.down_proj"
    assert tensors[f"{down}.qweight"].shape == (384 // 8, 256)
    assert tensors[f"{down}.scales"].shape == (3, 256)
    assert tensors["lm_head.qweight"].shape == (32, 640)
