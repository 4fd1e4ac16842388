"""What was computed of prompts, kept: system turn, then picture, then hints.

Layout    A prompt is a path of segments. A bench is a KV cache that holds one path, to be rewound to any
          point of it. Segments that a bench had to give up lie beside the benches (kept_rows.py) until they
          are wanted again; pictures' features likewise. Every segment is read in passes of its own, so the
          same path is always computed by the same passes, however much of it was found.
Contract  What is lent equals a cold run: bit for bit with exact storage. A key is a SHA-256 over everything a
          segment's rows depend on beside the segments before it, so no two pictures share one. What is idle
          is forgotten, the least recently used first, when all of it together is more than the budget; what
          is lent out is not. Safe between threads: a bench has one user at a time, and whoever finds it in
          use gets a fork.
Elsewhere what segments are made of: prompt_path.py; the rows: kv_cache.py; on disk: kept_scene.py.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.kept_rows import KeptRows, expand, keep
from rexthinker_edge.runtime.kv_cache import KVCache, row_bytes
from rexthinker_edge.runtime.pages import paged_copy

Array = NDArray[np.float32]
Path = tuple[bytes, ...]
Embed = Callable[[Deadline], Array]
# Rows of a new bench beyond what is asked: more hints and longer questions fit without another buffer. They
# take no memory before they are written.
SLACK = 512


@dataclass(frozen=True)
class Segment:
    """Tokens of a prompt that are read together.

    Attributes:
        key: SHA-256 over what its rows depend on.
        positions: (3, count) int64.
        embed: gives (count, hidden) float32; asked only when the rows are not kept.
    """

    key: bytes
    positions: NDArray[np.int64]
    embed: Embed

    @property
    def count(self) -> int:
        """Its tokens."""
        return int(self.positions.shape[1])


def content_key(kind: str, *parts: NDArray[np.generic]) -> bytes:
    """SHA-256 over a kind and whole arrays, their shapes and types included."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(f"|{part.dtype.str}{part.shape}|".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()


@dataclass(frozen=True)
class Lent:
    """A cache that holds exactly a path; rows may be added behind it until it is given back."""

    cache: KVCache
    reused: int  # tokens of the path that were not computed for this loan


@dataclass(eq=False)
class _Bench:
    """A cache, the path it holds as keys and token counts, and since when it is idle."""

    cache: KVCache
    path: list[tuple[bytes, int]] = field(default_factory=list)
    busy: bool = True
    used: int = 0

    def tokens(self, segments: int | None = None) -> int:
        return sum(count for _, count in self.path[:segments])

    def keys(self, segments: int) -> Path:
        return tuple(key for key, _ in self.path[:segments])

    def common(self, path: tuple[Segment, ...]) -> int:
        """How many segments `path` begins with that this bench's path begins with too."""
        count = 0
        for (key, _), segment in zip(self.path, path, strict=False):
            if key != segment.key:
                break
            count += 1
        return count


@dataclass(eq=False)
class _Kept:
    """Rows of a segment, or a picture's features, at rest."""

    thing: KeptRows | Array
    used: int

    @property
    def nbytes(self) -> int:
        return int(self.thing.nbytes)


class PrefixTree:
    """Benches and kept segments of one decoder, within a budget."""

    def __init__(self, decoder: Decoder, budget_bytes: int, storage: str = "float32") -> None:
        """Keep nothing yet.

        Args:
            budget_bytes: what idle benches, rows and features may take together; 0 keeps nothing.
            storage: of rows that no bench holds, "float32" or "int8".
        """
        self._decoder, self._budget, self._storage = decoder, budget_bytes, storage
        self._benches: list[_Bench] = []
        self._kept: dict[Path, _Kept] = {}
        self._clock = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """What everything takes now, benches in use included."""
        with self._lock:
            return self._nbytes()

    @contextmanager
    def lend(self, path: tuple[Segment, ...], room: int, deadline: Deadline = NEVER) -> Iterator[Lent]:
        """A cache that holds `path`, computed as far as it was not kept.

        Args:
            room: tokens that may come behind it.

        Raises:
            DeadlinePassed: while computing; whole segments that were done are kept.
        """
        with self._lock:
            bench = self._take(path, room)
        try:
            reused = self._fill(bench, path, room, deadline)
            yield Lent(bench.cache, reused)
        finally:
            with self._lock:
                bench.cache.rewind(bench.tokens())
                bench.busy, bench.used = False, self._tick()
                self._trim(self._budget)

    def features(self, key: bytes, compute: Callable[[], Array]) -> Array:
        """A picture's features: kept ones, or computed and kept."""
        place = (b"features", key)
        with self._lock:
            found = self._kept.get(place)
            if found is not None:
                found.used = self._tick()
                assert isinstance(found.thing, np.ndarray)
                return found.thing
        made = paged_copy(compute())
        with self._lock:
            self._kept[place] = _Kept(made, self._tick())
            self._trim(self._budget)
        return made

    def holds(self, path: tuple[Segment, ...]) -> bool:
        """Whether nothing of a path would have to be computed now."""
        with self._lock:
            held = max((bench.common(path) for bench in self._benches), default=0)
            keys = _keys(path)
            return all(keys[: end + 1] in self._kept for end in range(held, len(path)))

    def adopt(self, path: tuple[Segment, ...], rows: Array) -> None:
        """Take in rows computed elsewhere, (2 * layers, kv_heads, tokens of the path, head_dim)."""
        bench = _Bench(self._decoder.new_cache(rows.shape[2]))
        bench.cache.append(rows)
        bench.path = [(segment.key, segment.count) for segment in path]
        with self._lock:
            self._benches.append(bench)
            bench.busy, bench.used = False, self._tick()
            self._trim(self._budget)

    def _take(self, path: tuple[Segment, ...], room: int) -> _Bench:
        """The bench to work on, busy from now on and holding nothing but a beginning of `path`."""
        idle = [bench for bench in self._benches if not bench.busy]
        best = max(idle, key=lambda b: (b.common(path), b.used), default=None)
        if best is not None:
            shared = best.common(path)
            # Rewind where less is given up than is found; else leave it to those who may come back.
            if best.tokens() <= 2 * best.tokens(shared):
                self._give_up(best, shared)
                best.busy = True
                return best
        return self._new_bench(path, room)

    def _new_bench(self, path: tuple[Segment, ...], room: int) -> _Bench:
        tokens = sum(segment.count for segment in path)
        capacity = tokens + room + SLACK
        source = max(self._benches, key=lambda b: b.common(path), default=None)
        shared = 0 if source is None else source.common(path)
        if source is None or shared == 0:
            made = _Bench(self._decoder.new_cache(capacity))
        else:
            made = _Bench(source.cache.fork(source.tokens(shared), capacity), source.path[:shared])
        self._trim(max(0, self._budget - tokens * row_bytes(self._decoder.geometry)))
        self._benches.append(made)
        return made

    def _give_up(self, bench: _Bench, shared: int) -> None:
        """Rewind a bench to its first `shared` segments and keep what that forgets."""
        for end in range(len(bench.path), shared, -1):
            self._keep(bench, end)
        bench.cache.rewind(bench.tokens(shared))
        del bench.path[shared:]

    def _keep(self, bench: _Bench, end: int) -> None:
        """Put the rows of a bench's segment `end - 1` beside it, unless they lie there."""
        keys, (_, count) = bench.keys(end), bench.path[end - 1]
        if keys in self._kept:
            self._kept[keys].used = self._tick()
        elif count * row_bytes(self._decoder.geometry) <= self._budget:
            rows = bench.cache.rows(bench.tokens(end - 1), bench.tokens(end))
            self._kept[keys] = _Kept(keep(rows, self._storage), self._tick())

    def _fill(self, bench: _Bench, path: tuple[Segment, ...], room: int, deadline: Deadline) -> int:
        """Make a bench hold the whole path; returns the tokens that were not computed."""
        bench.cache.reserve(sum(segment.count for segment in path) + room)
        reused = bench.tokens()
        for end in range(len(bench.path) + 1, len(path) + 1):
            segment, keys = path[end - 1], _keys(path[:end])
            with self._lock:
                found = self._kept.get(keys)
                if found is not None:
                    found.used = self._tick()
            if found is not None:
                assert isinstance(found.thing, KeptRows)
                bench.cache.append(expand(found.thing))
                reused += segment.count
            else:
                self._decoder.run(segment.embed(deadline), segment.positions, bench.cache, deadline=deadline)
            with self._lock:
                bench.path.append((segment.key, segment.count))
        return reused

    def _trim(self, budget: int) -> None:
        """Forget what is idle, the least recently used first, until the rest fits."""
        while self._nbytes() > budget:
            idle = [bench for bench in self._benches if not bench.busy]
            oldest = min(idle, key=lambda b: b.used, default=None)
            place = min(self._kept, key=lambda p: self._kept[p].used, default=None)
            if oldest is not None and (place is None or oldest.used < self._kept[place].used):
                self._forget(oldest)
            elif place is not None:
                del self._kept[place]
            else:
                return

    def _forget(self, bench: _Bench) -> None:
        """Drop a bench; packed storage keeps its segments in a quarter of the bytes first."""
        if self._storage != "float32":
            for end in range(1, len(bench.path) + 1):
                self._keep(bench, end)
        with suppress(ValueError):
            self._benches.remove(bench)

    def _nbytes(self) -> int:
        benches = sum(bench.cache.nbytes for bench in self._benches)
        return benches + sum(kept.nbytes for kept in self._kept.values())

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _keys(path: tuple[Segment, ...]) -> Path:
    return tuple(segment.key for segment in path)
