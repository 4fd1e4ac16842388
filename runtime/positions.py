"""M-RoPE positions: where each token of a prompt stands in time, height and width.

Layout    (3, S) int64, rows temporal, height, width. A text token has three equal positions; the
          tokens of a picture share one temporal position and count rows and columns from it.
Contract  Equal to transformers' `Qwen2_5_VLModel.get_rope_index` for still pictures. The text after a
          picture goes on at the picture's start plus its longer side, so positions never exceed indices.
Elsewhere turning positions into rotations: kernels/mrope.py (inside the graph).
Source    docs/sources.md#mrope
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int, int]


def mrope_positions(
    token_ids: Sequence[int] | NDArray[np.int64],
    image_pad_id: int,
    grids: Sequence[Grid],
    spatial_merge: int = 2,
) -> tuple[NDArray[np.int64], int]:
    """Positions of a whole prompt or of a prefix that holds all its pictures.

    Args:
        token_ids: (S,) ids; each picture is one unbroken run of `image_pad_id`, one id per merged patch.
        grids: per picture (1, grid_h, grid_w) in patches before merging.
        spatial_merge: side of the square of patches merged into one token.

    Returns:
        (3, S) int64 positions, and the position of the next text token.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    assert ids.ndim == 1, ids.shape
    parts: list[NDArray[np.int64]] = []
    position, index, remaining = 0, 0, list(grids)
    while index < len(ids):
        if ids[index] != image_pad_id:
            stop = index
            while stop < len(ids) and ids[stop] != image_pad_id:
                stop += 1
            parts.append(text_positions(position, stop - index))
            position += stop - index
        else:
            assert remaining, "more pictures in the prompt than grids"
            frames, height, width = (int(v) for v in remaining.pop(0))
            assert frames == 1, f"still pictures only, got {frames} frames"
            rows, columns = height // spatial_merge, width // spatial_merge
            stop = index + rows * columns
            tokens = ids[index:stop]
            assert len(tokens) == rows * columns, "picture tokens cut short"
            assert bool((tokens == image_pad_id).all()), "text among picture tokens"
            cell = np.indices((1, rows, columns), dtype=np.int64).reshape(3, -1)
            parts.append(cell + position)
            position += max(rows, columns)
        index = stop
    assert not remaining, "fewer pictures in the prompt than grids"
    joined = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int64)
    return joined, position


def text_positions(start: int, count: int) -> NDArray[np.int64]:
    """(3, count) int64 positions of plain text that begins at position `start`."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count)).copy()
