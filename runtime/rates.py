"""What the CPU at hand does in a second, measured on the spot with the operators a bundle uses.

Contract  About four seconds. Weights are larger than any cache, so that the reading of one token's weights
          is timed and not the cache. The best of several runs counts: others use the machine too.
Elsewhere published rates: devices.py; what calls and operators cost: overhead.py; what follows: roofline.py.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.kernels.linear import lower_linear
from rexthinker_edge.kernels.matmul_nbits import lower_matmul_nbits
from rexthinker_edge.kernels.native_operators import product_domain
from rexthinker_edge.runtime.opening import session_options
from rexthinker_edge.runtime.overhead import measure_overhead
from rexthinker_edge.runtime.roofline import Rates
from rexthinker_edge.runtime.tiny_onnx import TinyGraph

COLUMNS = 2048
DENSE_ROWS = 8192  # float32: 67 MB, more than most caches hold
INT4_ROWS = 32768  # 4 bits: 36 MB with scales
SMALL_ROWS = 2048  # of the products of many rows: arithmetic decides there, not memory
CHUNK = 64
DETECTOR_SHARE = 0.46  # matrix products' share of the detector's time, docs/sources.md#roofline
PATIENCE_SECONDS = 1.0  # for one figure, on a machine that is busy with other things


def measure_cpu(int4: bool, threads: int | None = None) -> Rates:
    """Measure this machine.

    Args:
        int4: whether the decoder's weights are MatMulNBits's, else float32.
        threads: cores one model uses; all when None.
    """
    dense, weight = _session(dense_graph(), threads), np.full((DENSE_ROWS, COLUMNS), 1 / COLUMNS, np.float32)
    one = _best(dense, _rows(1) | {"weight": weight}, 5)
    many = _best(dense, _rows(CHUNK) | {"weight": weight[:SMALL_ROWS]}, 30)
    overhead = measure_overhead(int4, threads)
    flops = 2 * SMALL_ROWS * COLUMNS * CHUNK / many
    rates = Rates(weight.nbytes / one, flops, flops, flops * DETECTOR_SHARE, overhead.node, overhead.call)
    if not int4:
        return rates
    stored = INT4_ROWS * COLUMNS * (4 + 36 / 128) / 8
    one = _best(_session(_int4(INT4_ROWS), threads), _rows(1), 5)
    many = _best(_session(_int4(SMALL_ROWS), threads), _rows(CHUNK), 30)
    return replace(rates, weight_bytes=stored / one, decoder_flops=2 * SMALL_ROWS * COLUMNS * CHUNK / many)


def _rows(count: int) -> dict[str, NDArray[np.float32]]:
    return {"x": np.full((count, COLUMNS), 0.01, np.float32)}


def dense_graph() -> bytes:
    """x @ weightᵀ in float32."""
    graph = TinyGraph()
    graph.output(lower_linear(graph, graph.free_input("x"), graph.free_input("weight")))
    return graph.serialise()


def _int4(rows: int) -> bytes:
    """One layer whose weights are constants, which ONNX Runtime may pack when it opens the graph."""
    blocks, graph = COLUMNS // 128, TinyGraph()
    codes = graph.constant(np.full((rows, blocks, 64), 0x99, np.uint8))
    scales = graph.constant(np.full((rows, blocks), 1 / COLUMNS, np.float32))
    zeros = graph.constant(np.full((rows, blocks // 2), 0x88, np.uint8))
    x = graph.free_input("x")
    names, domain = (codes, scales, zeros), product_domain()
    graph.output(
        lower_matmul_nbits(graph, x, names, (rows, COLUMNS), 4, 128, accuracy_level=4, domain=domain)
    )
    return graph.serialise()


def _session(model: bytes, threads: int | None) -> ort.InferenceSession:
    options = session_options(threads or 0)
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _best(session: ort.InferenceSession, feeds: dict[str, Any], count: int) -> float:
    """The quickest of `count` runs, or of as many as end within `PATIENCE_SECONDS`."""
    times, ends = list[float](), time.perf_counter() + PATIENCE_SECONDS
    while len(times) < count and (not times or time.perf_counter() < ends):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    return min(times)
