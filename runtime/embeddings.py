"""Token embeddings: rows of the table, and the picture's features where the prompt holds picture tokens.

Layout    `embeddings.bin`, memory-mapped: (vocab, H) rows in the checkpoint's own dtype; for int8 and int4
          the scales of all rows first, then their codes.
Contract  Only the rows that are asked for are read from the file; they come as float32.
Elsewhere writing a table: export/embeddings.py; four bits: kernels/int4_rows.py; who reads: decoder.py.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.bfloat16 import to_float32
from rexthinker_edge.kernels.int4_rows import blocks_of, code_bytes, expand_int4_rows
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.errors import BundleError

STORED_DTYPES: dict[str, type[np.generic]] = {
    "bfloat16": np.uint16,
    "float16": np.float16,
    "float32": np.float32,
    "int8": np.int8,  # times a scale a row
    "int4": np.uint8,  # two codes a byte, kernels/int4_rows.py
}


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
