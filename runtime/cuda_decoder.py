"""The decoder on a GPU: everything a pass reads and writes lies in device memory, at addresses that stay.

Layout    Keys and values are float16 buffers (1, kv_heads, capacity, head_dim) on the device, each past and
          present at once. A pass over at most `CAPTURED` tokens uses one set of input and output buffers per
          number of tokens, and is recorded as a CUDA graph: one per cache and number of tokens, found again
          by `gpu_graph_id`. Longer passes, of prompts, are neither recorded nor bound to fixed addresses.
Contract  As decoder.Decoder, in float16 and without branches. Only logits come back to the host, and a pass
          copies its embeddings, positions and one length to the device, nothing else. A recorded pass is told
          the buffer's capacity as the total length, a number the CUDA graph may keep; the true length lies on
          the device. Logits that are not finite are an error: float16 was left.
          Rows that leave a cache (kept_rows.py) are float32 on the host, as from any other cache.
Elsewhere the graph: half_graph.py; sessions: providers.py; *not run here* on a GPU: docs/cuda.md.
Source    docs/cuda.md#decode-step
"""

import itertools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.kv_cache import KVCache, Rows, row_bytes
from rexthinker_edge.runtime.providers import Placement

CAPTURED = 32  # tokens of the widest pass that drafting makes (draft_cost.WIDEST)
CAPACITY_STEP = 1024  # capacities are multiples of it, so that buffers of one cache fit the next
SPARE = 2  # sets of buffers kept for the next cache, with their recorded passes
NO_GRAPH = "-1"  # gpu_graph_id of a run that is not recorded
Half = NDArray[np.float16]


@dataclass(eq=False)
class Buffers:
    """Keys and values on the device, the passes recorded over them, and their ids."""

    capacity: int
    values: list[Any]  # OrtValues: keys of layer 0, values of layer 0, keys of layer 1, …
    bindings: dict[int, Any] = field(default_factory=dict)
    graph_ids: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    """Input and output buffers of a pass over so many tokens, shared by all caches."""

    held: Mapping[str, Any]
    logits: Any


class DeviceCache(KVCache):
    """A KVCache whose buffers lie on the device; what is copied goes through the host."""

    def __init__(self, decoder: "CudaDecoder", capacity: int) -> None:
        """Room for `capacity` tokens, rounded up and capped at the geometry's `max_length`."""
        self.geometry, self._decoder = decoder.geometry, decoder
        self.length = self.touched = self.capacity = 0
        self._holder: list[Buffers] = []
        weakref.finalize(self, decoder.give_back, self._holder)
        self.reserve(capacity)

    @property
    def buffers(self) -> Buffers:
        """What it holds now."""
        return self._holder[0]

    @property
    def nbytes(self) -> int:
        """Device memory: all of it is taken when the cache is made. Two bytes a number, not four."""
        return self.capacity * row_bytes(self.geometry) // 2

    def reserve(self, capacity: int, branches: bool = False) -> None:
        """As KVCache's; branches are refused before, by `geometry.branches`."""
        assert not branches
        if min(capacity, self.geometry.max_length) <= self.capacity:
            return
        new = self._decoder.take_buffers(capacity)
        if self._holder:
            old = self._holder[0]
            for ours, theirs in zip(old.values, new.values, strict=True):
                _write(theirs, ours.numpy()[:, :, : self.length], 0)
            self._decoder.give_back(self._holder)
        self._holder[:] = [new]
        self.capacity = new.capacity

    def rows(self, start: int, stop: int) -> Rows:
        """As KVCache's; (2 * layers, kv_heads, stop - start, head_dim) float32."""
        assert 0 <= start <= stop <= self.length, (start, stop, self.length)
        found = [buffer.numpy()[0, :, start:stop] for buffer in self.buffers.values]
        return np.stack(found).astype(np.float32)

    def append(self, rows: Rows) -> None:
        """As KVCache's."""
        stop = self.length + rows.shape[2]
        self.reserve(stop)
        for buffer, part in zip(self.buffers.values, rows, strict=True):
            _write(buffer, part[None].astype(np.float16), self.length)
        self.length = stop

    def fork(self, length: int, capacity: int) -> "DeviceCache":
        """As KVCache's."""
        made = DeviceCache(self._decoder, max(capacity, length))
        for ours, theirs in zip(self.buffers.values, made.buffers.values, strict=True):
            _write(theirs, ours.numpy()[:, :, :length], 0)
        made.length = length
        return made


class CudaDecoder(Decoder):
    """A half graph in a session on the GPU, with its embedding table on the host."""

    def __init__(
        self, session: Any, embeddings: Embeddings, geometry: DecoderGeometry, placement: Placement,
        prefill_chunk: int = 512,
    ) -> None:  # fmt: skip
        """Run `session`, of a graph that half_graph.half_decoder made of the decoder of this geometry.

        Args:
            placement: where the buffers lie; anything but CUDA is for tests, in the host's memory.
        """
        assert prefill_chunk > 0, prefill_chunk
        self.geometry, self.embeddings, self.rows_alike = geometry, embeddings, False
        self.session, self.prefill_chunk, self.placement = session, prefill_chunk, placement
        self._steps: dict[int, _Step] = {}
        self._spare: list[Buffers] = []
        self._ids = itertools.count(1)

    def new_cache(self, capacity: int) -> DeviceCache:
        """As Decoder's, on the device."""
        return DeviceCache(self, capacity)

    def take_buffers(self, capacity: int) -> Buffers:
        """Buffers for `capacity` tokens: spare ones that are large enough, or new ones."""
        wanted = min(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP, self.geometry.max_length)
        for place, spare in enumerate(self._spare):
            if spare.capacity >= wanted:
                return self._spare.pop(place)
        shape = (1, self.geometry.kv_heads, wanted, self.geometry.head_dim)
        # Zeros and not just any bytes: rows that are masked are multiplied by 0, which NaN survives.
        values = [self._place(np.zeros(shape, np.float16)) for _ in range(2 * self.geometry.layers)]
        return Buffers(wanted, values)

    def give_back(self, holder: list[Buffers]) -> None:
        """Take back what a cache held: for the next one, or to be freed with its recorded passes."""
        self._spare += holder
        holder.clear()
        while len(self._spare) > SPARE:
            freed = self._spare.pop(0)
            for graph_id in freed.graph_ids.values():
                self.session.release_captured_graph(graph_id)

    def _pass(
        self,
        embeds: NDArray[np.float32],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        cache: KVCache,
        bias: NDArray[np.float32] | None = None,
        deadline: Deadline = NEVER,
    ) -> NDArray[np.float32]:
        """As Decoder's: (S, H) in, (len(rows), vocab) out."""
        assert bias is None, "the graph takes no attention bias"
        assert isinstance(cache, DeviceCache), type(cache)
        count, total = len(embeds), cache.length + len(embeds)
        feeds: dict[str, NDArray[Any]] = {
            "embeds": embeds[None].astype(np.float16),
            "positions": np.ascontiguousarray(positions[:, None], np.int64),
            "last_index": np.array([total - 1], np.int32),
        }
        if count <= CAPTURED:
            logits = self._recorded(feeds, cache.buffers, deadline)[rows]
        else:
            logits = self._plain(feeds, rows, total, cache.buffers, deadline)
        if not np.isfinite(logits.max(axis=1)).all():
            raise DeviceError(
                "decoder.onnx: logits that are no numbers, float16 does not hold this model's activations. "
                "Use device='cpu'."
            )
        cache.length = total
        return logits

    def _recorded(
        self, feeds: dict[str, NDArray[Any]], buffers: Buffers, deadline: Deadline
    ) -> NDArray[np.float32]:
        """A pass whose addresses and shapes depend on cache and number of tokens alone: (S, vocab)."""
        count = feeds["embeds"].shape[1]
        step = self._steps.get(count)
        if step is None:
            step = self._steps[count] = self._step(feeds, count)
        else:
            for name, value in feeds.items():
                step.held[name].update_inplace(value)
        if count not in buffers.bindings:
            total = ort.OrtValue.ortvalue_from_numpy(np.array(buffers.capacity, np.int32))
            binding = self._bind({**step.held, "total_length": total}, buffers)
            binding.bind_ortvalue_output("logits", step.logits)
            buffers.bindings[count], buffers.graph_ids[count] = binding, next(self._ids)
        self._run(buffers.bindings[count], str(buffers.graph_ids[count]), deadline)
        found: NDArray[np.float32] = np.array(step.logits.numpy()[0])
        return found

    def _step(self, feeds: Mapping[str, NDArray[Any]], count: int) -> _Step:
        held = {name: self._place(value) for name, value in feeds.items()}
        held["rows"] = self._place(np.arange(count, dtype=np.int64))
        return _Step(held, self._place(np.zeros((1, count, self.geometry.vocab), np.float32)))

    def _plain(
        self, feeds: Mapping[str, NDArray[Any]], rows: NDArray[np.int64], total: int, buffers: Buffers,
        deadline: Deadline,
    ) -> NDArray[np.float32]:  # fmt: skip
        """A pass that is not recorded, with buffers of its own: (len(rows), vocab)."""
        held = {name: self._place(value) for name, value in feeds.items()}
        held["rows"] = self._place(rows.astype(np.int64))
        held["total_length"] = ort.OrtValue.ortvalue_from_numpy(np.array(total, np.int32))
        binding = self._bind(held, buffers)
        logits = self._place(np.zeros((1, len(rows), self.geometry.vocab), np.float32))
        binding.bind_ortvalue_output("logits", logits)
        self._run(binding, NO_GRAPH, deadline)
        found: NDArray[np.float32] = np.array(logits.numpy()[0])  # a copy: its memory goes with this call
        return found

    def _bind(self, held: Mapping[str, Any], buffers: Buffers) -> Any:
        binding = self.session.io_binding()
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for place, value in enumerate(buffers.values):
            name = f"{('keys', 'values')[place % 2]}.{place // 2}"
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"new_{name}", value)
        return binding

    def _run(self, binding: Any, graph_id: str, deadline: Deadline) -> None:
        with deadline.running() as given:
            options = ort.RunOptions() if given is None else given
            options.add_run_config_entry("gpu_graph_id", graph_id)
            self.session.run_with_iobinding(binding, options)

    def _place(self, value: NDArray[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(value), self.placement.memory, self.placement.index
        )


def _write(buffer: Any, part: Half, at: int) -> None:
    """Put (1, kv_heads, n, head_dim) into a device buffer as its rows [at, at + n)."""
    whole = buffer.numpy()
    whole[:, :, at : at + part.shape[2]] = part
    buffer.update_inplace(whole)
