"""Everything of device="cuda" up to the provider: graphs, buffers, passes (test_providers.py: sessions).

The provider itself is stood in for by the CPU's, which runs the very float16 graphs; no GPU is used here.
"""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.numpy import save_file

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.kernels.int8_linear import ChannelWeight, dequantize_channels, lower_int8_linear
from rexthinker_edge.runtime import bundle as bundles
from rexthinker_edge.runtime import cuda_parts, parts, providers
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.cuda_decoder import CAPACITY_STEP, CAPTURED, SPARE, CudaDecoder
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import BundleError, DeviceError
from rexthinker_edge.runtime.graph_file import FLOAT, FLOAT16, GraphFile, read_graph
from rexthinker_edge.runtime.half_graph import CUDA_KERNELS, check_kernels, half_decoder, half_vision
from rexthinker_edge.runtime.half_graph import whole_integers as whole
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.providers import Placement
from rexthinker_edge.runtime.qwen_pixels import VisionInput
from rexthinker_edge.runtime.thinker import load, small_bundle
from rexthinker_edge.runtime.tiny_onnx import TinyGraph

HOST = Placement("cpu")  # buffers in the host's memory
SMALL = small_bundle()
GRAPHS = (manifests.DECODER, manifests.VISION, manifests.DETECTOR, manifests.DETECTOR_TEXT)
# float16 keeps 11 bits: a rounding is off by 2^-12 at most, and a layer has about a dozen in a row. Twelve of
# them in each of six layers, all in one direction, make 72 * 2^-12 = 1.8 % of the largest value.
HALF = 72 * 2.0**-12


def host_session(model, folder):
    """What stands in for a session on the GPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry(providers.DATA_FOLDER, str(folder))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def on_host(folder, geometry, embeddings):
    """The decoder in `folder` as the GPU would run it."""
    graph = read_graph(folder / manifests.DECODER)
    half_decoder(graph)
    session = host_session(graph.serialise(), folder)
    return CudaDecoder(session, embeddings, replace(geometry, branches=False), HOST)


def as_bundled(folder, geometry, embeddings):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return Decoder(folder / manifests.DECODER, embeddings, geometry, options)


@pytest.fixture(scope="module")
def pair():
    """The bundled decoder, as it is and as the GPU would run it."""
    geometry = bundles.open_bundle(SMALL).manifest.decoder
    embeddings = Embeddings(SMALL / manifests.EMBEDDINGS, geometry)
    return as_bundled(SMALL, geometry, embeddings), on_host(SMALL, geometry, embeddings)


IDS = [(7 * i * i + 13 * i + 5) % 300 for i in range(60)]


def read(decoder, cache, start, stop, last_only=False):
    return decoder.run(decoder.embed(IDS[start:stop]), text_positions(start, stop - start), cache, last_only)


def off(ours, theirs):
    """Largest difference as a share of the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_was_not_changed_is_the_same_graph(name):
    before = onnx.load(SMALL / name, load_external_data=False)
    after = onnx.load_from_string(read_graph(SMALL / name).serialise())
    for node in (*before.graph.node, *after.graph.node):
        node.domain = node.domain  # "" may be written or left out
    assert list(after.graph.node) == list(before.graph.node)
    for part in ("initializer", "input", "output"):
        assert list(getattr(after.graph, part)) == list(getattr(before.graph, part))
    assert (after.ir_version, list(after.opset_import)) == (before.ir_version, list(before.opset_import))


def test_a_graph_that_is_none_is_refused(tmp_path):
    path = tmp_path / "decoder.onnx"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(BundleError, match=r"decoder.onnx: .*an ONNX graph is needed. Copy the bundle again."):
        read_graph(path)


def test_the_decoder_becomes_float16_and_keeps_its_weights():
    graph = read_graph(SMALL / manifests.DECODER)
    weights = {name: weight.fields for name, weight in graph.weights.items()}
    half_decoder(graph)
    assert {name: weight.fields for name, weight in graph.weights.items()} == weights
    assert "attention_bias" not in graph.inputs
    assert {value.element for name, value in graph.inputs.items() if "." in name} == {FLOAT16}
    assert graph.outputs["logits"].element == FLOAT
    model = onnx.load_from_string(graph.serialise())
    attention = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    assert {len(node.input) for node in attention} == {7}
    targets = Counter(node.attribute[0].i for node in model.graph.node if node.op_type == "Cast")
    assert targets[onnx.TensorProto.FLOAT] == 1  # the logits


def test_float16_logits_are_the_float32_ones_up_to_rounding(pair):
    plain, half = pair
    expected = read(plain, plain.new_cache(60), 0, 60)
    cache = half.new_cache(60)
    assert off(read(half, cache, 0, 40), expected[:40]) < HALF  # one pass that is not recorded
    assert off(read(half, cache, 40, 44), expected[40:44]) < HALF  # and passes that are
    assert off(read(half, cache, 44, 60, last_only=True), expected[59:60]) < HALF


def test_passes_in_any_grouping_and_after_a_rewind_agree(pair):
    _, half = pair
    cache = half.new_cache(60)
    read(half, cache, 0, 40)
    first = read(half, cache, 40, 48)
    for widths in ((2, 2, 2, 2), (4, 4), (2, 6)):
        cache.rewind(40)
        parts, at = [], 40
        for width in widths:
            parts.append(read(half, cache, at, at + width))
            at += width
        assert off(np.concatenate(parts), first) < HALF
    cache.rewind(40)
    assert np.array_equal(read(half, cache, 40, 48), first)


def test_rows_leave_and_return_as_float32(pair):
    _, half = pair
    cache = half.new_cache(60)
    read(half, cache, 0, 50)
    rows = cache.rows(10, 50)
    assert (rows.dtype, rows.shape[2]) == (np.float32, 40)
    other = half.new_cache(60)
    read(half, other, 0, 10)
    other.append(rows)
    fork = cache.fork(50, 60)
    expected = read(half, cache, 50, 54)
    assert np.array_equal(read(half, other, 50, 54), expected)
    assert np.array_equal(read(half, fork, 50, 54), expected)


def test_a_cache_grows_and_keeps_what_it_held(pair):
    _, half = pair
    half = CudaDecoder(half.session, half.embeddings, half.geometry, HOST)
    cache = half.new_cache(10)
    assert cache.capacity == min(CAPACITY_STEP, half.geometry.max_length)
    read(half, cache, 0, 40)
    before = cache.rows(0, 40)
    small = cache.buffers
    cache.reserve(CAPACITY_STEP + 1)
    assert cache.capacity == min(2 * CAPACITY_STEP, half.geometry.max_length)
    assert np.array_equal(cache.rows(0, 40), before)
    if cache.capacity > CAPACITY_STEP:
        assert half._spare == [small]
    cache.reserve(half.geometry.max_length + 5_000)
    assert cache.capacity == half.geometry.max_length
    assert cache.nbytes == cache.capacity * half.geometry.layers * half.geometry.kv_heads * (
        half.geometry.head_dim * 2 * 2
    )


class Watched:
    """A session that notes which recorded pass is run, with which addresses, and which are released."""

    def __init__(self, session):
        self._session, self.ran, self.released = session, [], []

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding, options):
        self.ran.append((options.get_run_config_entry("gpu_graph_id"), id(binding)))
        self._session.run_with_iobinding(binding, options)

    def release_captured_graph(self, graph_id):
        self.released.append(graph_id)


def test_a_recorded_pass_belongs_to_one_cache_and_one_number_of_tokens(pair):
    _, half = pair
    watched = Watched(half.session)
    half = CudaDecoder(watched, half.embeddings, half.geometry, HOST)
    caches = [half.new_cache(60), half.new_cache(60)]
    for cache in caches:
        read(half, cache, 0, 40)
        for start, stop in ((40, 42), (42, 44), (44, 47), (47, 50)):
            read(half, cache, start, stop)
    ids = [graph_id for graph_id, _ in watched.ran]
    assert ids == ["-1", "1", "1", "2", "2", "-1", "3", "3", "4", "4"]
    bound = [binding for graph_id, binding in watched.ran if graph_id != "-1"]
    assert bound[0] == bound[1] != bound[2] == bound[3]
    addresses = {id(half._steps[2].held["embeds"]), id(half._steps[3].held["embeds"])}
    assert len(addresses) == 2  # one set of inputs for each number of tokens, whichever the cache


def test_buffers_pass_to_the_next_cache_and_at_last_are_freed(pair):
    _, half = pair
    watched = Watched(half.session)
    half = CudaDecoder(watched, half.embeddings, half.geometry, HOST)
    cache = half.new_cache(60)
    read(half, cache, 0, 4)
    held = cache.buffers
    del cache
    cache = half.new_cache(50)
    assert cache.buffers is held
    read(half, cache, 0, 4)
    assert [graph_id for graph_id, _ in watched.ran] == ["1", "1"]
    caches = [cache, *(half.new_cache(60) for _ in range(SPARE))]
    for cache in caches:
        read(half, cache, cache.length, cache.length + 3)
    del cache
    caches.clear()
    assert len(half._spare) == SPARE
    assert watched.released == [4]  # the set that was given back first


def test_no_number_is_an_error(pair):
    _, half = pair
    cache = half.new_cache(60)
    embeds = np.full((3, half.geometry.hidden), np.nan, np.float32)
    with pytest.raises(DeviceError, match=r"logits that are no numbers, float16 .* Use device='cpu'."):
        half.run(embeds, text_positions(0, 3), cache)
    assert cache.length == 0
    assert CAPTURED == 32


CONFIG = TextConfig(
    hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocab=96, rms_norm_eps=1e-5,
    rope_theta=100.0, mrope_section=(2, 3, 3), max_position_embeddings=128, tied=False,
)  # fmt: skip


def test_integer_weights_of_a_decoder_serve_float16_too(tmp_path):
    rng = np.random.default_rng(3)
    weights = {
        "model.embed_tokens.weight": rng.standard_normal((96, 64)),
        "lm_head.weight": rng.standard_normal((96, 64)),
        "model.norm.weight": rng.uniform(0.5, 2, 64),
    }
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
    for layer in range(2):
        name = f"model.layers.{layer}"
        for part, shape in shapes.items():
            weights[f"{name}.self_attn.{part}.weight"] = rng.standard_normal(shape) / 8
            if part != "o_proj":
                weights[f"{name}.self_attn.{part}.bias"] = rng.standard_normal(shape[0])
        for part, shape in {"gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)}.items():
            weights[f"{name}.mlp.{part}.weight"] = rng.standard_normal(shape) / 8
        for part in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}.{part}.weight"] = rng.uniform(0.5, 2, 64)
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / "model.safetensors")
    recipe = IntegerRecipe(bits=4, block=32, accuracy_level=0)
    geometry = write_decoder(Checkpoint(tmp_path), CONFIG, tmp_path, 128, recipe)
    embeddings = Embeddings(tmp_path / manifests.EMBEDDINGS, geometry)
    plain, half = (make(tmp_path, geometry, embeddings) for make in (as_bundled, on_host))
    ids = [i % 96 for i in IDS[:12]]
    found = [
        decoder.run(decoder.embed(ids), text_positions(0, 12), decoder.new_cache(12), last_only=False)
        for decoder in (plain, half)
    ]
    assert off(found[1], found[0]) < HALF
    graph = read_graph(tmp_path / manifests.DECODER)
    half_decoder(graph)
    levels = {node.whole("accuracy_level") for node in graph.nodes if node.op == "MatMulNBits"}
    assert levels == {0}


def test_the_vision_tower_halves_products_and_nothing_delicate():
    graph = read_graph(SMALL / manifests.VISION)
    before = Counter(node.op for node in graph.nodes)
    stored = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.op == "Cast"}
    half_vision(graph)
    made = {node.outputs[0]: node for node in graph.nodes}
    halved = [n for n in graph.nodes if n.op in ("FusedMatMul", "MultiHeadAttention") and _in_half(n, made)]
    kept = [n for n in graph.nodes if n.op == "FusedMatMul" and not _in_half(n, made)]
    names = {stored.get(name, name) for node in kept for name in node.inputs[1:2]}
    assert all(re.search(r"patch_embed|down_proj|merger", name) for name in names)
    assert len(halved) + len(kept) == before["FusedMatMul"] + before["MultiHeadAttention"]
    assert {value.element for value in graph.outputs.values()} == {FLOAT}


def _in_half(node, made):
    producer = made.get(node.inputs[0])
    return producer is not None and producer.op == "Cast" and producer.whole("to") == FLOAT16


def test_the_vision_tower_sees_the_same_in_float16():
    tower = load(SMALL, threads=1)._parts.vision
    rng = np.random.default_rng(5)
    volume = tower.session.get_inputs()[0].shape[1]
    seen = VisionInput(rng.standard_normal((96, volume)).astype(np.float32), (1, 8, 12), (168, 112))
    expected = tower.encode(seen)
    graph = read_graph(SMALL / manifests.VISION)
    half_vision(graph)
    tower.session = host_session(graph.serialise(), SMALL)
    assert 0 < off(tower.encode(seen), expected) < HALF


def test_integer_products_become_whole_ones():
    rng = np.random.default_rng(1)
    weight = ChannelWeight(
        rng.integers(-63, 64, (32, 16)).astype(np.int8), rng.uniform(0.01, 0.1, 16).astype(np.float32)
    )
    bias, x = rng.standard_normal(16).astype(np.float32), rng.standard_normal((5, 32)).astype(np.float32)
    tiny = TinyGraph()
    name = tiny.input("x", x)
    for given in (None, tiny.constant(bias)):
        made = lower_int8_linear(tiny, name, tiny.constant(weight.codes), tiny.constant(weight.scales), given)
        tiny.output(made)
    graph, halved = GraphFile(tiny.serialise()), GraphFile(tiny.serialise())
    for count, nodes in enumerate(zip(graph.nodes, halved.nodes, strict=True)):
        for node in nodes:
            node.name = f"layer{count}"  # as the exporter names them; two of one name are refused
    with pytest.raises(DeviceError, match=r"vision\.onnx holds DynamicQuantizeMatMul, for which"):
        check_kernels(graph, "vision.onnx", "float32")
    whole(graph)
    check_kernels(graph, "vision.onnx", "float32")
    plain, biased = host_session(graph.serialise(), SMALL).run(None, {"x": x})
    expected = x @ dequantize_channels(weight).T  # a float32 sum of 32 products
    assert np.allclose(plain, expected, atol=1e-4)
    assert np.allclose(biased, expected + bias, atol=1e-4)
    half_vision(halved)
    names = [node.name for node in halved.nodes]
    assert len(set(names)) == len(names)
    assert off(host_session(halved.serialise(), SMALL).run(None, {"x": x})[1], expected + bias) < HALF


@pytest.mark.parametrize("name", GRAPHS)
def test_every_operator_of_the_bundle_has_a_cuda_kernel(name):
    graph = read_graph(SMALL / name)
    whole(graph)
    check_kernels(graph, name, "float32" if name != manifests.DECODER else "float16")


def test_the_table_of_kernels_is_what_the_provider_has():
    """Pinned: read from the symbols of libonnxruntime_providers_cuda.so of onnxruntime-gpu 1.31.1."""
    assert CUDA_KERNELS["GroupQueryAttention"] == ("float16",)  # no float32, so the decoder must be halved
    assert CUDA_KERNELS["GridSample"] == ("float32",)  # so the detector must not be
    assert "DynamicQuantizeMatMul" not in CUDA_KERNELS
    for op in ("MatMulNBits", "MRotaryEmbedding", "SkipSimplifiedLayerNormalization", "MultiHeadAttention"):
        assert CUDA_KERNELS[op] == ("float16", "float32")


def test_a_bundle_loaded_for_the_gpu_answers(monkeypatch):
    """The whole way with the CPU's provider in place of CUDA's."""
    asked = []

    def stand_in(model, path, placement, threads=0, capture=False):
        asked.append((path.name, placement, capture))
        return host_session(model, path.parent)

    monkeypatch.setattr(parts, "require_cuda", asked.append)
    monkeypatch.setattr(cuda_parts, "cuda_session", stand_in)
    monkeypatch.setattr(Placement, "memory", "cpu")
    loaded = load(SMALL, device="cuda:1", threads=1)
    gpu = Placement("cuda", 1)
    assert asked[0] == gpu
    assert sorted(asked[1:]) == sorted((name, gpu, name == manifests.DECODER) for name in GRAPHS)
    assert loaded.describe()["device"] == "cuda:1"
    picture = np.full((112, 140, 3), 200, np.uint8)
    picture[20:60, 20:60] = (250, 20, 20)
    scene = loaded.look(picture, "ball", boxes=[[15, 15, 65, 65], [80, 60, 120, 100]])
    first = scene.refer("the left ball", max_new_tokens=24)
    again = loaded.look(picture, "ball", boxes=[[15, 15, 65, 65], [80, 60, 120, 100]])
    assert again.refer("the left ball", max_new_tokens=24).token_ids == first.token_ids
    plainly = scene.refer("the left ball", max_new_tokens=24, drafting=False)
    assert plainly.token_ids == first.token_ids
    together = scene.refer_many(["the left ball", "the right ball"], max_new_tokens=8)
    assert together[0].token_ids == first.token_ids[:8]
    assert first.tokens.generated > 0
    expected = load(SMALL, threads=1).look(picture, "ball").candidates
    found = loaded.look(picture, "ball").candidates
    assert len(found) == len(expected)
