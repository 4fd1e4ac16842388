"""Block-wise integers: packing, meaning, and the operator that multiplies with them."""

import numpy as np
import pytest

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.export.quantize import choose_block, round_to_nearest
from rexthinker_edge.kernels.matmul_nbits import (
    BlockWeight,
    dequantize,
    lower_matmul_nbits,
    matmul_nbits,
    pack,
    packed_tensors,
    unpack,
)

EPS = float(np.finfo(np.float32).eps)


def test_pack_pinned():
    assert pack(np.array([[1, 2, 15, 0, 7]], np.uint8), 4).tolist() == [[0x21, 0x0F, 0x07]]
    assert pack(np.array([[1, 200]], np.uint8), 8).tolist() == [[1, 200]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_unpack_inverts_pack(rng, bits, count):
    codes = rng.integers(0, 2**bits, (3, count)).astype(np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, count), codes)


def test_dequantize_pinned():
    codes = np.array([[0, 15, 8, 8] + [3] * 12], np.uint8)
    weight = BlockWeight(codes, np.array([[0.5]], np.float32), np.array([[8]], np.uint8), 4, 16, 5)
    assert dequantize(weight).tolist() == [[-4.0, 3.5, 0.0, 0.0, -2.5]]


@pytest.mark.parametrize(("bits", "block", "columns"), [(4, 32, 96), (4, 128, 200), (8, 32, 50)])
def test_round_to_nearest_moves_no_value_by_more_than_half_a_step(rng, bits, block, columns):
    weight = rng.standard_normal((9, columns)).astype(np.float32)
    weight[2] = 0
    weight[3] = np.abs(weight[3]) + 1  # one-sided: zero must still be representable
    made = round_to_nearest(Tensor.from_array("w", weight), bits, block, slice_rows=4)
    steps = np.repeat(made.scales, block, axis=1)[:, :columns]
    # Half a step when a code is rounded; a code that is clipped at an end was off by the zero point's own
    # rounding, half a step at most. Quotients up to 255 are off by 255 eps of a step themselves.
    assert (np.abs(dequantize(made) - weight) <= steps * (0.5 + 4 * 255 * EPS)).all()
    assert made.codes.max() < 2**bits
    np.testing.assert_array_equal(dequantize(made)[2], 0)


@pytest.mark.parametrize(
    ("bits", "block", "rows", "columns"), [(4, 32, 40, 96), (4, 128, 24, 384), (8, 32, 30, 64)]
)
def test_lowering(rng, run_lowering, bits, block, rows, columns):
    random = rng.standard_normal((rows, columns)).astype(np.float32)
    weight = round_to_nearest(Tensor.from_array("w", random), bits, block)
    x, bias = (
        rng.standard_normal((1, 5, columns)).astype(np.float32),
        rng.standard_normal(rows).astype(np.float32),
    )
    y = matmul_nbits(x, weight) + bias
    wide = np.abs(dequantize(weight))

    def outputs(level):
        def build(g, n):
            parts = packed_tensors(weight)
            names = tuple(
                g.array(name, part) for name, part in zip(("codes", "scales", "zeros"), parts, strict=True)
            )
            return lower_matmul_nbits(g, n["x"], names, (rows, columns), bits, block, level, n["bias"])

        return run_lowering(build, {"x": x, "bias": bias})[0]

    # level 0: a float32 dot product of n terms, each weight rounded twice when it is expanded
    exact = 2 * (columns + 2) * EPS * (np.abs(x) @ wide.T).max()
    assert np.abs(outputs(0) - y).max() <= exact
    # level 4: every x moves by at most half of its block's step, max |x| / 127 / 2, against every |w|
    step = np.abs(x).reshape(5, -1, block).max(-1) / 127 / 2
    coarse = (np.repeat(step, block, axis=1) @ wide.T).max() + exact
    error = np.abs(outputs(4) - y).max()
    assert error <= coarse


def test_choose_block():
    assert choose_block([3584, 18944]) == 128
    assert choose_block([192, 384]) == 32
