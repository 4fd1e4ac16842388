"""Writes the token embedding table: as the checkpoint stores it, or in eight bits a number.

Layout    int8: a float32 scale for every row, (vocab,), then the codes, (vocab, hidden) int8, row-major.
Contract  A row's largest absolute value maps to 127, so no number moves by more than half of its row's
          scale. Rows are done in slices: memory stays small at any size.
Elsewhere reading rows: runtime/decoder.py.
Source    docs/full-size.md#embeddings
"""

from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.checkpoint import Tensor

SLICE_ROWS = 512


class EmbeddingPrecision(StrEnum):
    """How the table is stored."""

    KEPT = "kept"  # in the checkpoint's own dtype
    INT8 = "int8"


def write_embeddings(table: Tensor, path: Path, precision: EmbeddingPrecision) -> str:
    """Write a (vocab, hidden) table to `path`; returns the dtype that the manifest names."""
    with path.open("wb") as stream:
        if precision is EmbeddingPrecision.KEPT:
            stream.write(table.raw.data)
            return table.dtype
        vocab = table.shape[0]
        scales: NDArray[np.float32] = np.empty(vocab, np.float32)
        stream.seek(scales.nbytes)
        for start in range(0, vocab, SLICE_ROWS):
            rows = slice(start, min(start + SLICE_ROWS, vocab))
            codes, scales[rows] = round_rows(table.float32(rows))
            stream.write(codes.data)
        stream.seek(0)
        stream.write(scales.data)
    return "int8"


def round_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (N, hidden) and scales (N,) of float32 rows; a row of zeros has scale 1."""
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    codes = np.clip(np.rint(rows / scales[:, None]), -127, 127).astype(np.int8)
    return codes, scales
