"""Forecasts, device figures, tiny graphs and the kernels of the self-test."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rexthinker_edge.commands.machine_checks import attempt, check_camera, check_package, numbers
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.detector_kernel_checks import detector_kernels
from rexthinker_edge.runtime.devices import DEVICES
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.kernel_checks import kernels, run_kernel
from rexthinker_edge.runtime.model_sizes import SHAPES, ShapeRecipe, bundle_sizes, published_shape
from rexthinker_edge.runtime.overhead import measure_overhead, tiny_decoder
from rexthinker_edge.runtime.roofline import Rates, Workload, fit, forecast
from rexthinker_edge.runtime.thinker import small_bundle
from rexthinker_edge.runtime.tiny_onnx import TinyGraph, read_contents

WORK = Workload(1000, 300, 20, 500, 1.0, 800 * 1066)


@pytest.mark.parametrize("kernel", [*kernels(), *detector_kernels()], ids=lambda kernel: kernel.name)
def test_every_kernel_equals_its_definition(kernel):
    assert run_kernel(kernel, ["CPUExecutionProvider"]) <= kernel.tolerance


@pytest.mark.parametrize("kernel", [kernels()[0], *detector_kernels()], ids=lambda kernel: kernel.name)
def test_a_kernel_that_computes_something_else_is_seen(kernel):
    """One output in a hundred moved by 2 % of the greatest is enough."""
    moved = kernel.expected.copy()
    moved.reshape(-1)[::100] += 0.02 * np.abs(moved).max()
    wrong = type(kernel)(kernel.name, kernel.tolerance, kernel.build, kernel.feeds, moved)
    assert run_kernel(wrong, ["CPUExecutionProvider"]) > wrong.tolerance


def test_a_tiny_graph_is_onnx():
    graph = TinyGraph()
    x = graph.input("x", np.zeros((2, 3), np.float32))
    y = graph.node("Reshape", [x, graph.constant(np.array([3, -1], np.int64))], allowzero=0)
    graph.output(graph.node("Softmax", [y], axis=-1))
    assert len(onnx.load_from_string(graph.serialise()).graph.node) == 2
    found = ort.InferenceSession(graph.serialise()).run(None, {"x": np.zeros((2, 3), np.float32)})[0]
    np.testing.assert_array_equal(found, np.full((3, 2), 0.5, np.float32))


@pytest.mark.parametrize("name", ["decoder", "vision", "detector"])
def test_contents_are_what_onnx_reads(name):
    model = onnx.load(small_bundle() / f"{name}.onnx", load_external_data=False)
    found = read_contents(small_bundle() / f"{name}.onnx")
    assert found.nodes == len(model.graph.node)
    assert found.weights == {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(BundleError, match=r"x.onnx: .*an ONNX graph is needed"):
        read_contents(tmp_path / "x.onnx")


def test_the_published_shape_has_its_published_size():
    shape = SHAPES["7b"]
    assert shape.decoder.weights == 28 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944) + 152064 * 3584
    assert shape.kv_bytes(1) == 2 * 28 * 512 * 4  # 114,688 bytes a token in float32
    total = shape.decoder.bytes + shape.vision.bytes + shape.detector.bytes + shape.embedding_bytes
    assert 5.0e9 < total < 5.8e9


def test_forecast_by_hand():
    shape, rates = SHAPES["7b"], Rates(100e9, 10e12, 10e12, 1e12)
    found = forecast(shape, WORK, rates)
    token = (shape.decoder.bytes + shape.kv_bytes(1320 + 250)) / 100e9
    assert found.token == pytest.approx(token)
    assert [stage.name for stage in found.stages] == [
        "detector", "vision tower", "prompt", "token", "expression"
    ]  # fmt: skip
    prompt = (2 * (shape.decoder.weights - 152064 * 3584) * 1320 + 2 * 28 * 3584 * 1320**2) / 10e12
    assert found.stages[2].seconds == pytest.approx(prompt, rel=1e-3)
    assert found.expression == pytest.approx(found.stages[4].seconds + 500 * token)
    assert found.first_token == pytest.approx(sum(stage.seconds for stage in found.stages[:3]))


def test_operators_and_passes_cost_what_was_measured():
    shape, sure = SHAPES["7b"], Rates(100e9, 10e12, 10e12, 1e12)
    slow = Rates(100e9, 10e12, 10e12, 1e12, dispatch_seconds=1e-5, call_seconds=1e-3)
    quick, found = forecast(shape, WORK, sure), forecast(shape, WORK, slow)
    one = shape.decoder.nodes * 1e-5 + 1e-3
    assert found.token - quick.token == pytest.approx(one)
    assert [stage.calls for stage in found.stages] == [1, 1, 3, 1, 1]  # 1,320 tokens, 512 at a time
    assert found.stages[2].seconds - quick.stages[2].seconds == pytest.approx(3 * one)
    tiny = Rates(1e15, 1e18, 1e18, 1e18, 1e-5, 1e-3)
    assert {stage.bound for stage in forecast(shape, WORK, tiny).stages} == {"overhead"}


@pytest.mark.parametrize("int4", [False, True])
def test_the_decoders_that_overhead_is_measured_on_are_decoders(int4, tmp_path):
    model = onnx.load_from_string(tiny_decoder(3, int4))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GroupQueryAttention") == 3
    assert kinds.count("MatMulNBits") == (22 if int4 else 0)  # seven a layer and the output layer
    assert [value.name for value in model.graph.output][-1] == "logits"
    overhead = measure_overhead(int4, threads=1)
    assert 0 <= overhead.node < 1e-3
    assert 0 < overhead.call < 1.0


def test_a_recipe_decides_what_a_shape_weighs():
    usual, eight = published_shape("7b"), published_shape("7b", ShapeRecipe(precision="int8", head_bits=4))
    body = usual.decoder.weights - 152064 * 3584
    assert eight.decoder.bytes == pytest.approx((body * (8 + 40 / 128) + 152064 * 3584 * (4 + 36 / 128)) / 8)
    plain = published_shape("7b", ShapeRecipe(vision="fp32", detector="int8", embeddings="int4"))
    assert plain.vision.bytes == 4 * usual.vision.bytes
    assert plain.detector.bytes == usual.detector.bytes - 3 * 35_900_000
    assert plain.embedding_bytes == 152064 * (3584 // 2 + 2 * 3584 // 32)
    assert SHAPES["7b"].detector.bytes * 2 == usual.detector.bytes  # half precision on a GPU


def test_a_bundle_weighs_what_its_passes_read():
    """The bundled one is float32 stored as bfloat16: four bytes a weight, its output layer included."""
    sizes = bundle_sizes(open_bundle(small_bundle()))
    assert sizes.decoder.bytes == pytest.approx(4 * sizes.decoder.weights, rel=0.02)
    assert sizes.detector.weights > 1e6


def test_fit_counts_every_part():
    shape, device = SHAPES["7b"], DEVICES["orin-nx-16gb"]
    found = fit(shape, WORK, device.memory_bytes, device.reserve_bytes)
    assert found.spare == device.memory_bytes - sum(found.parts.values()) > 0
    assert fit(SHAPES["32b"], WORK, device.memory_bytes, device.reserve_bytes).spare < 0


def test_checks_end_in_a_remedy_and_never_in_a_trace(tmp_path):
    def broken():
        raise ZeroDivisionError("no such thing")

    assert attempt("x", broken, "mend it").remedy == "mend it"
    assert (
        check_package("no-such-package-here", "1.0").remedy
        == "Install it: pip install 'no-such-package-here>=1.0'."
    )
    assert check_package("numpy", "99.0").status == "failed"
    assert numbers("1.31.1rc2") == (1, 31, 1)
    assert check_camera(tmp_path).status == "skipped"
    (tmp_path / "video0").write_bytes(b"")
    assert check_camera(tmp_path).seen == "video0"
