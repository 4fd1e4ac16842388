"""Ceilings and the work they are applied to: counted by hand, by formula, and by ONNX Runtime's profiler."""

import numpy as np
import onnxruntime as ort
import pytest

from rexthinker_edge.benchmarks import bench as benches
from rexthinker_edge.benchmarks.ceilings import (
    Ceilings,
    block_graph,
    channel_graph,
    dense_graph,
    measure_ceilings,
)
from rexthinker_edge.benchmarks.cuda_ceilings import half_block_graph, half_graph
from rexthinker_edge.benchmarks.work import (
    Counted,
    DecoderWork,
    Work,
    decoder_work,
    node_work,
    profile_work,
    vision_work,
)
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.model_sizes import SHAPES, bundle_sizes
from rexthinker_edge.runtime.opening import session_options
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels
from rexthinker_edge.runtime.thinker import small_bundle
from rexthinker_edge.runtime.tiny_onnx import TinyGraph


@pytest.fixture(scope="module")
def small():
    return open_bundle(small_bundle())


@pytest.mark.parametrize(
    ("work", "ms"),
    [
        (Work(2e9, 0, 0), 100.0),  # 2 GB at 20 GB/s
        (Work(2e9, 1e9, 0), 100.0),  # arithmetic fits beside
        (Work(2e9, 40e9, 1e9), 220.0),  # 40 at 200 and 1 at 50 GFLOP/s
        (Work(), 0.0),
    ],
)
def test_a_ceiling_is_the_slower_of_memory_and_arithmetic(work, ms):
    assert Ceilings(20.0, 200.0, 50.0).ms(work) == pytest.approx(ms)


def test_of_two_measurements_the_larger_rates_count():
    assert Ceilings(1, 5, 3).better(Ceilings(2, 4, 3)) == Ceilings(2, 5, 3)


def test_every_rate_is_measured():
    found = measure_ceilings(1, size_bytes=1 << 20, width=128, seconds=0.0)
    assert min(found.read_gb_s, found.int8_gflop_s, found.fp32_gflop_s) > 0


def test_the_measured_graphs_compute_what_they_are_said_to():
    """A graph that is folded away, or does less, would give a ceiling out of the air."""
    rng = np.random.default_rng(1)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 128), (5, 128)))

    def run(model, feeds):
        opened = ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
        return opened.run(None, feeds)[0]

    np.testing.assert_allclose(run(dense_graph(), {"x": x, "weight": weight}), x @ weight.T, atol=1e-4)
    sums = x.sum(axis=1, keepdims=True)
    # Codes 9 and 8 as zero point: (9 - 8) / 128; activations are rounded to 8 bits a block: half a step of
    # 4 / 127 in each of 128 products, of either sign.
    np.testing.assert_allclose(run(block_graph(128, 4), {"x": x}), np.tile(sums / 128, 128), atol=0.02)
    codes = float(0x99 - 0x88)
    np.testing.assert_allclose(run(block_graph(128, 8), {"x": x}), np.tile(sums * codes / 128, 128), atol=0.3)
    np.testing.assert_allclose(run(channel_graph(128), {"x": x}), np.tile(sums * 7 / 128, 128), atol=0.2)


@pytest.mark.parametrize(
    ("op", "inputs", "output", "expected"),
    [
        ("MatMul", [(2, 3, 4), (4, 5)], (2, 3, 5), Work(80, 0, 2 * 2 * 3 * 4 * 5)),
        ("FusedMatMul", [(1, 3, 4), (5, 4)], (1, 3, 5), Work(80, 0, 120)),
        ("FusedMatMul", [(1, 3, 4)], (1, 3, 5), Work(80, 0, 120)),  # a packed weight is not told
        ("Gemm", [(3, 4), (4, 5), (5,)], (3, 5), Work(80, 0, 120)),
        ("Gemm", [(4, 3), (4, 5)], (3, 5), Work(80, 0, 120)),  # transposed
        ("Conv", [(1, 3, 8, 8), (6, 3, 4, 4), (6,)], (1, 6, 2, 2), Work(80, 0, 2 * 6 * 4 * 48)),
        ("MultiHeadAttention", [(2, 7, 6), (2, 9, 6), (2, 9, 6)], (2, 7, 6), Work(80, 0, 4 * 2 * 7 * 9 * 6)),
        ("DynamicQuantizeMatMul", [(3, 4), (4, 5), (5,)], (3, 5), Work(80, 120, 0)),
        ("MatMulNBits", [(1, 3, 4), (5, 1, 2), (5, 1)], (1, 3, 5), Work(80, 120, 0)),
        ("Softmax", [(3, 4)], (3, 4), Work(80)),
    ],
)
def test_a_node_counts_its_products(op, inputs, output, expected):
    assert node_work(op, inputs, output, 80) == expected


def test_level_0_multiplies_in_float32():
    assert node_work("MatMulNBits", [(1, 3, 4), (5, 1, 2)], (1, 3, 5), 10, integers=False) == Work(10, 0, 120)


def test_tables_that_are_gathered_from_are_not_read_whole():
    told = {"op_name": "Gather", "parameter_size": "4000", "input_type_shape": [{"float": [10, 100]}]}
    event = {
        "cat": "Node",
        "name": "a_kernel_time",
        "args": told | {"output_type_shape": [{"float": [2, 100]}]},
    }
    product = {
        "op_name": "MatMul", "parameter_size": "8", "output_type_shape": [{"float": [1, 1]}],
        "input_type_shape": [{"float": [1, 2]}, {"float": [2, 1]}],
    }  # fmt: skip
    other = {"cat": "Node", "name": "b_kernel_time", "args": product}
    session = {"cat": "Session", "name": "model_run", "args": {}}
    assert profile_work([event, other, session]) == Work(8, 0, 4)


def test_a_real_profile_tells_shapes_and_bytes(tmp_path):
    graph, weight = TinyGraph(), np.ones((16, 8), np.float32)
    x = graph.free_input("x")
    graph.output(
        graph.node("MatMul", [graph.node("MatMul", [x, graph.constant(weight)]), graph.constant(weight.T)])
    )
    (tmp_path / "two.onnx").write_bytes(graph.serialise())
    counted = Counted(tmp_path / "two.onnx", 1)
    counted.session.run(None, {"x": np.ones((3, 16), np.float32)})
    assert counted.work() == Work(2 * weight.nbytes, 0, 2 * (2 * 3 * 16 * 8))


def test_the_vision_tower_is_counted_as_its_formula_says(small):
    """An independent count: from the widths of the header, not from the shapes that were met."""
    prompt, vision = small.manifest.prompt, small.manifest.vision
    limits = PixelLimits(
        prompt.min_pixels, prompt.max_pixels, vision.patch, vision.merge, vision.temporal_patch
    )
    pixels = qwen_pixels(np.zeros((224, 224, 3), np.uint8), limits)
    found, sizes = vision_work(small, pixels, 1), bundle_sizes(small)
    tokens = len(pixels.patches) // vision.merge**2
    # The formula takes the merger's matrices for every patch, where they see one of four: a few per cent.
    assert found.fp32_ops == pytest.approx(sizes.vision_flops(tokens), rel=0.25)
    assert found.fp32_ops < sizes.vision_flops(tokens) * 1.05
    assert found.int8_ops == 0
    assert found.bytes == pytest.approx(4 * sizes.vision.weights, rel=0.05)


def test_a_decoder_pass_is_counted_as_the_profiler_counts_it(small):
    """Products of matrices, exactly; attention is GroupQueryAttention's and stated by formula alone."""
    work, manifest = decoder_work(small), small.manifest
    embeddings = Embeddings(small.file(manifests.EMBEDDINGS), manifest.decoder)
    decoder = Decoder(small.file(manifests.DECODER), embeddings, manifest.decoder)
    counted = Counted(small.file(manifests.DECODER), 1)
    decoder.session = counted.session
    decoder.run(decoder.embed([5] * 11), text_positions(0, 11), decoder.new_cache(64))
    attention = 4 * manifest.decoder.layers * manifest.decoder.hidden * sum(range(1, 12))
    assert not work.integers
    assert counted.work().fp32_ops == work.passes(11, 0, chunk=512).fp32_ops - attention
    assert work.weight_bytes == 4 * work.sizes.decoder.weights


def test_a_prompt_reads_the_weights_once_a_chunk_and_a_token_sees_what_is_before_it():
    sizes = SHAPES["7b"]
    work = DecoderWork(sizes, 4e9, True)
    one = work.passes(1, 1000, chunk=512)
    assert one.bytes == 4e9 + sizes.kv_bytes(1001)
    assert one.int8_ops == 2 * sizes.decoder.weights
    assert one.fp32_ops == 4 * sizes.layers * sizes.hidden * 1001
    prompt = work.passes(1100, 100, chunk=512)
    assert prompt.bytes == 3 * 4e9 + sizes.kv_bytes(612) + sizes.kv_bytes(1124) + sizes.kv_bytes(1200)
    assert prompt.fp32_ops == 4 * sizes.layers * sizes.hidden * sum(100 + i for i in range(1, 1101))
    head = sizes.vocab * sizes.hidden
    assert prompt.int8_ops == 2 * (1100 * (sizes.decoder.weights - head) + head)


def test_a_gpus_graphs_compute_what_they_are_said_to():
    """On the CPU: the same graphs, the same numbers. A GPU that is not there is an error, never a figure."""
    x = np.linspace(-1, 1, 256, dtype=np.float16).reshape(2, 128)
    weight = np.full((128, 64), 1 / 64, np.float16)

    def run(model, feeds):
        opened = ort.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
        return opened.run(None, feeds)[0]

    sums = x.astype(np.float32).sum(axis=1, keepdims=True)
    found = run(half_graph(x, weight), {"x": x, "weight": weight})
    # float16 keeps 11 bits of a sum near 1
    np.testing.assert_allclose(found, sums / 64, atol=2e-3)
    np.testing.assert_allclose(run(half_block_graph(x), {"x": x}), sums / 128, atol=2e-3)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(DeviceError, match="without its CUDA provider"):
            benches.device_ceilings(benches.Plan(device="cuda"))
