"""Runs a TensorRT engine where an ONNX Runtime session stood: the same names in, the same names out.

What      Buffers on the GPU are ONNX Runtime's own (OrtValue on "cuda"), so the only package beside the base
          install is `tensorrt`, with the GPU build of ONNX Runtime.
Contract  An engine runs only where `engine_card.differences` finds none; otherwise all of them are told.
          Everything up to the provider's calls is tested with a stand-in for `tensorrt`; those calls
          themselves are *not run here* (docs/tensorrt.md).
Elsewhere what an engine belongs to: engine_card.py; building: export/tensorrt.py.
Source    docs/tensorrt.md
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.engine_card import (
    EngineCard,
    Machine,
    check_engine,
    choose_profile,
    differences,
    engines_directory,
    read_card,
    read_gpu,
    source_digest,
)
from rexthinker_edge.runtime.errors import DeviceError, MissingExtraError


def import_tensorrt() -> Any:
    """The `tensorrt` module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "device 'tensorrt': the package tensorrt is not installed, NVIDIA's own is needed. Install it: "
            "pip install tensorrt (on a Jetson it comes with JetPack), or use device='cpu'."
        ) from error


def open_engine(opened: Bundle, graph: str, trt: Any = None, here: Machine | None = None) -> "EngineSession":
    """Open the engine of one of a bundle's graphs.

    Args:
        graph: the graph's file name, such as "vision.onnx".
        trt: the `tensorrt` module; imported when None.
        here: this machine; asked of the driver when None.

    Raises:
        DeviceError: there is no engine, it is damaged, or it belongs to another machine or bundle.
        MissingExtraError: TensorRT is not installed.
    """
    directory, stem = engines_directory(opened.path), Path(graph).stem
    card = read_card(directory / f"{stem}.json")
    trt = import_tensorrt() if trt is None else trt
    here = read_gpu(str(trt.__version__)) if here is None else here
    if found := differences(card, here, source_digest(opened, graph)):
        raise DeviceError(
            f"{directory.name}/{stem}.engine: {'; '.join(found)}. Build the engines again on this machine: "
            f"rexthinker-edge export {opened.path} --target tensorrt."
        )
    check_engine(directory / f"{stem}.engine", card)
    return EngineSession(directory / f"{stem}.engine", card, trt)


class EngineSession:
    """One engine; `run` has the form of an ONNX Runtime session's."""

    def __init__(self, path: Path, card: EngineCard, trt: Any) -> None:
        """Load the engine; DeviceError when TensorRT refuses it."""
        self.card, self._trt = card, trt
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        if card.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such an engine carries its own runtime
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise DeviceError(
                f"{path.parent.name}/{path.name}: TensorRT {trt.__version__} cannot load it, though its card "
                "fits. Build the engines again: rexthinker-edge export BUNDLE --target tensorrt."
            )
        self._context = self._engine.create_execution_context()
        self._profile = 0

    def get_inputs(self) -> list[Any]:
        """What goes in: objects with `name` and `shape` (None where free), as ONNX Runtime gives them."""
        return [
            SimpleNamespace(name=name, shape=_fixed(list(given.least), list(given.most)))
            for name, given in self.card.profiles[0].items()
        ]

    def get_outputs(self) -> list[Any]:
        """What comes out, likewise."""
        found = []
        for name in self._outputs():
            sides = [int(side) for side in self._engine.get_tensor_shape(name)]
            found.append(SimpleNamespace(name=name, shape=_fixed(sides, sides)))
        return found

    def get_providers(self) -> list[str]:
        """What computes, in the words of ONNX Runtime."""
        return [f"TensorRT {self.card.machine.tensorrt}"]

    def run(
        self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]], _options: object = None
    ) -> list[NDArray[Any]]:
        """Compute the outputs `names` of the inputs `feeds`.

        Raises:
            DeviceError: no profile holds these sizes, or TensorRT fails.
        """
        chosen = choose_profile(self.card, {name: tuple(value.shape) for name, value in feeds.items()})
        if chosen != self._profile:
            self._must(self._context.set_optimization_profile_async(chosen, 0), f"profile {chosen}")
            self._profile = chosen
        held = {name: self._place(name, value) for name, value in feeds.items()}
        for name, value in feeds.items():
            self._must(self._context.set_input_shape(name, tuple(value.shape)), f"the shape of {name}")
            self._context.set_tensor_address(name, held[name].data_ptr())
        outputs = {name: self._output(name) for name in self._outputs()}
        for name, given in outputs.items():
            self._context.set_tensor_address(name, given.data_ptr())
        # Stream 0 is the one ONNX Runtime copies on, so the copies before and after are in order.
        self._must(self._context.execute_async_v3(0), "the run")
        return [np.array(outputs[name].numpy()) for name in names]  # copies: the buffers go with their values

    def _place(self, name: str, value: NDArray[Any]) -> Any:
        """Where TensorRT reads an input: sizes of other values on the CPU, all else on the GPU."""
        on_host = self._engine.is_shape_inference_io(name)
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) if on_host else _on_gpu(value)

    def _outputs(self) -> list[str]:
        engine, output = self._engine, self._trt.TensorIOMode.OUTPUT
        every = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        return [name for name in every if engine.get_tensor_mode(name) == output]

    def _output(self, name: str) -> Any:
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        kind = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return _on_gpu(np.empty(shape, kind))

    def _must(self, done: object, what: str) -> None:
        if not done:
            raise DeviceError(
                f"{self.card.graph}: TensorRT refuses {what}. Build the engines again, or use device='cpu'."
            )


def _fixed(least: list[int], most: list[int]) -> list[int | None]:
    """Sides that cannot vary; TensorRT writes -1 for one that can."""
    return [low if low == high and low >= 0 else None for low, high in zip(least, most, strict=True)]


def _on_gpu(value: NDArray[Any]) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda", 0)
