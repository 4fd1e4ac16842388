"""The ceilings of a GPU: the same three rates, everything bound to its memory.

What      Bandwidth: a float16 matrix larger than any cache times one row. Arithmetic: float16 products of
          many rows, and MatMulNBits with float16 activations, for that is what a bundle's float and integer
          layers compute on CUDA (docs/cuda.md). They stand in `fp32_gflop_s` and `int8_gflop_s`.
Contract  Runs are queued without waiting and waited for once, so that starting them costs nothing.
          Graphs are tested on the CPU; on a GPU *not run here*.
Elsewhere the CPU's: ceilings.py; sessions on a GPU: runtime/providers.py.
Source    docs/benchmarks.md#ceilings
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.ceilings import Ceilings
from rexthinker_edge.kernels.matmul_nbits import lower_matmul_nbits
from rexthinker_edge.runtime.providers import Placement, cuda_session, require_cuda
from rexthinker_edge.runtime.tiny_onnx import ELEMENTS, TinyGraph

READ_BYTES = 1 << 30  # at 3 TB/s a third of a millisecond, above what starting a kernel takes
WIDTH, ROWS = 4096, 2048
QUEUED = 20  # runs between two waits
PATIENCE_SECONDS = 1.0


def measure_cuda_ceilings(
    placement: Placement, size_bytes: int = READ_BYTES, width: int = WIDTH,
    seconds: float = PATIENCE_SECONDS,
) -> Ceilings:  # fmt: skip
    """Measure a GPU; a few seconds, and `size_bytes` of its memory.

    Raises:
        DeviceError: the GPU cannot be had.
    """
    require_cuda(placement)
    tall = np.full((width, size_bytes // width // 2), 1 / width, np.float16)
    one, many = np.ones((1, width), np.float16), np.full((ROWS, width), 0.01, np.float16)
    square = tall[:, :width]
    products = 2.0 * ROWS * width * width
    read = _rate(half_graph(one, tall), {"x": one, "weight": tall}, tall.nbytes, placement, seconds)
    half = _rate(half_graph(many, square), {"x": many, "weight": square}, products, placement, seconds)
    block = _rate(half_block_graph(many), {"x": many}, products, placement, seconds)
    return Ceilings(read, block, half)


def half_graph(x: NDArray[np.float16], weight: NDArray[np.float16]) -> bytes:
    """x @ weight in float16; one column goes out, so that nothing large is copied."""
    graph = TinyGraph()
    return _first_column(graph, graph.node("MatMul", [graph.input("x", x), graph.input("weight", weight)]))


def half_block_graph(x: NDArray[np.float16]) -> bytes:
    """A square layer of 4-bit codes in blocks of 128, float16 scales and activations."""
    width, graph = x.shape[1], TinyGraph()
    blocks = width // 128
    codes = graph.constant(np.full((width, blocks, 64), 0x99, np.uint8))
    scales = graph.constant(np.full((width, blocks), 1 / width, np.float16))
    zeros = graph.constant(np.full((width, -(-blocks // 2)), 0x88, np.uint8))
    tensors = (codes, scales, zeros)
    return _first_column(
        graph, lower_matmul_nbits(graph, graph.input("x", x), tensors, (width, width), 4, 128, 0)
    )


def _first_column(graph: TinyGraph, product: str) -> bytes:
    """The product's first column, in float32: little to write, and everything had to be computed."""
    first = graph.node("Gather", [product, graph.constant(np.array([0], np.int64))], axis=1)
    graph.output(graph.node("Cast", [first], to=ELEMENTS["float32"]))
    return graph.serialise()


def _rate(
    model: bytes, feeds: dict[str, NDArray[Any]], amount: float, placement: Placement, seconds: float
) -> float:
    """10⁹ a second, the best of several queues."""
    session = cuda_session(model, Path("ceilings/product.onnx"), placement)
    binding = session.io_binding()
    memory = (placement.memory, placement.index)
    held = {
        name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), *memory)
        for name, value in feeds.items()
    }
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output(session.get_outputs()[0].name, *memory)
    queued = ort.RunOptions()
    queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
    quickest, ends = float("inf"), 0.0
    while quickest == float("inf") or time.perf_counter() < ends:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        ends = ends or time.perf_counter() + seconds  # the first run chose its kernels
        began = time.perf_counter()
        for _ in range(QUEUED):
            session.run_with_iobinding(binding, queued)
        binding.synchronize_outputs()
        quickest = min(quickest, (time.perf_counter() - began) / QUEUED)
    return amount / quickest / 1e9
