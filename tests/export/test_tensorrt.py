"""TensorRT without TensorRT: the graphs it would read, their sizes, and everything up to its own calls.

The stand-in `Trt` has the calls of the Python API 10.x that are used; its "engine" is the very graph that a
builder would be given, and running it runs that graph in ONNX Runtime. So the whole way is tested but for
what TensorRT makes of it.
"""

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from rexthinker_edge.export.half import DETECTOR, VISION, Policy, Rule, halve
from rexthinker_edge.export.standard_operators import standardise
from rexthinker_edge.export.tensorrt import PARTS, EngineOptions, build_engines, prepare
from rexthinker_edge.export.tensorrt_profiles import detector_profiles, symbols, vision_profiles
from rexthinker_edge.export.tensorrt_support import problems
from rexthinker_edge.runtime import engine as engines
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.dino_pixels import dino_size
from rexthinker_edge.runtime.engine_card import Machine, engines_directory
from rexthinker_edge.runtime.errors import ConfigError, DeviceError, MissingExtraError, OptionError
from rexthinker_edge.runtime.parts import open_parts
from rexthinker_edge.runtime.qwen_pixels import smart_resize
from rexthinker_edge.runtime.thinker import load, small_bundle
from rexthinker_edge.runtime.vision import attention_windows, patch_positions

HERE = Machine("Test GPU", "8.7", "540.4", "10.3.0")
OPTIONS = ort.SessionOptions()
OPTIONS.intra_op_num_threads, OPTIONS.log_severity_level = 1, 3


@pytest.fixture(scope="module")
def bundle():
    return open_bundle(small_bundle())


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def prepared(request, bundle):
    return request.param, {part.graph: prepare(bundle, part, request.param) for part in PARTS}


def vision_feeds(bundle, height, width):
    windows = attention_windows(height, width, bundle.manifest.vision)
    patches = np.random.default_rng(height).normal(size=(height * width, 1176)).astype(np.float32)
    return {
        "patches": patches, "positions": patch_positions(height, width, 2)[:, None],
        "window_rows": windows.rows, "window_lengths": windows.lengths, "row_slots": windows.slots,
    }  # fmt: skip


def test_every_operator_of_the_bundled_graphs_is_on_the_published_list(prepared):
    _, parts = prepared
    assert sorted(parts) == ["detector.onnx", "vision.onnx"]
    for graph, _ in parts.values():
        model = graph.skeleton()
        assert problems(model) == []
        assert {node.domain for node in model.graph.node} == {""}
        assert model.opset_import[0].version <= 19


def test_dynamic_sizes_are_in_order_and_within_limits(prepared):
    _, parts = prepared
    for graph, profiles in parts.values():
        inputs = symbols(graph.skeleton())
        for profile in profiles:
            for name, given_range in profile.ranges().items():
                trio = zip(given_range.least, given_range.usual, given_range.most, strict=True)
                assert all(1 <= low <= usual <= high for low, usual, high in trio), (profile.name, name)
                assert np.prod(given_range.most) < 2**31  # elements of one tensor
                fixed = [side for side in inputs[name] if isinstance(side, int)]
                assert fixed == [
                    side for side, axis in zip(given_range.usual, inputs[name], strict=True)
                    if isinstance(axis, int)
                ]  # fmt: skip


@pytest.mark.parametrize("grid", [(8, 8), (10, 14), (2, 30), (24, 18)])
def test_lowered_vision_equals_the_bundled_graph(bundle, prepared, tmp_path, grid):
    precision, parts = prepared
    graph, _ = parts["vision.onnx"]
    graph.save(tmp_path / "vision.onnx")
    feeds = vision_feeds(bundle, *grid)
    path = str(bundle.file("vision.onnx"))
    expected = ort.InferenceSession(path, OPTIONS).run(None, feeds)[0]
    found = ort.InferenceSession(str(tmp_path / "vision.onnx"), OPTIONS).run(None, feeds)[0]
    # float32: sums of up to 1,176 products in another order. float16: 2**-11 of each of some ten roundings.
    tolerance = 1e-5 if precision == "fp32" else 2**-11 * 10
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_weights_of_half_layers_are_stored_in_half(bundle):
    graph = standardise(bundle.file("vision.onnx"))
    halve(graph, VISION)
    kinds = {name: weight.element for name, weight in graph.weights.items()}
    assert any(kind == TensorProto.FLOAT16 for kind in kinds.values())
    single = [name for name in kinds if "down_proj" in name or "merger" in name or "patch_embed" in name]
    assert single
    assert all(kinds[name] == TensorProto.FLOAT for name in single)


def test_a_rule_that_protects_nothing_is_an_error(bundle):
    graph = standardise(bundle.file("detector.onnx"))
    with pytest.raises(ConfigError, match=r"no operator is called 'sampling_ofsets', the precision rules"):
        halve(graph, Policy(single=(Rule("sampling_ofsets", "a slip of the pen"),)))
    assert all(rule.why for rule in (*VISION.single, *DETECTOR.single))


def model_of(*nodes, inputs, outputs=(("y", TensorProto.FLOAT, None),), opset=17, constants=()):
    values = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "g", *values, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


X = ("x", TensorProto.FLOAT, [1, 4000])
PICTURE, PLACES = ("p", TensorProto.FLOAT, [1, 1, 4, 4]), ("q", TensorProto.FLOAT, [1, 2, 2, 2])


@pytest.mark.parametrize(
    ("nodes", "extra", "said"),
    [
        ([helper.make_node("Unique", ["x"], ["y"])], {}, "not on the list"),
        ([helper.make_node("NonZero", ["x"], ["y"])], {}, "not on the list"),
        ([helper.make_node("Relu", ["x"], ["y"])], {"opset": 21}, "opset 21, 9 to 20 are read"),
        (
            [helper.make_node("TopK", ["x", "k"], ["y", "i"])],
            {"constants": [helper.make_tensor("k", TensorProto.INT64, [1], [3840])]},
            "K must be below 3840",
        ),
        (
            [helper.make_node("Sin", ["d"], ["y"])],
            {"inputs": [("d", TensorProto.DOUBLE, [3])], "outputs": (("y", TensorProto.DOUBLE, None),)},
            "input 0 is DOUBLE, not on its list of types",
        ),
        (
            [helper.make_node("Unsqueeze", ["x", "a"], ["y"])],
            {"inputs": [X, ("a", TensorProto.INT64, [1])]},
            "input 1 must be a constant",
        ),
        (
            [helper.make_node("GridSample", ["p", "q"], ["y"], mode="linear")],
            {"inputs": [PICTURE, PLACES], "opset": 20},
            "mode b'linear'",
        ),
        ([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)], {}, "to STRING"),
    ],
)  # fmt: skip
def test_what_the_list_does_not_allow_is_told(nodes, extra, said):
    model = model_of(*nodes, **{"inputs": [X], **extra})
    assert any(said in problem for problem in problems(model)), problems(model)


def test_an_operator_without_a_lowering_is_refused(tmp_path):
    model = model_of(helper.make_node("BiasGelu", ["x", "x"], ["y"], domain="com.microsoft"), inputs=[X])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "vision.onnx")
    with pytest.raises(ConfigError, match=r"vision.onnx: operator com.microsoft.BiasGelu .* has no lowering"):
        standardise(tmp_path / "vision.onnx")


def test_linear_sampling_gets_the_name_that_the_parser_knows(tmp_path):
    """TensorRT 10.1 takes opset 20's "linear" for nearest, without a word."""
    node = helper.make_node("GridSample", ["p", "q"], ["y"], mode="linear", padding_mode="zeros")
    inputs = [("p", TensorProto.FLOAT, [1, 1, 4, 4]), ("q", TensorProto.FLOAT, [1, 2, 2, 2])]
    onnx.save(model_of(node, inputs=inputs, opset=20), tmp_path / "g.onnx")
    graph = standardise(tmp_path / "g.onnx")
    (made,) = [n for n in graph.nodes_list if n.op_type == "GridSample"]
    assert {a.name: helper.get_attribute_value(a) for a in made.attribute}["mode"] == b"bilinear"
    assert graph.opset == 19


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_every_picture_has_a_profile(width, height):
    manifest = open_bundle(small_bundle()).manifest
    prompt, vision = manifest.prompt, manifest.vision
    rules = manifest.detector
    seen = dino_size((width, height), rules.shortest_px, rules.longest_px, rules.least_px)
    assert any(_within(profile, "pixel_values", (1, 3, seen[1], seen[0])) for profile in DETECTOR_PROFILES)
    if max(width, height) <= 200 * min(width, height):
        down, across = (
            side // vision.patch for side in smart_resize(height, width, prompt.min_pixels, prompt.max_pixels)
        )
        windows = attention_windows(down, across, vision)
        assert any(
            _within(profile, "patches", (down * across, 1176))
            and _within(profile, "window_rows", windows.rows.shape)
            for profile in VISION_PROFILES
        )


def _within(profile, name, shape):
    return profile.ranges()[name].holds(shape)


def _profiles():
    opened = open_bundle(small_bundle())
    manifest = opened.manifest
    of = {
        name: symbols(onnx.load(opened.file(name), load_external_data=False))
        for name in ("vision.onnx", "detector.onnx")
    }
    return (
        vision_profiles(manifest.vision, manifest.prompt, of["vision.onnx"]),
        detector_profiles(replace(manifest.detector, tables=None), PIXELS),
    )


PIXELS = {"pixel_values": [1, 3, "height", "width"]}
VISION_PROFILES, DETECTOR_PROFILES = _profiles()


class Trt:
    """The calls of `tensorrt` that are used, with what was asked kept in `asked`."""

    __version__ = "10.3.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE")
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    TensorIOMode = SimpleNamespace(INPUT=0, OUTPUT=1)

    def __init__(self, refuse=False):
        self.asked, self.refuse = [], refuse

        class Logger:
            WARNING = 2

            def __init__(self, level):
                pass

        self.Logger = Logger

    def Builder(self, logger):  # noqa: N802 - TensorRT's name
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(flags=flags),
            create_builder_config=lambda: Config(self.asked),
            create_optimization_profile=Ranges,
            build_serialized_network=self._built,
        )

    def _built(self, network, config):
        self.asked.append(("flags", network.flags, len(config.profiles)))
        return None if self.refuse else network.model.SerializeToString()

    def OnnxParser(self, network, logger):  # noqa: N802
        def parse(path):
            network.model = onnx.load(path)
            shapes = {"level_cells", "level_sides"}
            network.inputs = [
                SimpleNamespace(name=i.name, is_shape_tensor=i.name in shapes)
                for i in network.model.graph.input
            ]
            network.num_inputs, network.get_input = len(network.inputs), network.inputs.__getitem__
            return True

        return SimpleNamespace(parse_from_file=parse, num_errors=0)

    def Runtime(self, logger):  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=Engine)

    @staticmethod
    def nptype(kind):
        return kind


class Config:
    """Of a builder."""

    def __init__(self, asked):
        self.asked, self.profiles, self.cache = asked, [], None

    def clear_flag(self, flag):
        self.asked.append(("clear", flag))

    def set_flag(self, flag):
        self.asked.append(("set", flag))

    def set_memory_pool_limit(self, pool, size):
        self.asked.append((pool, size))

    def create_timing_cache(self, raw):
        return raw

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        self.asked.append(("cache", bytes(cache)))
        return cache != b"of another GPU"

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: b"timings")

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)


class Ranges:
    """An optimisation profile."""

    def set_shape(self, name, least, usual, most):
        assert len(least) == len(usual) == len(most), name

    def set_shape_input(self, name, least, usual, most):
        assert all(isinstance(value, int) for value in (*least, *usual, *most)), name


class Engine:
    """Runs the lowered graph in ONNX Runtime, through raw addresses as TensorRT does."""

    def __init__(self, raw):
        self.session = ort.InferenceSession(raw, OPTIONS)
        self.given = {
            value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())
        }
        self.names = list(self.given)
        self.num_io_tensors = len(self.names)
        self.shapes, self.addresses = {}, {}

    def create_execution_context(self):
        return self

    def get_tensor_name(self, number):
        return self.names[number]

    def get_tensor_mode(self, name):
        return int(name in {value.name for value in self.session.get_outputs()})

    def get_tensor_dtype(self, name):
        return {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32,
                "tensor(bool)": np.bool_}[self.given[name].type]  # fmt: skip

    def is_shape_inference_io(self, name):
        return False

    def set_optimization_profile_async(self, number, stream):
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        sides = [side if isinstance(side, int) else -1 for side in self.given[name].shape]
        if self.shapes and -1 in sides:  # only the caption's or the features' length is free
            self.result = dict(zip([o.name for o in self.session.get_outputs()], self._run(), strict=True))
            return self.result[name].shape
        return sides

    def _array(self, name, shape):
        kind = np.dtype(self.get_tensor_dtype(name))
        size = int(np.prod(shape)) * kind.itemsize
        raw = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(raw, kind).reshape(shape)

    def _run(self):
        return self.session.run(None, {name: self._array(name, shape) for name, shape in self.shapes.items()})

    def execute_async_v3(self, stream):
        for output, value in zip(self.session.get_outputs(), self._run(), strict=True):
            self._array(output.name, value.shape)[...] = value
        return True


@pytest.fixture
def built(tmp_path):
    """A copy of the small bundle with fp32 engines beside it."""
    target = tmp_path / "small"
    target.mkdir()
    for item in small_bundle().iterdir():
        (target / item.name).symlink_to(item) if False else (target / item.name).write_bytes(
            item.read_bytes()
        )
    opened, trt = open_bundle(target), Trt()
    told = []
    build_engines(opened, EngineOptions("fp32"), lambda *step: told.append(step), trt, HERE)
    assert told[-1] == ("done", 2, 2)
    return opened, trt


@pytest.fixture
def on_cpu(monkeypatch):
    """OrtValues on the CPU stand for those on a GPU."""
    monkeypatch.setattr(
        engines, "_on_gpu", lambda value: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
    )


def test_engines_answer_as_the_bundle_does(built, on_cpu, monkeypatch):
    opened, trt = built
    monkeypatch.setattr(engines, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(engines, "read_gpu", lambda version: replace(HERE, tensorrt=version))
    files = {item.name for item in engines_directory(opened.path).iterdir()}
    assert files == {"vision.engine", "vision.json", "detector.engine", "detector.json", "timing.cache"}
    assert ("clear", "TF32") in trt.asked  # for the detector
    assert [step for step in trt.asked if step[0] == "flags"] == [("flags", 2, 4), ("flags", 2, 4)]
    here, there = (open_parts(opened, OPTIONS, device) for device in ("cpu", "tensorrt"))
    golden = opened.manifest.golden[0]
    from PIL import Image  # noqa: PLC0415

    pixels = np.asarray(Image.open(opened.file(golden.picture)).convert("RGB"))
    expected, found = (parts.detector.detect(pixels, golden.category) for parts in (here, there))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels  # noqa: PLC0415

    given = qwen_pixels(
        pixels, PixelLimits(opened.manifest.prompt.min_pixels, opened.manifest.prompt.max_pixels)
    )
    np.testing.assert_allclose(there.vision.encode(given), here.vision.encode(given), atol=1e-4)


def test_an_engine_of_another_machine_is_refused_with_every_difference(built):
    opened, trt = built
    other = Machine("Orin", "8.7", "36.4", "10.4.0")
    with pytest.raises(DeviceError) as told:
        engines.open_engine(opened, "vision.onnx", trt, other)
    text = str(told.value)
    for part in ("GPU is 'Orin' here, the engine was built for 'Test GPU'", "driver is '36.4' here",
                 "TensorRT is '10.4.0' here, the engine needs '10.3.0' (the same version)",
                 "Build the engines again on this machine: rexthinker-edge export"):  # fmt: skip
        assert part in text
    assert "compute capability" not in text
    renamed = replace(opened, manifest=replace(opened.manifest, files=opened.manifest.files | {
        "vision.onnx": replace(opened.manifest.files["vision.onnx"], sha256="0" * 64)}))  # fmt: skip
    with pytest.raises(DeviceError, match=r"vision.onnx is another one"):
        engines.open_engine(renamed, "vision.onnx", trt, HERE)
    (engines_directory(opened.path) / "vision.engine").write_bytes(b"altered")
    with pytest.raises(DeviceError, match=r"vision.engine: not the file its card describes"):
        engines.open_engine(opened, "vision.onnx", trt, HERE)
    (engines_directory(opened.path) / "vision.json").write_text('{"format_version": 1}')
    with pytest.raises(DeviceError, match=r"vision.json: missing key graph, an engine's card is needed"):
        engines.open_engine(opened, "vision.onnx", trt, HERE)
    (engines_directory(opened.path) / "vision.json").unlink()
    with pytest.raises(DeviceError, match=r"vision.json: missing, every engine has one"):
        engines.open_engine(opened, "vision.onnx", trt, HERE)


def test_a_failed_build_leaves_what_stood_there(built):
    opened, _ = built
    before = (engines_directory(opened.path) / "vision.json").read_bytes()
    with pytest.raises(DeviceError, match=r"vision.onnx: TensorRT 10.3.0 cannot build an engine"):
        build_engines(opened, EngineOptions("fp32"), lambda *_: None, Trt(refuse=True), HERE)
    assert (engines_directory(opened.path) / "vision.json").read_bytes() == before
    assert not list(engines_directory(opened.path).glob(".building-*"))


def test_without_tensorrt_the_remedy_is_named(bundle):
    with pytest.raises(MissingExtraError, match=r"the package tensorrt is not installed"):
        build_engines(bundle, EngineOptions(), lambda *_: None)
    with pytest.raises(OptionError, match=r"precision: 'int8', one of fp16, fp32 is needed"):
        build_engines(bundle, EngineOptions("int8"), lambda *_: None)
    with pytest.raises(DeviceError, match=r"missing, every engine has one"):
        load(device="tensorrt")
