"""Multi-scale deformable attention: every query looks at a few places of every level.

Layout    Values are (N, heads * d), the cells of all levels one after the other, each level row by row.
          Scores are (Q, heads * levels * points). Offsets are (Q, 2 * levels * heads * points): all x, then
          all y; `offset_rows` brings a checkpoint's rows (heads, levels, points, 2) into that order, once, at
          export. Places are shares of the picture times two less one, as GridSample counts: -1 is its left
          or upper edge, 1 the right or lower one.
Contract  place = base + scale * offset; bilinear between cell centres, zero outside; the softmax of a head's
          scores weighs its samples. Levels are summed as they come and points stand before queries, so that
          nothing is stacked and every inner loop runs over all queries.
Source    docs/sources.md#detector
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder
from rexthinker_edge.kernels.grouped_query_attention import softmax

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Spread:
    """How many heads look at how many levels and points, and how wide all heads are together."""

    heads: int
    levels: int
    points: int
    width: int

    @property
    def depth(self) -> int:
        """Width of one head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Levels:
    """Names of what the picture's size decides."""

    cells: str  # (levels,) int64, cells per level
    shapes: tuple[str, ...]  # per level (4,) int64: heads, depth, height, width


def offset_rows(spread: Spread) -> NDArray[np.int64]:
    """Which rows of a checkpoint's offset layer come first, second, …; see the module's layout."""
    rows = np.arange(spread.heads * spread.levels * spread.points * 2)
    parts = rows.reshape(spread.heads, spread.levels, spread.points, 2)
    return parts.transpose(3, 1, 0, 2).reshape(-1)


def deformable_attention(
    value: Array, places: Array, scores: Array, sides: list[tuple[int, int]], spread: Spread
) -> Array:
    """The definition, one sample after the other.

    Args:
        value: (N, width).
        places: (Q, 2, levels, heads, points), x then y, in -1..1.
        scores: (Q, heads * levels * points).
        sides: (height, width) of each level.

    Returns:
        (Q, width).
    """
    count = len(scores)
    weights = softmax(scores.reshape(count, spread.heads, -1)).reshape(
        count, spread.heads, spread.levels, spread.points
    )
    out = np.zeros((count, spread.heads, spread.depth), np.float32)
    start = 0
    for level, (height, width) in enumerate(sides):
        image = value[start : start + height * width].reshape(height, width, spread.heads, spread.depth)
        start += height * width
        x = ((places[:, 0, level] + 1) * width - 1) / 2
        y = ((places[:, 1, level] + 1) * height - 1) / 2
        for right in (0, 1):
            for down in (0, 1):
                column, row = np.floor(x).astype(int) + right, np.floor(y).astype(int) + down
                share = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * weights[:, :, level]
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                cells = image[
                    row.clip(0, height - 1), column.clip(0, width - 1), np.arange(spread.heads)[:, None]
                ]
                out += ((share * inside)[..., None] * cells).sum(axis=2)
    return out.reshape(count, -1)


def lower_deformable_attention(
    graph: Builder, value: str, offsets: str, scores: str, placing: tuple[str, str],
    levels: Levels, spread: Spread,
) -> str:  # fmt: skip
    """The definition with GridSample.

    Args:
        offsets: (Q, 2 * levels * heads * points) in the order of `offset_rows`.
        placing: names of scale and base, both to broadcast against (Q, 2, levels, heads * points).
    """
    heads, count, points = spread.heads, spread.levels, spread.points

    def shape(*sides: int) -> str:
        return graph.constant(np.array(sides, np.int64))

    apart = graph.node("Reshape", [offsets, shape(-1, 2, count, heads * points)])
    places = graph.node("Add", [graph.node("Mul", [apart, placing[0]]), placing[1]])
    places = graph.node("Reshape", [places, shape(-1, 2, count, heads, points)])
    places = graph.node("Transpose", [places], perm=[2, 3, 4, 0, 1])  # (levels, heads, points, Q, 2)
    weights = graph.node("Softmax", [graph.node("Reshape", [scores, shape(-1, heads, count * points)])])
    weights = graph.node("Reshape", [weights, shape(-1, heads, count, points)])
    weights = graph.node("Transpose", [weights], perm=[2, 1, 3, 0])
    weights = graph.node("Reshape", [weights, shape(count, heads, 1, points, -1)])
    turned = graph.node("Transpose", [value], perm=[1, 0])
    images = graph.nodes("Split", [turned, levels.cells], ["*"] * count, axis=1)
    total = ""
    for level, (image, sides) in enumerate(zip(images, levels.shapes, strict=True)):
        index = graph.constant(np.array(level, np.int64))
        found = graph.node(
            "GridSample",
            [graph.node("Reshape", [image, sides]), graph.node("Gather", [places, index], axis=0)],
            mode="linear", padding_mode="zeros", align_corners=0,
        )  # fmt: skip  # (heads, depth, points, Q)
        weighed = graph.node("Mul", [found, graph.node("Gather", [weights, index], axis=0)])
        part = graph.node("ReduceSum", [weighed, shape(2)], keepdims=0)
        total = graph.node("Add", [total, part]) if total else part
    rows = graph.node("Reshape", [total, shape(spread.width, -1)])
    return graph.node("Transpose", [rows], perm=[1, 0])
