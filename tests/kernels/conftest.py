"""Runs a lowering in ONNX Runtime: a fixture that takes the recipe and the arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from rexthinker_edge.export.graph import GraphWriter

Arrays = dict[str, NDArray[Any]]
Build = Callable[[GraphWriter, dict[str, str]], str | tuple[str, ...]]


@pytest.fixture
def run_lowering(tmp_path: Path) -> Callable[[Build, Arrays], list[NDArray[Any]]]:
    """`run(build, arrays)`: arrays become inputs, `build(graph, names)` returns the outputs' names."""

    def run(build: Build, arrays: Arrays) -> list[NDArray[Any]]:
        path = tmp_path / "kernel.onnx"
        with GraphWriter(path) as graph:
            names = {
                name: graph.input(name, array.dtype.name, list(array.shape)) for name, array in arrays.items()
            }
            made = build(graph, names)
            outputs = (made,) if isinstance(made, str) else made
            for index, value in enumerate(outputs):
                graph.output(f"out{index}", "float32", [], value)  # replaced below: any shape
            for info in graph._outputs:
                info.type.tensor_type.ClearField("shape")
            graph.save()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session.run(None, arrays)

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(20)
