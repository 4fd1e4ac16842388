"""The language model's decoder: embeddings and positions in, logits out.

Layout    `decoder.onnx` takes embeds (1, S, H) float32, positions (3, 1, S) int64, and per layer the cache's
          buffer of keys and of values, which is both past and present: a pass writes rows
          [length, length + S) in place and nothing is ever copied.
Contract  Splitting the same tokens into the same passes gives bit-identical logits, whatever the cache held
          behind `length` before.
Elsewhere the cache: kv_cache.py; the table: embeddings.py; positions: positions.py; choosing tokens:
          generate.py; the graph: export/decoder_graph.py.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import TextError
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.native_graph import native_graph
from rexthinker_edge.runtime.opening import CPU, open_native, open_session

# Added to a score it leaves a weight of exactly 0; finite, so that a tile hidden whole is no 0 / 0.
HIDDEN = np.float32(-1e30)


class Decoder:
    """`decoder.onnx` in an ONNX Runtime session, with its embedding table.

    Attributes:
        rows_alike: a row's numbers depend on what it sees and not on the rows beside it, so a pass may have
            one row; where it is False, passes that shall agree bit for bit have two or more.
    """

    def __init__(
        self,
        path: Path,
        embeddings: Embeddings,
        geometry: DecoderGeometry,
        options: ort.SessionOptions | None = None,
        providers: Sequence[str] = (CPU,),
        prefill_chunk: int = 512,
    ) -> None:
        """Open the graph. `prefill_chunk` bounds the tokens of one pass, and with them the working memory."""
        assert prefill_chunk > 0, prefill_chunk
        self.geometry = geometry
        self.embeddings = embeddings
        self.prefill_chunk = prefill_chunk
        native = native_graph(path) if list(providers) == [CPU] else None
        self.rows_alike = native is not None and native.rows_alike
        self.session = (
            open_session(path, options, providers)
            if native is None
            else open_native(native.model, path, options)
        )

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
