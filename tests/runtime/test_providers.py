"""Naming a device and opening a session there, and what is said when a provider cannot be had.

No GPU is used here; the bundle's graphs and passes on one: test_cuda.py.
"""

from types import SimpleNamespace

import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.runtime import providers
from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.providers import CUDA, Placement, check_session, cuda_session, read_device
from rexthinker_edge.runtime.thinker import load, small_bundle

SMALL = small_bundle()


@pytest.mark.parametrize(
    ("text", "kind", "index"),
    [("cpu", "cpu", 0), ("cuda", "cuda", 0), ("cuda:1", "cuda", 1), ("tensorrt", "tensorrt", 0)],
)
def test_devices_are_read(text, kind, index):
    assert read_device(text) == Placement(kind, index)


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:-1", "cpu:0", "tensorrt:1", "CUDA", "cuda:1 ", None])
def test_other_devices_are_refused(text):
    with pytest.raises(DeviceError, match="runs bundles on cpu, cuda, cuda:N and tensorrt only"):
        read_device(text)


def test_without_the_provider_the_remedy_is_the_wheel(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    wanted = r"device 'cuda:1': .* without its CUDA provider.*pip install 'onnxruntime-gpu\[cuda,cudnn\]"
    with pytest.raises(DeviceError, match=wanted):
        load(SMALL, device="cuda:1")


@pytest.fixture
def provider(monkeypatch):
    """An ONNX Runtime that says it has the CUDA provider."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))
    return monkeypatch


def test_a_missing_library_is_named_with_its_package(provider, capsys):
    said = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    provider.setattr(providers, "library_trouble", lambda _: said)
    wanted = r"libcublasLt.so.13: cannot open .* Failed to load libcudnn.so.9.*onnxruntime-gpu\[cuda,cudnn\]"
    with pytest.raises(DeviceError, match=wanted):
        providers.require_cuda(Placement("cuda"))
    assert capsys.readouterr().out == ""  # what ONNX Runtime prints would spoil --json


def test_a_missing_driver_is_told_apart(provider):
    provider.setattr(providers, "library_trouble", lambda _: "libcuda.so.1: cannot open shared object file")
    with pytest.raises(DeviceError, match="install NVIDIA's driver, so that nvidia-smi lists the GPU"):
        providers.require_cuda(Placement("cuda"))


def test_a_gpu_that_does_not_answer_is_told(provider):
    provider.setattr(providers, "library_trouble", lambda _: "")

    def refuse(*_):
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")

    provider.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", refuse)
    with pytest.raises(DeviceError, match=r"CUDA failure 100: no CUDA-capable .* look whether nvidia-smi"):
        providers.require_cuda(Placement("cuda"))


def test_an_older_runtime_is_refused(provider):
    provider.setattr(ort, "__version__", "1.30.2")
    with pytest.raises(DeviceError, match=r"ONNX Runtime 1.30.2, 1.31 or newer is needed"):
        providers.require_cuda(Placement("cuda"))


def test_a_library_that_does_not_load_says_why(tmp_path):
    assert providers.library_trouble(tmp_path) == ""
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    assert "libonnxruntime_providers_cuda.so" in providers.library_trouble(tmp_path)


def session_like(names, parts):
    """What check_session looks at."""
    assigned = [
        SimpleNamespace(
            ep_name=name,
            get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op, name=f"a/{op}") for op in ops],
        )
        for name, ops in parts
    ]
    return SimpleNamespace(get_providers=lambda: names, get_provider_graph_assignment_info=lambda: assigned)


def test_a_session_that_fell_back_is_refused():
    both = [CUDA, "CPUExecutionProvider"]
    check_session(session_like(both, [(CUDA, ["MatMul", "Add"])]), Placement("cuda"))
    with pytest.raises(DeviceError, match="opened the graph on CPUExecutionProvider instead"):
        check_session(session_like(["CPUExecutionProvider"], []), Placement("cuda"))
    left = session_like(both, [(CUDA, ["MatMul"]), ("CPUExecutionProvider", ["TopK"] * 7)])
    with pytest.raises(DeviceError, match=r"left to the CPU: TopK \(a/TopK\), .* and 2 more"):
        check_session(left, Placement("cuda"))


def test_a_session_is_made_with_every_option_said(monkeypatch):
    made = {}

    class Session:
        def __init__(self, model, options, **given):
            made.update(given, model=model, options=options)

        def disable_fallback(self):
            made["disabled"] = True

        get_providers = staticmethod(lambda: [CUDA, "CPUExecutionProvider"])
        get_provider_graph_assignment_info = staticmethod(list)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    cuda_session(b"graph", SMALL / "decoder.onnx", Placement("cuda", 1), threads=2, capture=True)
    assert made["providers"] == [
        (CUDA, {**providers.CUDA_OPTIONS, "device_id": "1", "enable_cuda_graph": "1"})
    ]
    assert (made["enable_fallback"], made["disabled"], made["model"]) == (0, True, b"graph")
    entries = {
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
        "ep.cuda.fpa_intb_gemm": "1",
        providers.DATA_FOLDER: str(SMALL),
    }
    for key, value in entries.items():
        assert made["options"].get_session_config_entry(key) == value
    cuda_session(b"graph", SMALL / "vision.onnx", Placement("cuda"))
    assert made["providers"][0][1]["enable_cuda_graph"] == "0"


def test_what_the_provider_says_against_a_graph_is_told(monkeypatch):
    def refuse(*_, **__):
        raise refusals.Fail("This session contains graph nodes that are assigned to the default CPU EP")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(DeviceError, match=r"cannot open small/vision.onnx there \(This session contains"):
        cuda_session(b"", SMALL / "vision.onnx", Placement("cuda"))
