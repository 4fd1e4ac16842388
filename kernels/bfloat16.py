"""Bfloat16 as the 16 high bits of a float32: NumPy has no such type.

Layout    uint16, little endian, one per number.
Contract  `to_float32` is exact; `from_float32` rounds to nearest, ties to even, as torch does.
Elsewhere reading checkpoints: export/checkpoint.py; embedding rows: runtime/embeddings.py.
"""

import numpy as np
from numpy.typing import NDArray


def to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits of any shape to float32 of the same shape; every value is kept exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 of any shape to bfloat16 bits of the same shape, nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
