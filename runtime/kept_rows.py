"""How keys and values are kept while nobody uses them: as they are, or as 8-bit integers.

Layout    Exact rows are the cache's own float32. Packed rows are int8 codes with one float32 scale per layer,
          key or value, head and token, so that a loud token does not blur its neighbours: 26 % of the bytes.
Contract  Exact rows come back bit for bit. Packed ones are off by at most half a scale, that is 1/254 of the
          largest value of the same head and token: answers after them are near, not equal, so the caller
          asks for it.
Elsewhere who keeps what: prefix_tree.py; the rows: kv_cache.py.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.kv_cache import Rows
from rexthinker_edge.runtime.pages import paged_copy

STORAGES = ("float32", "int8")


@dataclass(frozen=True)
class KeptRows:
    """Rows at rest. `scales` is None for exact ones."""

    codes: NDArray[np.float32] | NDArray[np.int8]
    scales: NDArray[np.float32] | None

    @property
    def nbytes(self) -> int:
        """What they take."""
        return int(self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes))


def keep(rows: Rows, storage: str) -> KeptRows:
    """Put rows (2 * layers, kv_heads, tokens, head_dim) to rest, in one of `STORAGES`."""
    assert storage in STORAGES, storage
    if storage == "float32":
        return KeptRows(rows, None)
    scales = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return KeptRows(paged_copy(np.rint(rows / scales).astype(np.int8)), scales)


def expand(kept: KeptRows) -> Rows:
    """The rows again."""
    if kept.scales is None:
        return np.asarray(kept.codes, np.float32)
    return np.asarray(kept.codes * kept.scales, np.float32)
