"""Writes the token embedding table: as the checkpoint stores it, or in eight or four bits a number.

Layout    int8: a float32 scale for every row, (vocab,), then the codes, (vocab, hidden) int8, row-major.
          int4: the scales of all rows, then the codes of all rows, as kernels/int4_rows.py lays out a row.
Contract  int8: a row's largest absolute value maps to 127, so no number moves by more than half of its row's
          scale. Rows are done in slices: memory stays small at any size.
Elsewhere reading rows: runtime/embeddings.py.
Source    docs/full-size.md#embeddings
"""

from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.kernels.int4_rows import blocks_of, code_bytes, round_int4_rows

SLICE_ROWS = 512


class EmbeddingPrecision(StrEnum):
    """How the table is stored."""

    KEPT = "kept"  # in the checkpoint's own dtype
    INT8 = "int8"
    INT4 = "int4"


def write_embeddings(table: Tensor, path: Path, precision: EmbeddingPrecision) -> str:
    """Write a (vocab, hidden) table to `path`; returns the dtype that the manifest names."""
    with path.open("wb") as stream:
        if precision is EmbeddingPrecision.KEPT:
            stream.write(table.raw.data)
            return table.dtype
        vocab, hidden = table.shape
        four = precision is EmbeddingPrecision.INT4
        made = np.empty((vocab, blocks_of(hidden)), np.float16) if four else np.empty(vocab, np.float32)
        scales: NDArray[Any] = made
        stream.seek(scales.nbytes)
        for start in range(0, vocab, SLICE_ROWS):
            rows = slice(start, min(start + SLICE_ROWS, vocab))
            numbers = table.float32(rows)
            codes, scales[rows] = round_int4_rows(numbers) if four else round_rows(numbers)
            stream.write(codes.data)
        stream.seek(0)
        stream.write(scales.data)
    return precision.value


def round_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (N, hidden) and scales (N,) of float32 rows; a row of zeros has scale 1."""
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    codes = np.clip(np.rint(rows / scales[:, None]), -127, 127).astype(np.int8)
    return codes, scales


def embedding_bytes(vocab: int, hidden: int, precision: EmbeddingPrecision) -> int:
    """Bytes of a table in integers."""
    assert precision is not EmbeddingPrecision.KEPT, "a kept table has the checkpoint's bytes"
    if precision is EmbeddingPrecision.INT8:
        return vocab * (hidden + 4)
    return vocab * (code_bytes(hidden) + 2 * blocks_of(hidden))
