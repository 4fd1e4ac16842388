"""Our own MatMulNBits: its definition, ONNX Runtime's as oracle, the same bits alone and among others."""

import ctypes

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.kernels import native_operators
from rexthinker_edge.kernels.builder import CONTRIB
from rexthinker_edge.kernels.matmul_nbits import (
    BlockWeight,
    lower_matmul_nbits,
    matmul_nbits,
    packed_tensors,
)
from rexthinker_edge.kernels.native_operators import DOMAIN, library_path, matmul_nbits_rounded, trouble
from rexthinker_edge.runtime.tiny_onnx import TinyGraph

needs_library = pytest.mark.skipif(
    library_path() is None or "AVX2" in trouble(), reason=f"our products do not run here: {trouble()}"
)
LAYOUTS = [(bits, block) for bits in (4, 8) for block in (32, 64, 128, 256)]


def random_weight(rows, columns, bits, block, symmetric=False, seed=0):
    rng = np.random.default_rng([seed, rows, columns, bits, block])
    blocks = -(-columns // block)
    middle = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
    zeros = middle if symmetric else rng.integers(0, 2**bits, (rows, blocks)).astype(np.uint8)
    codes = rng.integers(0, 2**bits, (rows, blocks * block)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.02, (rows, blocks)).astype(np.float32)
    return BlockWeight(codes, scales, zeros, bits, block, columns)


def session(weight, domain=DOMAIN, bias=None, threads=1, symmetric=False, **changed):
    graph = TinyGraph()
    codes, scales, zeros = (graph.constant(tensor) for tensor in packed_tensors(weight))
    names = (codes, scales, "" if symmetric else zeros)
    added = None if bias is None else graph.constant(bias)
    block = changed.get("block", weight.block)
    shape = (len(weight.codes), weight.columns)
    made = lower_matmul_nbits(
        graph, graph.free_input("x"), names, shape, weight.bits, block, 4, added, domain
    )
    graph.output(made)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(library_path()))
    opened = ort.InferenceSession(graph.serialise(), options, providers=["CPUExecutionProvider"])
    return lambda rows: opened.run(None, {"x": rows})[0]


@needs_library
@pytest.mark.parametrize(("bits", "block"), LAYOUTS)
@pytest.mark.parametrize("columns", [256, 96, 1000, 3584])
def test_it_is_its_definition_and_onnx_runtimes_operator(bits, block, columns):
    rows = 13
    x = np.random.default_rng(1).normal(size=(5, columns)).astype(np.float32)
    for symmetric in (False, True):
        weight = random_weight(rows, columns, bits, block, symmetric)
        bias = np.arange(rows, dtype=np.float32) / 7 if symmetric else None
        found = session(weight, bias=bias, symmetric=symmetric)(x)
        expected = matmul_nbits_rounded(x, weight) + (0 if bias is None else bias)
        room = 3e-6 * bits * float(np.abs(expected).max())
        assert np.abs(found - expected).max() <= room
        theirs = session(weight, CONTRIB, bias, symmetric=symmetric)(x)
        assert np.abs(found - theirs).max() <= room


def test_rounding_costs_what_eight_bits_cost():
    weight = random_weight(40, 512, 4, 128)
    x = np.random.default_rng(2).normal(size=(6, 512)).astype(np.float32)
    exact, found = matmul_nbits(x, weight), matmul_nbits_rounded(x, weight)
    off = np.abs(found - exact).max() / np.abs(exact).max()
    assert 1e-4 < off < 0.02


def test_the_definition_by_hand():
    """Scale 254 / 127 = 2: 254, -3 and 1 become 127, -2 (half to even) and 0; codes less 8 are 1, 2, -8."""
    codes = np.full((1, 32), 8, np.uint8)
    codes[0, :3] = 9, 10, 0
    weight = BlockWeight(codes, np.array([[0.5]], np.float32), np.array([[8]], np.uint8), 4, 32, 32)
    x = np.zeros((1, 32), np.float32)
    x[0, :3] = 254, -3, 1
    expected = 0.5 * 2 * (127 * 1 + -2 * 2 + 0 * -8)
    assert matmul_nbits_rounded(x, weight) == np.float32([[expected]])
    if not trouble():
        assert session(weight)(x) == np.float32([[expected]])


@needs_library
@pytest.mark.parametrize(("bits", "block"), LAYOUTS)
def test_a_row_gives_the_same_bits_alone_and_among_others(bits, block):
    """70 rows go in tiles and pieces of the columns, 5 as they lie, one alone; on one thread and on three."""
    columns, rows = 18944 if block == 128 else 6000, 150
    weight = random_weight(rows, columns, bits, block)
    x = np.random.default_rng(3).normal(size=(70, columns)).astype(np.float32)
    one, three = session(weight), session(weight, threads=3)
    together = one(x)
    assert np.array_equal(together, three(x))
    assert np.array_equal(together[:5], one(x[:5]))
    assert np.array_equal(together[7:10], three(x[7:10]))
    assert all(np.array_equal(together[i : i + 1], one(x[i : i + 1])) for i in (0, 3, 69))


@needs_library
def test_what_is_no_number_stays_none_and_in_its_row():
    weight = random_weight(9, 300, 4, 32)
    x = np.random.default_rng(4).normal(size=(6, 300)).astype(np.float32)
    compute = session(weight)
    sane = compute(x)
    x[1, 290], x[2, 3], x[3, 0] = np.nan, np.inf, -np.inf
    x[4], x[5] = 0, 1e-38
    found = compute(x)
    assert np.array_equal(found[0], sane[0])
    assert np.isnan(found[1:4]).all()
    assert not found[4:].any()
    assert np.isnan(matmul_nbits_rounded(x, weight)[1:4]).all()
    x[0] = np.finfo(np.float32).max
    assert np.isfinite(compute(x[:1] / 1e4)).all()


@needs_library
def test_no_rows_and_leading_axes():
    weight = random_weight(9, 64, 8, 64)
    x = np.random.default_rng(5).normal(size=(4, 64)).astype(np.float32)
    assert session(weight)(x[:0]).shape == (0, 9)


@needs_library
def test_what_it_has_not_is_refused():
    weight = random_weight(9, 512, 4, 128)
    x = np.zeros((2, 512), np.float32)
    with pytest.raises(refusals.RuntimeException, match="blocks of 32 to 256"):
        session(weight, block=512)
    with pytest.raises(refusals.InvalidArgument, match="an input of another size"):
        session(weight, block=64)(x)


def test_why_it_is_not_used_is_told(monkeypatch, tmp_path):
    native_operators.trouble.cache_clear()
    try:
        monkeypatch.setattr(native_operators, "library_path", lambda: None)
        assert trouble() == "the package was built without it (no C++ compiler)"
        native_operators.trouble.cache_clear()
        broken = tmp_path / "_native.abi3.so"
        broken.write_bytes(b"no library")
        monkeypatch.setattr(native_operators, "library_path", lambda: broken)
        assert "_native.abi3.so cannot be loaded" in trouble()
    finally:
        monkeypatch.undo()
        native_operators.trouble.cache_clear()
    if library_path() is not None:
        assert ctypes.CDLL(str(library_path())).rexthinker_edge_supported() in (0, 1, 2)
