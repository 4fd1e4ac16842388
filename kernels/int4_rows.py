"""Rows of a table in 4 bits a number, read one by one: the token embeddings.

Layout    A row is cut into blocks of 32 columns that share a float16 scale. Two codes a byte, low nibble
          first; a row begins on a whole byte.
Contract  value = scale * (code - 8), codes 1 to 15: zero is exact, and no number moves by more than half of
          its block's scale and what float16 rounds off that, under 0.51 of it.
Elsewhere writing a table: export/embeddings.py; reading rows: runtime/embeddings.py; weights of products:
          matmul_nbits.py.
Source    docs/full-size.md#embeddings
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.matmul_nbits import pack, unpack

BLOCK = 32
MIDDLE, MOST = 8, 7
LEAST_SCALE = np.float32(2.0**-24)  # the smallest float16 above 0


def blocks_of(width: int) -> int:
    """Scales of one row."""
    return -(-width // BLOCK)


def code_bytes(width: int) -> int:
    """Bytes of one row's codes."""
    return -(-width // 2)


def round_int4_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """(N, width) float32 to codes (N, code_bytes) and scales (N, blocks)."""
    count, width = rows.shape
    padded = np.zeros((count, blocks_of(width) * BLOCK), np.float32)
    padded[:, :width] = rows
    blocks = padded.reshape(count, -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    scales = np.where(largest > 0, np.maximum(largest / MOST, LEAST_SCALE), 1).astype(np.float16)
    wide = scales.astype(np.float32)[..., None]
    codes = np.clip(np.rint(blocks / wide), -MOST, MOST) + MIDDLE
    flat = codes.astype(np.uint8).reshape(count, -1)[:, : 2 * code_bytes(width)]
    return np.ascontiguousarray(pack(np.ascontiguousarray(flat), 4)), scales


def expand_int4_rows(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], width: int
) -> NDArray[np.float32]:
    """The other way: (N, width) float32."""
    numbers = unpack(np.ascontiguousarray(codes), 4, width).astype(np.float32) - np.float32(MIDDLE)
    spread = np.repeat(scales.astype(np.float32), BLOCK, axis=1)[:, :width]
    found: NDArray[np.float32] = numbers * spread
    return found
