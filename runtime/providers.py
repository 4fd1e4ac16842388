"""Which provider of ONNX Runtime a device is, and sessions that really run there or not at all.

What      "cpu", "tensorrt", "cuda" and "cuda:N". ONNX Runtime itself opens a session on the CPU and says so
          on stderr where CUDA cannot be had; here that is an error that names the cause and the remedy.
Contract  A CUDA session is made with explicit options and is checked after it was made: its first provider,
          and that no operator was left to the CPU. What ONNX Runtime's Python does by itself, trying again on
          the CPU, is switched off.
Elsewhere what runs in these sessions: cuda_decoder.py, vision.py, detector.py; graphs for them:
          half_graph.py; TensorRT: engine.py.
Source    docs/cuda.md#no-silent-fallback
"""

import contextlib
import ctypes
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.opening import DATA_FOLDER, REFUSALS

CUDA = "CUDAExecutionProvider"
KINDS = ("cpu", "cuda", "tensorrt")
INSTALL = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.31'"
CUDNN = "libcudnn.so.9"
LEAST_RUNTIME = (1, 31)  # CUDA kernels as half_graph.py lists them
# Provider options, all of them said: a default that changes must not change what we measure.
CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # the largest power of two would waste half a small card
    "cudnn_conv_algo_search": "HEURISTIC",  # two convolutions: no search is worth its seconds
    "do_copy_in_default_stream": "1",
    "use_tf32": "0",  # float32 means float32; what may be less is float16 in the graph
}


@dataclass(frozen=True)
class Placement:
    """Where a bundle runs: `kind` is one of KINDS, `index` the GPU's number."""

    kind: str
    index: int = 0

    @property
    def memory(self) -> str:
        """What ONNX Runtime calls the memory of the decoder's buffers."""
        return "cuda" if self.kind == "cuda" else "cpu"


def read_device(device: str) -> Placement:
    """Read "cpu", "tensorrt", "cuda" or "cuda:1".

    Raises:
        DeviceError: it is none of them.
    """
    found = (
        re.fullmatch(r"(cpu|tensorrt|cuda)(?::([0-9]{1,2}))?", device) if isinstance(device, str) else None
    )
    if found is None or (found[2] is not None and found[1] != "cuda"):
        raise DeviceError(
            f"device {device!r}: this version runs bundles on cpu, cuda, cuda:N and tensorrt only. "
            'Use device="cpu".'
        )
    return Placement(found[1], int(found[2] or 0))


def require_cuda(placement: Placement) -> None:
    """Make sure that the CUDA provider loads and that its GPU answers.

    Raises:
        DeviceError: the cause, in ONNX Runtime's or the system's words, and what to install.
    """
    if CUDA not in ort.get_available_providers():
        raise _refused(
            placement, f"ONNX Runtime {ort.__version__} is installed without its CUDA provider", INSTALL
        )
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < LEAST_RUNTIME:
        needed = ".".join(str(part) for part in LEAST_RUNTIME)
        raise _refused(placement, f"ONNX Runtime {ort.__version__}, {needed} or newer is needed", INSTALL)
    said = _preload()
    if trouble := library_trouble(Path(ort.__file__).parent / "capi"):
        driver = "libcuda.so" in trouble
        remedy = "install NVIDIA's driver, so that nvidia-smi lists the GPU" if driver else INSTALL
        raise _refused(placement, " ".join([trouble, *said.split()]), remedy)
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], "float32", placement.memory, placement.index)
    except RuntimeError as error:  # every refusal of the provider is one
        reason = " ".join(str(error).split())[:300]
        remedy = "look whether nvidia-smi lists this GPU and whether its driver is new enough for CUDA"
        raise _refused(placement, reason, f"{remedy} {getattr(ort, 'cuda_version', '')}".rstrip()) from error


def library_trouble(folder: Path) -> str:
    """What the system's loader says against the CUDA provider's library; empty where it loads."""
    names = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
    found = [str(folder / name) for name in names if (folder / name).is_file()]
    # Other systems call them otherwise: then ONNX Runtime has the word. cuDNN is asked for at the first
    # attention of the vision tower and no sooner, so that sessions open without it.
    for library in [*found, CUDNN] if found else []:
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return str(error)
    return ""


def cuda_session(
    model: bytes, path: Path, placement: Placement, threads: int = 0, capture: bool = False
) -> Any:
    """A session on the GPU.

    Args:
        model: the graph, changed in memory; `path`: the bundle's file of it, beside which its weights lie.
        threads: of the little that ONNX Runtime does on the CPU; 0 for all cores.
        capture: runs may be recorded as CUDA graphs, and 4- and 8-bit products use the kernels for few rows.

    Raises:
        DeviceError: ONNX Runtime refuses the graph, or the session is not wholly on the GPU.
    """
    name, options = f"{path.parent.name}/{path.name}", ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry(DATA_FOLDER, str(path.parent))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if capture:
        options.add_session_config_entry("ep.cuda.fpa_intb_gemm", "1")
    given = {**CUDA_OPTIONS, "device_id": str(placement.index), "enable_cuda_graph": str(int(capture))}
    try:
        session = ort.InferenceSession(model, options, providers=[(CUDA, given)], enable_fallback=0)
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:300]
        raise _refused(placement, f"ONNX Runtime cannot open {name} there ({reason})", INSTALL) from error
    session.disable_fallback()  # of `run`, which would open the graph again on the CPU
    check_session(session, placement)
    return session


def check_session(session: Any, placement: Placement) -> None:
    """DeviceError where a session is not on the GPU, or has left work to the CPU."""
    providers = list(session.get_providers())
    if not providers or providers[0] != CUDA:
        raise _refused(placement, f"ONNX Runtime opened the graph on {', '.join(providers)} instead", INSTALL)
    left = [
        f"{node.op_type} ({node.name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA
        for node in part.get_nodes()
    ]
    if left:
        told = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        remedy = "use device='cpu', or the ONNX Runtime this version was made for (docs/cuda.md)"
        raise _refused(placement, f"ONNX Runtime {ort.__version__} left to the CPU: {told}", remedy)


def _preload() -> str:
    """Load CUDA's libraries from their pip packages; returns what ONNX Runtime prints against them."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    return said.getvalue()


def _refused(placement: Placement, seen: str, remedy: str) -> DeviceError:
    return DeviceError(
        f"device 'cuda:{placement.index}': {seen}. The CUDA provider with its libraries and a GPU is needed: "
        f"{remedy}; or use device='cpu'."
    )
