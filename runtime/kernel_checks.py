"""Runs one real kernel of each kind on small numbers and compares it with its definition.

What      Whether ONNX Runtime here has the operators a bundle needs, and whether they compute what the
          models were built on: a wheel too old lacks one, a faulty build gets one wrong.
Contract  Inputs are the same in every run. A check passes within the tolerance written beside it.
Elsewhere definitions and lowerings: kernels/; those of the detector: detector_kernel_checks.py; whole models:
          the golden self-test; all run by `doctor`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB
from rexthinker_edge.kernels.gelu import gelu, lower_gelu
from rexthinker_edge.kernels.grouped_query_attention import (
    grouped_query_attention,
    lower_grouped_query_attention,
)
from rexthinker_edge.kernels.linear import linear, lower_linear
from rexthinker_edge.kernels.matmul_nbits import BlockWeight, lower_matmul_nbits, matmul_nbits, packed_tensors
from rexthinker_edge.kernels.mrope import lower_mrope, mrope, rotary_table
from rexthinker_edge.kernels.native_operators import (
    BITS,
    DOMAIN,
    matmul_nbits_rounded,
    trouble,
)
from rexthinker_edge.kernels.rms_norm import lower_rms_norm, lower_skip_rms_norm, rms_norm
from rexthinker_edge.kernels.swiglu import lower_swiglu, swiglu
from rexthinker_edge.kernels.window_attention import (
    full_attention,
    lower_full_attention,
    lower_window_attention,
    window_attention,
)
from rexthinker_edge.runtime.opening import session_options
from rexthinker_edge.runtime.tiny_onnx import TinyGraph

Arrays = dict[str, NDArray[Any]]
SINGLE = 2e-5  # float32: sums of under 200 products of numbers near 1, 6e-8 each, and some room
EIGHT_BIT = (
    0.02  # activations rounded to 8 bits a block: half a step of 4 / 127 against outputs near 8, relative
)


@dataclass(frozen=True)
class Kernel:
    """One check: a graph, what goes in, and what must come out."""

    name: str
    tolerance: float
    build: Callable[[TinyGraph, dict[str, str]], str]
    feeds: Arrays
    expected: NDArray[np.float32]


def run_kernel(kernel: Kernel, providers: Sequence[str]) -> float:
    """The largest difference to the definition, as a share of the largest value.

    Raises whatever ONNX Runtime raises; the caller tells it.
    """
    graph = TinyGraph()
    names = {name: graph.input(name, array) for name, array in kernel.feeds.items()}
    made = graph.output(kernel.build(graph, names))
    options = session_options(1)
    options.log_severity_level = 4
    session = ort.InferenceSession(graph.serialise(), options, providers=list(providers))
    found = session.run([made], kernel.feeds)[0].reshape(kernel.expected.shape)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - kernel.expected).max() / np.abs(kernel.expected).max())


def kernels() -> list[Kernel]:
    """Every kind of kernel that a bundle uses."""
    rng = np.random.default_rng(4)
    found = [
        _linear(rng), *(_matmul_nbits(rng, bits, level) for bits in (4, 8) for level in (0, 4)), _rms(rng),
        _skip_rms(rng), _mrope(rng), _grouped(rng), _full(rng), _windows(rng), _gelu(rng), _swiglu(rng),
    ]  # fmt: skip
    return found if trouble() else [*found, *(_own_products(rng, bits) for bits in BITS)]


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Normal numbers in float32."""
    return rng.normal(size=shape).astype(np.float32)


def _linear(rng: np.random.Generator) -> Kernel:
    x, weight, bias = normal(rng, 5, 64), normal(rng, 32, 64), normal(rng, 32)
    return Kernel(
        "FusedMatMul", SINGLE, lambda g, n: lower_linear(g, n["x"], g.constant(weight), g.constant(bias)),
        {"x": x}, linear(x, weight, bias),
    )  # fmt: skip


def _block_weight(rng: np.random.Generator, rows: int, columns: int, bits: int, block: int) -> BlockWeight:
    return BlockWeight(
        codes=rng.integers(0, 2**bits, (rows, columns)).astype(np.uint8),
        scales=rng.uniform(0.5, 1.5, (rows, columns // block)).astype(np.float32) / 2**bits,
        zero_points=rng.integers(0, 2**bits, (rows, columns // block)).astype(np.uint8),
        bits=bits, block=block, columns=columns,
    )  # fmt: skip


def _matmul_nbits(rng: np.random.Generator, bits: int, level: int) -> Kernel:
    weight, x = _block_weight(rng, 48, 256, bits, 32), normal(rng, 3, 256)
    tolerance = SINGLE if level == 0 else EIGHT_BIT
    name = f"MatMulNBits, {bits} bits, accuracy level {level}"
    return Kernel(name, tolerance, _lowered(weight, level), {"x": x}, matmul_nbits(x, weight))


def _own_products(rng: np.random.Generator, bits: int) -> Kernel:
    weight, x = _block_weight(rng, 48, 256, bits, 128), normal(rng, 3, 256)
    name, expected = f"MatMulNBits of our own, {bits} bits", matmul_nbits_rounded(x, weight)
    return Kernel(name, SINGLE, _lowered(weight, 4, DOMAIN), {"x": x}, expected)


def _lowered(weight: BlockWeight, level: int, domain: str = CONTRIB) -> Callable[..., str]:
    def build(graph: TinyGraph, names: dict[str, str]) -> str:
        codes, scales, zeros = (graph.constant(tensor) for tensor in packed_tensors(weight))
        shape = (len(weight.codes), weight.columns)
        return lower_matmul_nbits(
            graph, names["x"], (codes, scales, zeros), shape, weight.bits, weight.block, level, domain=domain
        )

    return build


def _rms(rng: np.random.Generator) -> Kernel:
    x, weight = normal(rng, 1, 7, 64), normal(rng, 64)
    return Kernel(
        "SimplifiedLayerNormalization", SINGLE,
        lambda g, n: lower_rms_norm(g, n["x"], g.constant(weight), 1e-6),
        {"x": x}, rms_norm(x, weight, 1e-6),
    )  # fmt: skip


def _skip_rms(rng: np.random.Generator) -> Kernel:
    x, skip, weight = normal(rng, 1, 7, 64), normal(rng, 1, 7, 64), normal(rng, 64)
    return Kernel(
        "SkipSimplifiedLayerNormalization", SINGLE,
        lambda g, n: lower_skip_rms_norm(g, n["x"], n["skip"], g.constant(weight), 1e-6)[0],
        {"x": x, "skip": skip}, rms_norm(x + skip, weight, 1e-6),
    )  # fmt: skip


def _mrope(rng: np.random.Generator) -> Kernel:
    count, heads, section = 6, 2, (4, 6, 6)
    x = normal(rng, count, heads, 2 * sum(section))
    positions = rng.integers(0, 32, (3, count))
    cos, sin = rotary_table(1e6, 2 * sum(section), 64)
    return Kernel(
        "MRotaryEmbedding", SINGLE,
        lambda g, n: lower_mrope(
            g, n["x"], n["positions"], g.constant(cos), g.constant(sin), section, heads
        ),
        {"x": x.reshape(1, count, -1), "positions": positions[:, None]},
        mrope(x, positions, cos, sin, section),
    )  # fmt: skip


def _grouped(rng: np.random.Generator) -> Kernel:
    past, count, heads, kv_heads, width, capacity = 5, 3, 4, 2, 16, 12
    query = normal(rng, count, heads, width)
    key, value = normal(rng, count, kv_heads, width), normal(rng, count, kv_heads, width)
    keys, values = normal(rng, kv_heads, capacity, width), normal(rng, kv_heads, capacity, width)
    expected = grouped_query_attention(query, key, value, keys.copy(), values.copy(), past)
    feeds: Arrays = {
        "query": query.reshape(1, count, -1), "key": key.reshape(1, count, -1),
        "value": value.reshape(1, count, -1), "keys": keys[None], "values": values[None],
        "last": np.array([past + count - 1], np.int32), "total": np.array(past + count, np.int32),
    }  # fmt: skip

    def build(graph: TinyGraph, names: dict[str, str]) -> str:
        cache = (names["keys"], names["values"], "new_keys", "new_values")
        return lower_grouped_query_attention(
            graph, names["query"], names["key"], names["value"], cache, names["last"], names["total"],
            bias="", heads=heads, kv_heads=kv_heads,
        )  # fmt: skip

    return Kernel("GroupQueryAttention", SINGLE, build, feeds, expected)


def _full(rng: np.random.Generator) -> Kernel:
    count, heads, width = 11, 2, 16
    q, k, v = (normal(rng, count, heads, width) for _ in range(3))
    feeds: Arrays = {"q": q.reshape(1, count, -1), "k": k.reshape(1, count, -1), "v": v.reshape(1, count, -1)}
    return Kernel(
        "MultiHeadAttention", SINGLE,
        lambda g, n: lower_full_attention(g, n["q"], n["k"], n["v"], heads), feeds, full_attention(q, k, v),
    )  # fmt: skip


def _windows(rng: np.random.Generator) -> Kernel:
    count, heads, width = 7, 2, 16
    q, k, v = (normal(rng, count, heads, width) for _ in range(3))
    rows, lengths = np.array([[0, 2, 4, 6], [1, 3, 5, 0]]), np.array([4, 3], np.int32)
    slots = np.array([0, 4, 1, 5, 2, 6, 3])
    feeds: Arrays = {
        "q": q.reshape(1, count, -1), "k": k.reshape(1, count, -1), "v": v.reshape(1, count, -1),
        "rows": rows, "lengths": lengths, "slots": slots,
    }  # fmt: skip
    return Kernel(
        "MultiHeadAttention in windows", SINGLE,
        lambda g, n: lower_window_attention(
            g, n["q"], n["k"], n["v"], (n["rows"], n["lengths"], n["slots"]), heads, heads * width
        ),
        feeds, window_attention(q, k, v, rows, lengths, slots),
    )  # fmt: skip


def _gelu(rng: np.random.Generator) -> Kernel:
    x = normal(rng, 4, 32)
    return Kernel("Gelu", SINGLE, lambda g, n: lower_gelu(g, n["x"]), {"x": x}, gelu(x))


def _swiglu(rng: np.random.Generator) -> Kernel:
    gate, up = normal(rng, 4, 32), normal(rng, 4, 32)
    return Kernel(
        "silu(gate) * up", SINGLE, lambda g, n: lower_swiglu(g, n["gate"], n["up"]),
        {"gate": gate, "up": up}, swiglu(gate, up),
    )  # fmt: skip
