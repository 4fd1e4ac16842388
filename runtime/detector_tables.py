"""What a picture's size decides in the detector, computed here so that the graph need not.

Layout    Rows are cells, row by row of the picture. For each Swin stage: `take`, which cell stands in each
          slot of the windows (N, one past the last, for padding); `give`, in which slot each cell stands;
          both again for shifted windows, with `mask`, -100 between parts that the shift brought together;
          `merge`, the four neighbours of each cell of the next stage. For all levels together: sides, counts,
          positions, sampling places, anchors; see export/detector_encoder.py for their shapes.
Contract  Equal to what transformers computes inside its model for one picture without padding.
Elsewhere the graph that reads them: export/detector_graph.py; who keeps them: detector.py.
Source    docs/sources.md#detector
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Side = tuple[int, int]  # height, width


@dataclass(frozen=True)
class TableRules:
    """The shape of the detector, as far as its tables depend on it; the manifest carries it.

    Raises:
        ValueError: a number is outside what such a detector can have, so that no table grows without bound.
    """

    patch: int
    window: int
    stages: int
    maps: tuple[int, ...]  # stages whose output becomes a level
    levels: int
    width: int  # d
    temperature: float

    def __post_init__(self) -> None:
        limits = {"patch": 64, "window": 64, "stages": 8, "levels": 8, "width": 4096}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, 1 to {most:,} is needed")
        if not self.maps or any(not 0 <= stage < self.stages for stage in self.maps):
            raise ValueError(f"maps is {list(self.maps)}, stages below {self.stages} are needed")
        if not 1 < self.temperature < 1e9:
            raise ValueError(f"temperature is {self.temperature}, a number above 1 is needed")


def make_tables(height: int, width: int, rules: TableRules) -> dict[str, NDArray[Any]]:
    """Every table of one picture size, by the name of the graph's input.

    Args:
        height, width: of the pixels, multiples of the patch.
    """
    tables: dict[str, NDArray[Any]] = {}
    sides, side = list[Side](), (height // rules.patch, width // rules.patch)
    for stage in range(rules.stages):
        tables |= {f"stage{stage}.{name}": table for name, table in stage_tables(side, rules.window).items()}
        if stage in rules.maps:
            sides.append(side)
        side = halved(side)
    while len(sides) < rules.levels:
        sides.append(halved(sides[-1]))
    return tables | level_tables(sides, rules)


def halved(side: Side) -> Side:
    """Half of each, rounded up."""
    return (side[0] + 1) // 2, (side[1] + 1) // 2


def stage_tables(side: Side, window: int) -> dict[str, NDArray[Any]]:
    """Windows, plain and shifted, and the merge of one stage."""
    take, give, _ = window_rows(side, window, 0)
    shifted_take, shifted_give, mask = window_rows(side, window, window // 2)
    row, column = (np.arange((n + 1) // 2) * 2 for n in side)
    corners = [flat_rows(row + down, column + right, side) for right in (0, 1) for down in (0, 1)]
    return {
        "take": take, "give": give, "shifted_take": shifted_take, "shifted_give": shifted_give, "mask": mask,
        "merge": np.stack([corner.reshape(-1) for corner in corners], axis=1).reshape(-1),
    }  # fmt: skip


def flat_rows(row: Rows, column: Rows, side: Side) -> Rows:
    """(len(row), len(column)): cells' numbers, height * width for those beyond the edge."""
    height, width = side
    inside = (row < height)[:, None] & (column < width)[None]
    return np.where(inside, row[:, None] * width + column[None], height * width)


def window_rows(side: Side, window: int, shift: int) -> tuple[Rows, Rows, Floats]:
    """Cut cells, padded to whole windows and rolled by `shift`, into windows.

    Returns:
        take (W * window²,), give (N,), and the mask (W, 1, window², window²).
    """
    (height, width), down, across = side, -(-side[0] // window), -(-side[1] // window)
    full_height, full_width = down * window, across * window
    row, column = np.arange(full_height), np.arange(full_width)
    source = flat_rows((row + shift) % full_height, (column + shift) % full_width, side)
    here = (np.arange(height) - shift) % full_height
    there = (np.arange(width) - shift) % full_width
    slot = ((here // window * across)[:, None] + (there // window)[None]) * window**2
    slot = slot + (here % window * window)[:, None] + (there % window)[None]
    parts = [
        (line >= size - window).astype(np.int8) + (line >= size - shift)
        for line, size in ((row, full_height), (column, full_width))
    ]
    part = _by_window(parts[0][:, None] * 3 + parts[1][None], down, across, window)
    mask = np.where(part[:, None, :, None] != part[:, None, None, :], np.float32(-100), np.float32(0))
    return _by_window(source, down, across, window).reshape(-1), slot.reshape(-1), mask


def _by_window(values: NDArray[Any], down: int, across: int, window: int) -> NDArray[Any]:
    """(down * window, across * window) to (down * across, window²)."""
    apart = values.reshape(down, window, across, window)
    return apart.transpose(0, 2, 1, 3).reshape(down * across, window * window)


def level_tables(sides: list[Side], rules: TableRules) -> dict[str, NDArray[Any]]:
    """Positions, sampling places and anchors of all levels' cells, one level after the other."""
    centres = np.concatenate([cell_centres(side) for side in sides])
    level = np.repeat(np.arange(len(sides)), [h * w for h, w in sides])
    size = (0.05 * 2.0**level).astype(np.float32)[:, None].repeat(2, axis=1)
    anchors = np.concatenate([centres, size], axis=1)
    usable = ((anchors > 0.01) & (anchors < 0.99)).all(axis=1, keepdims=True)
    inside = np.where(usable, anchors, np.float32(0.5))
    logits = np.where(usable, np.log(inside / (1 - inside)), np.float32(np.inf)).astype(np.float32)
    steps = np.array([[2 / width for _, width in sides], [2 / height for height, _ in sides]], np.float32)
    return {
        "level_sides": np.array(sides, np.int64),
        "level_cells": np.array([height * width for height, width in sides], np.int64),
        "cell_level": level,
        "cell_positions": np.concatenate([sine_positions(side, rules) for side in sides]),
        "cell_base": (centres * 2 - 1)[:, :, None, None],
        "offset_scale": steps[:, :, None],
        "cell_anchors": logits,
        "cell_usable": np.asarray(usable, np.float32),
    }


def cell_centres(side: Side) -> Floats:
    """(height * width, 2): the middle of each cell as shares of the picture, (x, y)."""
    height, width = side
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5)) / np.float32(width)
    grid = np.stack([np.tile(x, height), np.repeat(y, width)], axis=1)
    return np.asarray(grid, np.float32)


def sine_positions(side: Side, rules: TableRules) -> Floats:
    """(height * width, d): where each cell stands, y first, sine and cosine in turn."""
    (height, width), features = side, rules.width // 2
    wave = (rules.temperature ** (2 * (np.arange(features) // 2) / features)).astype(np.float32)
    lines = []
    for count in (height, width):
        place = np.arange(1, count + 1, dtype=np.float32) / np.float32(count + 1e-6) * np.float32(2 * math.pi)
        angle = place[:, None] / wave
        lines.append(np.where(np.arange(features) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32))
    rows, columns = np.repeat(lines[0], width, axis=0), np.tile(lines[1], (height, 1))
    return np.concatenate([rows, columns], axis=1)
