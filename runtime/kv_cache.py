"""Keys and values of the tokens that were read, in buffers a pass writes to in place.

Layout    Per layer one buffer for keys and one for values, (1, kv_heads, capacity, head_dim) float32, which
          is both past and present of the graph: nothing is copied but to grow.
Contract  `rewind(n)` forgets everything after the first n tokens; rows behind `length` are never read.
Elsewhere who writes: decoder.py; on a GPU: cuda_decoder.py; which caches are kept: prefix_tree.py; rows at
          rest: kept_rows.py.
"""

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.pages import paged_zeros

# (2 * layers, kv_heads, tokens, head_dim): keys and values of layer 0, of layer 1, …
Rows = NDArray[np.float32]


def row_bytes(geometry: DecoderGeometry) -> int:
    """What one token takes in a cache: keys and values of every layer, float32."""
    return geometry.layers * geometry.kv_heads * geometry.head_dim * 2 * 4


class KVCache:
    """Keys and values of every layer in preallocated buffers; `length` tokens are valid."""

    def __init__(self, geometry: DecoderGeometry, capacity: int) -> None:
        """Room for `capacity` tokens, capped at the geometry's `max_length`."""
        self.geometry = geometry
        self.capacity = 0
        self.length = 0
        self.keys: list[NDArray[np.float32]] = []
        self.values: list[NDArray[np.float32]] = []
        self.bound: list[tuple[ort.OrtValue, ort.OrtValue]] = []
        self.touched = 0
        self.reserve(capacity)

    @property
    def nbytes(self) -> int:
        """Memory it really takes: rows that were never written have no pages."""
        return max(self.touched, self.length) * row_bytes(self.geometry)

    def reserve(self, capacity: int, branches: bool = False) -> None:
        """Make room for at least `capacity` tokens; only growing copies, so reserve once for a scene.

        Args:
            branches: rows of several answers, which may be more than one answer's `max_length`.
        """
        capacity = capacity if branches else min(capacity, self.geometry.max_length)
        if capacity <= self.capacity:
            return
        shape = (1, self.geometry.kv_heads, capacity, self.geometry.head_dim)
        # A large capacity costs memory only as it fills. One piece: a process may have so many of them only.
        pages = paged_zeros((self.geometry.layers, 2, *shape))
        grown = [(keys, values) for keys, values in pages]
        for old_k, old_v, (new_k, new_v) in zip(self.keys, self.values, grown, strict=False):
            new_k[:, :, : self.length] = old_k[:, :, : self.length]
            new_v[:, :, : self.length] = old_v[:, :, : self.length]
        self.keys, self.values = [k for k, _ in grown], [v for _, v in grown]
        # On the CPU an OrtValue shares the array's memory, and keeps it alive.
        self.bound = [
            (ort.OrtValue.ortvalue_from_numpy(k), ort.OrtValue.ortvalue_from_numpy(v)) for k, v in grown
        ]
        self.capacity, self.touched = capacity, self.length

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert 0 <= length <= self.length, (length, self.length)
        self.touched = max(self.touched, self.length)
        self.length = length

    def keep_only(self, tokens: NDArray[np.int64]) -> None:
        """Forget all tokens but these, (R,) rising, which then stand one behind the other."""
        self.touched = max(self.touched, self.length)
        moved = int(np.count_nonzero(tokens == np.arange(len(tokens))))  # those in front stay
        for pair in self._pairs():
            for buffer in pair:
                buffer[0, :, moved : len(tokens)] = buffer[0][:, tokens[moved:]]
        self.length = len(tokens)

    def rows(self, start: int, stop: int) -> Rows:
        """A copy of what is kept of tokens [start, stop)."""
        assert 0 <= start <= stop <= self.length, (start, stop, self.length)
        parts = [buffer[0, :, start:stop] for pair in self._pairs() for buffer in pair]
        return np.stack(parts, out=paged_zeros((len(parts), *parts[0].shape)))

    def append(self, rows: Rows) -> None:
        """Put back what `rows` gave, as the next tokens."""
        stop = self.length + rows.shape[2]
        self.reserve(stop)
        buffers = [buffer for pair in self._pairs() for buffer in pair]
        for buffer, part in zip(buffers, rows, strict=True):
            buffer[0, :, self.length : stop] = part
        self.length = stop

    def fork(self, length: int, capacity: int) -> "KVCache":
        """Another cache that holds the first `length` tokens too: the one thing that copies them."""
        made = KVCache(self.geometry, max(capacity, length))
        for ours, theirs in zip(self._pairs(), made._pairs(), strict=True):
            for old, new in zip(ours, theirs, strict=True):
                new[:, :, :length] = old[:, :, :length]
        made.length = length
        return made

    def _pairs(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        return list(zip(self.keys, self.values, strict=True))
