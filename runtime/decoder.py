"""The language model's decoder: embeddings and positions in, logits out, keys and values kept.

Layout    `decoder.onnx` takes embeds (1, S, H) float32, positions (3, 1, S) int64, and per layer one
          buffer for keys and one for values, (1, kv_heads, capacity, head_dim), which is both past and
          present: a pass writes rows [length, length + S) in place and nothing is ever copied.
          `embeddings.bin` is the table, (vocab, H) rows in the checkpoint's own dtype, memory-mapped.
Contract  `rewind(n)` forgets everything after the first n tokens. Splitting the same tokens into the same
          passes gives bit-identical logits, whatever the cache held behind `length` before.
Elsewhere positions: positions.py; choosing tokens: generate.py; the graph: export/decoder_graph.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.kernels.bfloat16 import to_float32
from rexthinker_edge.kernels.int4_rows import blocks_of, code_bytes, expand_int4_rows
from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.errors import BundleError, TextError
from rexthinker_edge.runtime.opening import open_session

STORED_DTYPES: dict[str, type[np.generic]] = {
    "bfloat16": np.uint16,
    "float16": np.float16,
    "float32": np.float32,
    "int8": np.int8,  # times a scale a row
    "int4": np.uint8,  # two codes a byte, kernels/int4_rows.py
}
# Added to a score it leaves a weight of exactly 0; finite, so that a tile hidden whole is no 0 / 0.
HIDDEN = np.float32(-1e30)


@dataclass(frozen=True)
class DecoderGeometry:
    """What the runtime must know of the decoder; the manifest carries it.

    `max_length` is the number of positions the graph's rotary table holds, prompt and answer together.
    `branches`: the graph takes an attention bias, so that several answers can share one cache.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    mrope_section: tuple[int, int, int]
    rope_theta: float
    max_length: int
    embedding_dtype: str
    branches: bool = False


class Embeddings:
    """The token embedding table, read row by row from a memory-mapped file."""

    def __init__(self, path: Path, geometry: DecoderGeometry) -> None:
        """Map `path`: raw rows; for int8 and int4 the scales of all rows, then their codes.

        Raises:
            BundleError: the file's size or `geometry.embedding_dtype` is not as it must be.
        """
        stored, vocab, hidden = geometry.embedding_dtype, geometry.vocab, geometry.hidden
        if stored not in STORED_DTYPES:
            raise BundleError(
                f"{path.parent.name}/manifest.json: embedding_dtype is {stored!r}, "
                f"needed one of {', '.join(STORED_DTYPES)}. Export the bundle again with this version."
            )
        dtype = np.dtype(STORED_DTYPES[stored])
        width = code_bytes(hidden) if stored == "int4" else hidden
        scales = {"int8": (np.float32, (vocab,)), "int4": (np.float16, (vocab, blocks_of(hidden)))}
        kind, shape = scales.get(stored, (np.float32, (0,)))
        scales_bytes = math.prod(shape) * np.dtype(kind).itemsize
        needed = vocab * width * dtype.itemsize + scales_bytes
        seen = path.stat().st_size
        if seen != needed:
            raise BundleError(
                f"{path.parent.name}/{path.name}: {seen:,} bytes, the manifest's table needs {needed:,}. "
                "Copy or export the bundle again."
            )
        self.table: NDArray[Any] = np.memmap(
            path, dtype=dtype, mode="r", offset=scales_bytes, shape=(vocab, width)
        )
        self.scales: NDArray[Any] | None = None
        if scales_bytes:
            self.scales = np.memmap(path, dtype=kind, mode="r", shape=shape)
        self.hidden, self.is_int4 = hidden, stored == "int4"
        self.is_bfloat16 = stored == "bfloat16"

    def lookup(self, token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of `token_ids` (S,), as (S, H) float32; only these rows are read from the file."""
        ids = np.asarray(token_ids, dtype=np.int64)
        rows = self.table[ids]
        if self.scales is not None and self.is_int4:
            return expand_int4_rows(rows, self.scales[ids], self.hidden)
        if self.scales is not None:
            found: NDArray[np.float32] = rows.astype(np.float32) * self.scales[ids][:, None]
            return found
        return to_float32(rows) if self.is_bfloat16 else rows.astype(np.float32)


def place_image(
    embeds: NDArray[np.float32],
    token_ids: Sequence[int] | NDArray[np.int64],
    image_pad_id: int,
    features: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Put the vision tower's features where the prompt holds picture tokens.

    Args:
        embeds: (S, H) rows of `token_ids`.
        features: (N, H), one per `image_pad_id` in `token_ids`, in order.

    Returns:
        (S, H) float32, a new array.
    """
    slots = np.asarray(token_ids) == image_pad_id
    assert int(slots.sum()) == len(features), (int(slots.sum()), features.shape)
    placed = embeds.copy()
    placed[slots] = features
    return placed


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
        # np.zeros maps pages on first touch: a large capacity costs memory only as it fills.
        grown = [
            (np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(self.geometry.layers)
        ]
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

    def rows(self, start: int, stop: int) -> Rows:
        """A copy of what is kept of tokens [start, stop)."""
        assert 0 <= start <= stop <= self.length, (start, stop, self.length)
        return np.stack([buffer[0, :, start:stop] for pair in self._pairs() for buffer in pair])

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


class Decoder:
    """`decoder.onnx` in an ONNX Runtime session, with its embedding table."""

    def __init__(
        self,
        path: Path,
        embeddings: Embeddings,
        geometry: DecoderGeometry,
        options: ort.SessionOptions | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        prefill_chunk: int = 512,
    ) -> None:
        """Open the graph. `prefill_chunk` bounds the tokens of one pass, and with them the working memory."""
        assert prefill_chunk > 0, prefill_chunk
        self.geometry = geometry
        self.embeddings = embeddings
        self.prefill_chunk = prefill_chunk
        self.session = open_session(path, options, providers)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` tokens (at most `geometry.max_length`)."""
        return KVCache(self.geometry, capacity)

    def embed(self, token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """(S, H) float32 embeddings of `token_ids` (S,)."""
        return self.embeddings.lookup(token_ids)

    def run(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        cache: KVCache,
        last_only: bool = True,
        deadline: Deadline = NEVER,
    ) -> NDArray[np.float32]:
        """Read S tokens after those the cache holds; the cache then holds S more.

        Args:
            embeds: (S, H) float32, S ≥ 1.
            positions: (3, S) int64 M-RoPE positions.
            cache: is extended in place, growing when too small.
            last_only: logits of the last token only, or of all S.

        Returns:
            (1 or S, vocab) float32.

        Raises:
            TextError: the tokens do not fit into the graph's `max_length`; the cache is unchanged.
            DeadlinePassed: the cache holds the whole chunks that were read before.
        """
        count = len(embeds)
        assert count > 0, embeds.shape
        assert positions.shape == (3, count), (embeds.shape, positions.shape)
        if cache.length + count > self.geometry.max_length:
            raise TextError(
                f"prompt: {cache.length + count:,} tokens with what went before, the bundle allows "
                f"{self.geometry.max_length:,}. Ask with a shorter expression or fewer candidate boxes, "
                "or export the bundle with a larger --max-length."
            )
        cache.reserve(cache.length + count)
        logits = []
        for start in range(0, count, self.prefill_chunk):
            stop = min(start + self.prefill_chunk, count)
            rows = np.array([stop - start - 1]) if last_only else np.arange(stop - start)
            part = positions[:, start:stop]
            logits.append(self._pass(embeds[start:stop], part, rows, cache, deadline=deadline))
        return logits[-1] if last_only else np.concatenate(logits)

    def run_rows(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        cache: KVCache,
        deadline: Deadline = NEVER,
    ) -> NDArray[np.float32]:
        """As `run`, with the logits of some tokens: `rows` (R,) rising; returns (R, vocab)."""
        cache.reserve(cache.length + len(embeds))
        logits = []
        for start in range(0, len(embeds), self.prefill_chunk):
            stop = min(start + self.prefill_chunk, len(embeds))
            wanted = rows[(rows >= start) & (rows < stop)] - start
            asked = wanted if len(wanted) else np.zeros(1, np.int64)
            part = self._pass(embeds[start:stop], positions[:, start:stop], asked, cache, deadline=deadline)
            logits.append(part[: len(wanted)])
        return np.concatenate(logits)

    def run_branches(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        hidden: NDArray[np.bool_],
        rows: NDArray[np.int64],
        cache: KVCache,
        deadline: Deadline = NEVER,
    ) -> NDArray[np.float32]:
        """One pass over S tokens of several answers that share a cache.

        Args:
            embeds: (S, H) float32; positions: (3, S) int64, each answer's own.
            hidden: (S, cache.length + S), true where a token must not look; rows after a token are hidden
                anyway.
            rows: (R,) tokens whose logits are wanted.

        Returns:
            (R, vocab) float32.
        """
        assert self.geometry.branches, "the graph takes no attention bias"
        assert int(positions.max()) < self.geometry.max_length, positions.max()
        needed = cache.length + len(embeds)
        if needed > cache.capacity:
            cache.reserve(needed + needed // 4, branches=True)
        return self._pass(embeds, positions, rows, cache, np.where(hidden, HIDDEN, 0), deadline)

    def _pass(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        cache: KVCache,
        bias: NDArray[np.float32] | None = None,
        deadline: Deadline = NEVER,
    ) -> NDArray[np.float32]:
        """One run of the graph: (S, H) in, (len(rows), vocab) out."""
        total = cache.length + len(embeds)
        logits: NDArray[np.float32] = np.empty((1, len(rows), self.geometry.vocab), np.float32)
        feeds = {
            "embeds": np.ascontiguousarray(embeds[None], dtype=np.float32),
            "positions": np.ascontiguousarray(positions[:, None], dtype=np.int64),
            "last_index": np.array([total - 1], np.int32),
            "total_length": np.array(total, np.int32),
            "rows": rows.astype(np.int64),
        }
        if self.geometry.branches:
            bias = np.zeros((len(embeds), total), np.float32) if bias is None else bias
            feeds["attention_bias"] = np.ascontiguousarray(bias[None, None], dtype=np.float32)
        binding = self.session.io_binding()
        held = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for layer, (keys, values) in enumerate(cache.bound):
            binding.bind_ortvalue_input(f"keys.{layer}", keys)
            binding.bind_ortvalue_input(f"values.{layer}", values)
            binding.bind_ortvalue_output(f"new_keys.{layer}", keys)
            binding.bind_ortvalue_output(f"new_values.{layer}", values)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        with deadline.running() as options:
            self.session.run_with_iobinding(binding, options)
        cache.length = total
        found: NDArray[np.float32] = logits[0]
        return found
