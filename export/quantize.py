"""Chooses integers for weights: round to nearest, a scale and a zero point per block of columns.

Contract  Asymmetric: a block's smallest and largest value (zero included) map to 0 and 2 ** bits - 1, so no
          value moves by more than half a step. Rows are done in slices: memory stays small at any size.
Elsewhere what the integers mean and how they are packed: kernels/matmul_nbits.py.
Source    docs/sources.md#int4
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.kernels.matmul_nbits import BlockWeight


class Precision(StrEnum):
    """How a bundle's decoder weights are stored."""

    FP32 = "fp32"  # computed in float32; stored as the checkpoint has them
    INT4 = "int4"


@dataclass(frozen=True)
class IntegerRecipe:
    """How weights become integers.

    `bits` for the layers, `head_bits` for the output layer, whose errors go straight to the token chosen.
    """

    bits: int = 4
    head_bits: int = 8
    block: int = 128
    accuracy_level: int = 4


def choose_block(widths: Iterable[int]) -> int:
    """128 where every input width allows it (fastest, facts measured at 7B), else 32."""
    return 128 if all(width % 128 == 0 for width in widths) else 32


def round_to_nearest(weight: Tensor, bits: int, block: int, slice_rows: int = 1024) -> BlockWeight:
    """Quantise an (out, in) weight; see the module's contract."""
    rows, columns = weight.shape
    blocks = -(-columns // block)
    codes = np.empty((rows, blocks * block), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zero_points = np.empty((rows, blocks), np.uint8)
    for start in range(0, rows, slice_rows):
        part = slice(start, min(start + slice_rows, rows))
        codes[part], scales[part], zero_points[part] = _round_rows(weight.float32(part), bits, block, blocks)
    return BlockWeight(codes, scales, zero_points, bits, block, columns)


def _round_rows(
    weight: NDArray[np.float32], bits: int, block: int, blocks: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """The same for some rows: codes (rows, blocks * block), scales and zero points (rows, blocks)."""
    rows, columns = weight.shape
    top = np.float32(2**bits - 1)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, blocks, block)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    scale = ((high - low) / top).astype(np.float32)
    scale[scale == 0] = 1.0  # a block of zeros: every code is the zero point
    zero = np.clip(np.rint(-low / scale), 0, top)
    codes = np.clip(np.rint(grouped / scale[..., None]) + zero[..., None], 0, top)
    return codes.astype(np.uint8).reshape(rows, -1), scale, zero.astype(np.uint8)
