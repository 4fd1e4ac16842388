"""Rows of four bits: by hand, by the definition one number at a time, and within their bound."""

import numpy as np
import pytest

from rexthinker_edge.kernels.int4_rows import blocks_of, code_bytes, expand_int4_rows, round_int4_rows


def by_definition(codes, scales, width):
    made = np.empty((len(codes), width), np.float32)
    for row in range(len(codes)):
        for column in range(width):
            nibble = int(codes[row, column // 2]) >> 4 * (column % 2) & 15
            made[row, column] = np.float32(scales[row, column // 32]) * np.float32(nibble - 8)
    return made


def test_pinned():
    codes, scales = round_int4_rows(np.array([[7.0, -7.0, 0.0, 3.4, 0.5]], np.float32))
    assert scales.tolist() == [[1.0]]
    # 7 -> 15, -7 -> 1, 0 -> 8, 3.4 -> 11, 0.5 -> 8 (to even); the last half byte is 0 -> 8
    assert codes.tolist() == [[0x1F, 0xB8, 0x88]]
    assert expand_int4_rows(codes, scales, 5).tolist() == [[7.0, -7.0, 0.0, 3.0, 0.0]]


@pytest.mark.parametrize("width", [32, 64, 70, 33, 1])
def test_rows_are_their_definition_and_near_what_they_stand_for(width):
    rng = np.random.default_rng(width)
    rows = (rng.normal(size=(9, width)) * rng.choice([1e-3, 1.0, 300.0], (9, 1))).astype(np.float32)
    rows[4] = 0
    codes, scales = round_int4_rows(rows)
    assert (codes.shape, scales.shape) == ((9, code_bytes(width)), (9, blocks_of(width)))
    assert (codes.dtype, scales.dtype) == (np.uint8, np.float16)
    found = expand_int4_rows(codes, scales, width)
    np.testing.assert_array_equal(found, by_definition(codes, scales, width))
    allowed = 0.51 * np.repeat(scales.astype(np.float32), 32, axis=1)[:, :width]
    assert (np.abs(found - rows) <= allowed).all()
    assert (found[4] == 0).all()
