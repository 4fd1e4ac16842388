"""Reads Hugging Face checkpoints: safetensors, whole or in shards, one tensor at a time.

Layout    A file is a u64 length, a JSON header {name: {dtype, shape, data_offsets}}, then raw little-endian
          bytes. Shards are listed in `model.safetensors.index.json` {"weight_map": {name: file}}.
Contract  Files are memory-mapped and a tensor's bytes are a view: opening 17 GB costs no memory. Both
          namings are read (`model.layers…`/`visual…` of transformers 4, `model.language_model…`/
          `model.visual…` of 5); callers ask in the older one. Pickles are refused.
Elsewhere what the numbers mean: config.py; writing them on: graph.py.
Source    docs/sources.md#safetensors
"""

import json
import mmap
import operator
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.bfloat16 import to_float32
from rexthinker_edge.runtime.errors import CheckpointError

HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "F32": ("float32", np.float32),
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
    "I32": ("int32", np.int32),  # codes of checkpoints that are quantised already
    "I64": ("int64", np.int64),
}
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "uint8": np.uint8,
    "int8": np.int8,
    "int64": np.int64,
    "int32": np.int32,
}
RENAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))


@dataclass(frozen=True)
class Tensor:
    """A named array as stored: `raw` is its bytes, uint8, C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @classmethod
    def from_array(cls, name: str, array: NDArray[Any]) -> Self:
        """Name an array made here; uint16 means bfloat16 nowhere but in files, so it is refused."""
        whole = np.ascontiguousarray(array)
        assert whole.dtype.name in NUMPY_TYPES, whole.dtype
        return cls(name, whole.dtype.name, whole.shape, whole.reshape(-1).view(np.uint8))

    def float32(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """A float32 copy of a floating-point tensor, or of some of its rows."""
        typed = self.raw.view(NUMPY_TYPES[self.dtype]).reshape(self.shape)[rows]
        return to_float32(typed) if self.dtype == "bfloat16" else typed.astype(np.float32)


class Checkpoint:
    """The tensors of one model directory, by their older names."""

    def __init__(self, directory: Path, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Index the directory's safetensors.

        Args:
            progress: called with a tensor's name, bytes asked for so far and bytes in all.

        Raises:
            CheckpointError: there are none, one is damaged, or the shards do not match their index.
        """
        self.directory = directory
        self._tensors: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._last: Tensor | None = None
        self._progress = progress
        for path, expected in _files(directory):
            stored = _read_safetensors(path)
            if expected is not None and expected - stored.keys():
                missing = sorted(expected - stored.keys())[0]
                raise CheckpointError(
                    f"{path.name}: has no tensor {missing!r}, which the index places there. "
                    "The shards belong to another index: download the checkpoint again."
                )
            self._tensors |= {_older_name(name): tensor for name, tensor in stored.items()}

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.raw.nbytes for tensor in self._tensors.values())

    def names(self, prefix: str) -> list[str]:
        """Tensors whose name begins so, in order of name."""
        return sorted(name for name in self._tensors if name.startswith(prefix))

    def shape_and_bytes(self, name: str) -> tuple[tuple[int, ...], int]:
        """Shape and stored bytes of a tensor, without counting it as used; CheckpointError when missing."""
        found = self._find(name)
        return found.shape, found.raw.nbytes

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.directory.name}: no tensor {name!r}, which this configuration needs. "
                "Is config.json the checkpoint's own?"
            )
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name`; CheckpointError when it is missing or not of `shape`."""
        found = self._find(name)
        if found.shape != shape:
            raise CheckpointError(
                f"{self.directory.name}: tensor {name!r} has shape {list(found.shape)}, "
                f"the configuration needs {list(shape)}. Is config.json the checkpoint's own?"
            )
        self._used.add(name)
        self._release()
        self._last = found
        if self._progress is not None:
            done = sum(self._tensors[used].raw.nbytes for used in self._used)
            self._progress(name, done, sum(tensor.raw.nbytes for tensor in self._tensors.values()))
        return found

    def _release(self) -> None:
        """Give the memory of the tensor asked for before back: its pages are read again where it is kept."""
        if self._last is not None and hasattr(mmap, "MADV_DONTNEED"):
            release_pages(self._last.raw)

    def refuse_unused(self, allowed: Iterable[str] = (), prefix: str = "", but: str | None = None) -> None:
        """CheckpointError when a tensor was never asked for: a model read in part is another model.

        Args:
            prefix: look only at tensors whose name begins so.
            but: and does not begin so.
        """
        rest = sorted(
            name
            for name in self._tensors.keys() - self._used - set(allowed)
            if name.startswith(prefix) and not (but and name.startswith(but))
        )
        if rest:
            raise CheckpointError(
                f"{self.directory.name}: {len(rest)} tensors have no place in this architecture, "
                f"{rest[0]!r} the first. Merge adapters into the weights, "
                "or export with a version that knows them."
            )


def _older_name(name: str) -> str:
    """The name transformers 4 gave this tensor."""
    for new, old in RENAMES:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _files(directory: Path) -> list[tuple[Path, set[str] | None]]:
    """The safetensors files to read, each with the names an index promises in it."""
    index_path, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index_path.is_file():
        try:
            weight_map = json.loads(index_path.read_text("utf-8"))["weight_map"]
            shards = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index_path.name}: {error}; needed {{'weight_map': {{name: file}}}}. Download it again."
            ) from error
        for shard in shards:
            if Path(shard).name != shard or not (directory / shard).is_file():
                raise CheckpointError(
                    f"{directory.name}: the index names {shard!r}, which is not in the directory. "
                    "Download the missing shard."
                )
        return [(directory / s, {n for n, file in weight_map.items() if file == s}) for s in shards]
    if single.is_file():
        return [(single, None)]
    pickles = sorted(p.name for ending in ("*.bin", "*.pt", "*.pth") for p in directory.glob(ending))
    if pickles:
        raise CheckpointError(
            f"{directory.name}: only {pickles[0]!r} there, a pickle, which can run code when read; "
            "needed model.safetensors. Convert it with transformers' save_pretrained."
        )
    raise CheckpointError(
        f"{directory.name}: no model.safetensors and no model.safetensors.index.json there. "
        "Give the directory of a Hugging Face checkpoint."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one file as a view into its mapping; CheckpointError when it is damaged."""
    size = path.stat().st_size
    problem = f"{path.name}: damaged safetensors file ({size:,} bytes), %s. Download it again."
    with path.open("rb") as stream:
        lead = stream.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size
        if length > min(size - 8, HEADER_LIMIT_BYTES):
            raise CheckpointError(problem % "the header is cut short")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(problem % "the header is no JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(problem % "the header is no object")
    mapped: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _read_entry(name, entry, mapped, problem)
    return tensors


def _read_entry(name: str, entry: Any, mapped: NDArray[np.uint8], problem: str) -> Tensor:
    """One tensor as a view; CheckpointError when its entry is malformed or leaves the file."""
    try:
        stored, (start, stop) = entry["dtype"], entry["data_offsets"]
        shape = tuple(operator.index(side) for side in entry["shape"])
        inside = 0 <= operator.index(start) <= operator.index(stop) <= len(mapped)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(problem % f"the entry of tensor {name!r} is malformed") from error
    if stored not in DTYPES:
        raise CheckpointError(
            f"{problem.partition(':')[0]}: tensor {name!r} is {stored}, needed one of {', '.join(DTYPES)}. "
            "Export from the unquantised checkpoint."
        )
    dtype, numpy_type = DTYPES[stored]
    if not inside or stop - start != _bytes(shape, numpy_type):
        raise CheckpointError(problem % f"tensor {name!r} lies outside the file")
    return Tensor(name, dtype, shape, mapped[start:stop])


def release_pages(view: NDArray[np.uint8]) -> None:
    """Let the system drop the whole pages of a view into a mapped file from this process's memory."""
    mapping: Any = view
    while isinstance(mapping.base, np.ndarray):
        mapping = mapping.base
    if not isinstance(mapping.base, mmap.mmap):
        return
    begin = view.ctypes.data - mapping.ctypes.data
    start = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (begin + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        mapping.base.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _bytes(shape: tuple[int, ...], numpy_type: type[np.generic]) -> int:
    """Size of an array in bytes, in Python integers: a hostile shape cannot overflow."""
    count = np.dtype(numpy_type).itemsize
    for side in shape:
        count *= side
    return count
