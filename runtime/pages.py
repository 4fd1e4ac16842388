"""Large arrays in pages of their own, taken from the system and given back to it.

Contract  A page takes memory from when it is first written, and all of it is free again when the array goes.
          The C library promises neither: once it has freed one large block it serves the next ones from its
          heap, where zeros are written out and what is freed between others stays with the process. Where
          the system gives no more pieces (Linux allows a process 65,530) the C library serves.
Elsewhere who needs it: kv_cache.py, prefix_tree.py. What it changed: docs/scenes.md.
"""

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def paged_zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """A new array of zeros that no other process sees; MemoryError where there is no room."""
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    # Shared pages, which are mmap's default, would count as another kind of memory and survive a fork.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        pages = mmap.mmap(-1, size, **private)
    except OSError:
        return np.zeros(shape, dtype)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)


def paged_copy(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in pages of their own."""
    made = paged_zeros(array.shape, array.dtype)
    made[...] = array
    return made
