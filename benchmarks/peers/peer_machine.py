"""The machine itself as a peer: how fast memory is read, measured in the same alternation.

Contract  Stands alone. Every thread takes dot products of its own stretch of one large array, much larger
          than any cache, with itself; a byte counts once. The quickest of a few passes counts: others use the
          machine too.
Elsewhere the interface: worker.py.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BYTES = 256 << 20
PASSES = 4


WAYS: dict[str, list[str]] = {"read": ["dot products"]}


class Peer:
    """An array to be read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ways = dict(WAYS)
        import numpy as np  # noqa: PLC0415

        threads = settings["threads"]
        self._parts = np.array_split(np.full(BYTES // 4, 0.5, np.float32), threads)
        self._pool = ThreadPoolExecutor(threads)
        self.detail: dict[str, float] = {}

    def versions(self) -> dict[str, str]:
        """What runs."""
        import numpy as np  # noqa: PLC0415

        return {"numpy": np.__version__}

    def prepare(self, step: str, way: str) -> None:
        """Nothing."""

    def run(self, step: str, way: str) -> int:
        """Read everything a few times; `detail` has the best rate."""
        best = float("inf")
        for _ in range(PASSES):
            began = time.perf_counter()
            list(self._pool.map(_read, self._parts))
            best = min(best, time.perf_counter() - began)
        self.detail = {"bytes_per_s": BYTES / best}
        return PASSES * BYTES


def _read(part: Any) -> None:
    half = len(part) // 2  # two streams, each byte once
    part[:half].dot(part[half : 2 * half])


def open_peer(settings: dict[str, Any]) -> Peer:
    """As worker.py wants it."""
    return Peer(settings)
