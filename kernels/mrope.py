"""Rotary positions on three axes (M-RoPE): the decoder's and, with two axes, the vision tower's.

Layout    x is (S, heads, head_dim); its halves a, b form the pairs (a_i, b_i) that are rotated. Pair i turns
          by the angle of one axis: the first section[0] pairs by temporal, then height, then width.
          `cos`, `sin` are (rows, head_dim / 2) tables; row p holds the angles of position p.
Contract  The decoder counts frequencies over all pairs; the vision tower has section [0, q, q] and the same
          q frequencies for height and for width, so its table holds them twice.
Source    docs/sources.md#mrope
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder

Table = NDArray[np.float32]


def rotary_table(theta: float, dim: int, rows: int, copies: int = 1) -> tuple[Table, Table]:
    """Cosines and sines of position times frequency.

    Args:
        theta: base of the frequencies theta ** (-2 i / dim), i < dim / 2.
        rows: positions 0 … rows - 1.
        copies: how often the frequencies stand side by side.

    Returns:
        Two (rows, copies * dim / 2) float32. Angles are float32 products, as in torch.
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequency = np.float32(1.0) / np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    angle = np.arange(rows, dtype=np.float32)[:, None] * np.tile(frequency, copies)
    # In float64, then rounded: NumPy's float32 sine differs in its last bit from one CPU to the next.
    wide = angle.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def mrope(
    x: NDArray[np.float32],
    positions: NDArray[np.int64],
    cos: Table,
    sin: Table,
    section: tuple[int, int, int],
) -> NDArray[np.float32]:
    """Rotate (S, heads, head_dim) float32 by (3, S) positions."""
    assert sum(section) * 2 == x.shape[-1], (section, x.shape)
    axis = np.repeat(np.arange(3), section)
    pair = np.arange(len(axis))
    turn_cos, turn_sin = (table[positions[axis].T, pair][:, None] for table in (cos, sin))
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * turn_cos - b * turn_sin, b * turn_cos + a * turn_sin], axis=-1)


def lower_mrope(
    graph: Builder, x: str, positions: str, cos: str, sin: str, section: tuple[int, int, int], heads: int
) -> str:
    """The definition on (B, S, heads * head_dim) with positions (3, B, S), as MRotaryEmbedding."""
    return graph.node(
        "MRotaryEmbedding", [x, positions, cos, sin], CONTRIB,
        mrope_section=list(section), num_heads=heads, rotary_embedding_dim=2 * sum(section),
    )  # fmt: skip
