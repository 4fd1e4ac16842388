"""What this machine can do at most, measured on the spot, and how long a stage takes at that rate.

What      Bandwidth: reading an array larger than any cache, by NumPy's threads and as a matrix of one row's
          product. Arithmetic: products of many rows through ONNX Runtime's own kernels, float32 and the
          integer kinds that a bundle uses. The best of all of them counts, for a ceiling is what nothing
          here exceeds.
Contract  As many threads as the bench uses. Measured before the bench and again after it, the larger counts:
          other programs only ever take away. A stage's ceiling is
          max(bytes / bandwidth, integer operations / int8 rate + float operations / float32 rate).
Elsewhere bytes and operations: work.py; rates for forecasts: runtime/rates.py.
Source    docs/benchmarks.md#ceilings
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.work import Work
from rexthinker_edge.kernels.int8_linear import lower_int8_linear
from rexthinker_edge.kernels.matmul_nbits import lower_matmul_nbits
from rexthinker_edge.kernels.native_operators import product_domain
from rexthinker_edge.runtime.opening import session_options
from rexthinker_edge.runtime.rates import dense_graph
from rexthinker_edge.runtime.tiny_onnx import TinyGraph

READ_BYTES = 1 << 28  # beyond the caches of any board, and a quarter of the smallest one's memory
WIDTH = 2048
ROWS = 512  # as a prompt is read; the products stay in cache, so that arithmetic decides
PATIENCE_SECONDS = 0.8  # for one figure
LEAST_RUNS = 3
CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class Ceilings:
    """Rates in 10⁹ a second."""

    read_gb_s: float
    int8_gflop_s: float
    fp32_gflop_s: float

    def better(self, other: "Ceilings") -> "Ceilings":
        """The larger of each rate."""
        return Ceilings(
            max(self.read_gb_s, other.read_gb_s), max(self.int8_gflop_s, other.int8_gflop_s),
            max(self.fp32_gflop_s, other.fp32_gflop_s),
        )  # fmt: skip

    def ms(self, work: Work) -> float:
        """The least milliseconds that a stage of this work can take here."""
        memory = work.bytes / self.read_gb_s
        arithmetic = work.int8_ops / self.int8_gflop_s + work.fp32_ops / self.fp32_gflop_s
        return max(memory, arithmetic) / 1e6


def measure_ceilings(
    threads: int | None = None, size_bytes: int = READ_BYTES, width: int = WIDTH,
    seconds: float = PATIENCE_SECONDS,
) -> Ceilings:  # fmt: skip
    """Measure this machine; about ten seconds, and `size_bytes` of memory, given back at the end.

    Args:
        threads: cores that may work at the same time; all when None.
        size_bytes: read for the bandwidth.
        width: of the square matrices that are multiplied.
        seconds: for one figure, of which there are six.
    """
    options = session_options(threads or 0)
    options.log_severity_level = 3

    def rate(model: bytes, feeds: dict[str, NDArray[Any]], amount: float) -> float:
        session = ort.InferenceSession(model, options, providers=list(CPU))
        return amount / _best(lambda: session.run(None, feeds), seconds) / 1e9

    columns = 4096
    weight = np.full((size_bytes // columns // 4, columns), 1 / columns, np.float32)
    one = {"x": np.ones((1, columns), np.float32), "weight": weight}
    cores = threads or os.cpu_count() or 1
    read = max(rate(dense_graph(), one, weight.nbytes), _read_rate(weight, cores, seconds))
    del one, weight
    x, products = np.full((ROWS, width), 0.01, np.float32), 2.0 * ROWS * width * width
    square = np.full((width, width), 1 / width, np.float32)
    single = rate(dense_graph(), {"x": x, "weight": square}, products)
    integers = [block_graph(width, bits) for bits in (4, 8)] + [channel_graph(width)]
    return Ceilings(read, max(rate(graph, {"x": x}, products) for graph in integers), single)


def _read_rate(array: NDArray[np.float32], threads: int, seconds: float) -> float:
    """10⁹ bytes a second that NumPy's threads read, each its own part of an array."""
    parts = np.array_split(array.reshape(-1).view(np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:
        best = _best(lambda: list(pool.map(np.bitwise_or.reduce, parts)), seconds)
    return array.nbytes / best / 1e9


def _best(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of the quickest run among as many as fit; others use the machine too."""
    times, ends = list[float](), time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < ends:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def block_graph(width: int, bits: int) -> bytes:
    """A square layer as the decoder's: integers in blocks of 128, activations rounded to 8 bits."""
    blocks, graph = width // 128, TinyGraph()
    codes = graph.constant(np.full((width, blocks, 16 * bits), 0x99, np.uint8))
    scales = graph.constant(np.full((width, blocks), 1 / width, np.float32))
    zeros = graph.constant(np.full((width, -(-blocks * bits // 8)), 0x88, np.uint8))
    x = graph.free_input("x")
    names, domain = (codes, scales, zeros), product_domain()
    graph.output(lower_matmul_nbits(graph, x, names, (width, width), bits, 128, 4, domain=domain))
    return graph.serialise()


def channel_graph(width: int) -> bytes:
    """A square layer as the vision tower's: a scale per channel, activations rounded to 8 bits."""
    graph = TinyGraph()
    codes = graph.constant(np.full((width, width), 7, np.int8))
    scales = graph.constant(np.full(width, 1 / width, np.float32))
    graph.output(lower_int8_linear(graph, graph.free_input("x"), codes, scales))
    return graph.serialise()
