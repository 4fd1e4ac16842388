"""The language model's decoder: embeddings and positions in, logits out, keys and values kept.

Layout    `decoder.onnx` takes embeds (1, S, H) float32, positions (3, 1, S) int64, and per layer one
          buffer for keys and one for values, (1, kv_heads, capacity, head_dim), which is both past and
          present: a pass writes rows [length, length + S) in place and nothing is ever copied.
          `embeddings.bin` is the table, (vocab, H) rows in the checkpoint's own dtype, memory-mapped.
Contract  `rewind(n)` forgets everything after the first n tokens. Splitting the same tokens into the same
          passes gives bit-identical logits, whatever the cache held behind `length` before.
Elsewhere positions: positions.py; choosing tokens: generate.py; the graph: export/decoder_graph.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.kernels.bfloat16 import to_float32
from rexthinker_edge.runtime.errors import BundleError, TextError

STORED_DTYPES: dict[str, type[np.generic]] = {
    "bfloat16": np.uint16,
    "float16": np.float16,
    "float32": np.float32,
}


@dataclass(frozen=True)
class DecoderGeometry:
    """What the runtime must know of the decoder; the manifest carries it.

    `max_length` is the number of positions the graph's rotary table holds, prompt and answer together.
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


class Embeddings:
    """The token embedding table, read row by row from a memory-mapped file."""

    def __init__(self, path: Path, geometry: DecoderGeometry) -> None:
        """Map `path`, raw rows of `geometry.embedding_dtype`; raises BundleError when its size differs."""
        if geometry.embedding_dtype not in STORED_DTYPES:
            raise BundleError(
                f"{path.parent.name}/manifest.json: embedding_dtype is {geometry.embedding_dtype!r}, "
                f"needed one of {', '.join(STORED_DTYPES)}. Export the bundle again with this version."
            )
        dtype = np.dtype(STORED_DTYPES[geometry.embedding_dtype])
        needed = geometry.vocab * geometry.hidden * dtype.itemsize
        seen = path.stat().st_size
        if seen != needed:
            raise BundleError(
                f"{path.parent.name}/{path.name}: {seen:,} bytes, the manifest's table needs {needed:,}. "
                "Copy or export the bundle again."
            )
        self.table: NDArray[Any] = np.memmap(
            path, dtype=dtype, mode="r", shape=(geometry.vocab, geometry.hidden)
        )
        self.is_bfloat16 = geometry.embedding_dtype == "bfloat16"

    def lookup(self, token_ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of `token_ids` (S,), as (S, H) float32."""
        rows = self.table[np.asarray(token_ids, dtype=np.int64)]
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
        self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` tokens; only growing copies, so reserve once for a scene."""
        capacity = min(capacity, self.geometry.max_length)
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
        self.capacity = capacity

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert 0 <= length <= self.length, (length, self.length)
        self.length = length


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
        self.session = ort.InferenceSession(str(path), options, providers=list(providers))

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
            logits.append(self._pass(embeds[start:stop], positions[:, start:stop], rows, cache))
        return logits[-1] if last_only else np.concatenate(logits)

    def _pass(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        cache: KVCache,
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
        self.session.run_with_iobinding(binding)
        cache.length = total
        found: NDArray[np.float32] = logits[0]
        return found
