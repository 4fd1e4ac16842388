"""Opens ONNX Runtime sessions; a large one is checked at once and packed while other things happen.

Layout    ONNX Runtime copies every integer weight into the processor's order when it opens a graph: at 7B
          that is 4 GB and most of the time of opening. It is not needed before the first pass.
          Our own 4-bit products read the weights where they are mapped: then there is nothing to pack.
Contract  `open_session` returns when the graph has been read, its operators found and its weights mapped;
          what is wrong with it is raised then. A large graph is packed in a thread, from `start_packing` or
          its first use on, and whoever runs it waits for the rest. `get_inputs`, `get_outputs` and
          `get_providers` never wait.
Elsewhere which graphs: decoder.py, vision.py, detector.py; what is checked before: graph_check.py.
Source    docs/full-size.md#opening
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.kernels.native_operators import library_path, trouble
from rexthinker_edge.runtime.errors import BundleError

CPU = "CPUExecutionProvider"
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
LATE_BYTES = 256_000_000  # smaller ones are packed in half a second
# What InferenceSession raises; they share no base but Exception.
REFUSALS = (
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoSuchFile,
    refusals.NotImplemented,
    refusals.RuntimeException,
)


def session_options(threads: int = 0) -> ort.SessionOptions:
    """How every session on the CPU is opened; 0 threads are all cores.

    ONNX Runtime is not to find, at opening, buffers that later values could take over: its search compares
    each value with every free buffer, 1.5 of the 2.3 seconds of a Swin-T detector. A buffer that is free
    serves the next value all the same, by way of the arena (docs/full-size.md#opening).
    Our own operator is known to every session where it runs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_reuse = False
    if not trouble():
        options.register_custom_ops_library(str(library_path()))
    return options


def open_session(path: Path, options: ort.SessionOptions | None, providers: Sequence[str]) -> Any:
    """A session of the graph at `path`, or what behaves as one and is still being packed.

    Raises:
        what InferenceSession raises, see `REFUSALS`.
    """
    data = path.with_name(f"{path.name}.data")
    if not data.is_file() or data.stat().st_size < LATE_BYTES:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    return LateSession(path, options, providers)


def open_native(model: bytes, path: Path, given: ort.SessionOptions | None) -> ort.InferenceSession:
    """A session of a graph with our operators in it, which read weights where they are mapped.

    Args:
        model: the graph of the file at `path`, as native_graph.py changed it.

    Raises:
        what InferenceSession raises, see `REFUSALS`.
    """
    options = session_options(0 if given is None else given.intra_op_num_threads)
    options.add_session_config_entry(DATA_FOLDER, str(path.parent))
    return ort.InferenceSession(model, options, providers=[CPU])


def start_packing(session: Any) -> None:
    """Let a session that `open_session` gave be packed from now on; nothing where it is packed."""
    if isinstance(session, LateSession):
        session.start_packing()


def refusal(path: Path, error: Exception) -> BundleError:
    """ONNX Runtime's refusal in our words."""
    reason = " ".join(str(error).split())[:200]
    return BundleError(
        f"{path.parent.name}/{path.name}: ONNX Runtime {ort.__version__} cannot open it ({reason}). "
        "Update onnxruntime, or export the bundle again."
    )


class LateSession:
    """Stands for a session that a thread is opening; every other attribute waits for it."""

    def __init__(self, path: Path, options: ort.SessionOptions | None, providers: Sequence[str]) -> None:
        """Read the graph without packing."""
        unpacked = session_options(1)
        unpacked.add_session_config_entry("session.disable_prepacking", "1")
        unpacked.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        unpacked.log_severity_level = 3
        seen = ort.InferenceSession(str(path), unpacked, providers=list(providers))
        self._inputs, self._outputs, self._providers = (
            seen.get_inputs(), seen.get_outputs(), seen.get_providers()
        )  # fmt: skip
        self._opened: Future[Any] = Future()
        self._thread = threading.Thread(
            target=self._open, args=(path, options, list(providers)), name=f"opening {path.name}", daemon=True
        )
        self._starting = threading.Lock()

    def start_packing(self) -> None:
        """Begin, where nobody has yet."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()

    def _open(self, path: Path, options: ort.SessionOptions | None, providers: list[str]) -> None:
        try:
            self._opened.set_result(ort.InferenceSession(str(path), options, providers=providers))
        except REFUSALS as error:
            self._opened.set_exception(refusal(path, error))
        except MemoryError as error:
            self._opened.set_exception(error)

    def get_inputs(self) -> Any:
        """As InferenceSession's."""
        return self._inputs

    def get_outputs(self) -> Any:
        """As InferenceSession's."""
        return self._outputs

    def get_providers(self) -> Any:
        """As InferenceSession's."""
        return self._providers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self.start_packing()
        return getattr(self._opened.result(), name)
