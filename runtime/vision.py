"""The vision tower: patches of a picture in, one feature per merged patch out.

Layout    `vision.onnx` takes the patches in the processor's order (2x2 merge blocks, row by row) and keeps
          that order throughout. Beside them go integers only, all computed here from the grid:
          `positions` (3, 1, N), the row and column of every patch for the rotary tables in the graph;
          `window_rows` (windows, slots), which patches sit in which attention window, the last ones of a
          ragged window repeating patch 0; `window_lengths` (windows,), how many of them are real;
          `row_slots` (N,), where each patch sits in the flattened windows.
Contract  Equal to transformers' Qwen2.5-VL vision tower for any grid, ragged windows included.
Elsewhere cutting a picture into patches: qwen_pixels.py; the graph: export/vision_graph.py.
Source    docs/sources.md#window-attention
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.kept import Kept
from rexthinker_edge.runtime.opening import open_session
from rexthinker_edge.runtime.qwen_pixels import VisionInput

KEPT_GRIDS = 16  # tables of a grid take some 100 bytes a patch: 0.5 MB for the largest picture


@dataclass(frozen=True)
class VisionGeometry:
    """What the runtime must know of the tower; the manifest carries it.

    `hidden` is the width of a feature (the decoder's), `window` is in pixels, `max_patches` the rows of the
    graph's rotary table: no picture may have more patches.
    """

    patch: int
    temporal_patch: int
    merge: int
    window: int
    hidden: int
    max_patches: int


@dataclass(frozen=True)
class Windows:
    """Which patches attend to which; see the module's layout."""

    rows: NDArray[np.int64]
    lengths: NDArray[np.int32]
    slots: NDArray[np.int64]


def patch_positions(height: int, width: int, merge: int) -> NDArray[np.int64]:
    """(3, height * width) int64: frame (always 0), row and column of every patch, in merge-block order."""
    row, column = np.indices((height, width), dtype=np.int64)
    blocks = [
        side.reshape(height // merge, merge, width // merge, merge).transpose(0, 2, 1, 3).reshape(-1)
        for side in (row, column)
    ]
    return np.stack([np.zeros(height * width, np.int64), *blocks])


def attention_windows(height: int, width: int, geometry: VisionGeometry) -> Windows:
    """Cut a grid of patches into square windows, ragged at the right and bottom edge.

    Args:
        height, width: grid in patches, multiples of `geometry.merge`.
    """
    side = geometry.window // geometry.merge // geometry.patch  # in merged patches
    unit = geometry.merge**2
    merged = np.arange(height * width // unit).reshape(height // geometry.merge, width // geometry.merge)
    members = [
        merged[top : top + side, left : left + side].reshape(-1)
        for top in range(0, merged.shape[0], side)
        for left in range(0, merged.shape[1], side)
    ]
    size = max(len(m) for m in members) * unit
    rows = np.zeros((len(members), size), np.int64)
    slots = np.empty(height * width, np.int64)
    for index, member in enumerate(members):
        patches = (member[:, None] * unit + np.arange(unit)).reshape(-1)
        rows[index, : len(patches)] = patches
        slots[patches] = index * size + np.arange(len(patches))
    return Windows(rows, np.array([len(m) * unit for m in members], np.int32), slots)


def grid_tables(height: int, width: int, geometry: VisionGeometry) -> dict[str, NDArray[Any]]:
    """Every input of the graph that a grid of patches decides, by its name."""
    windows = attention_windows(height, width, geometry)
    return {
        "positions": patch_positions(height, width, geometry.merge)[:, None],
        "window_rows": windows.rows,
        "window_lengths": windows.lengths,
        "row_slots": windows.slots,
    }


class VisionTower:
    """`vision.onnx` in an ONNX Runtime session."""

    def __init__(
        self,
        path: Path,
        geometry: VisionGeometry,
        options: ort.SessionOptions | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        session: Any = None,
    ) -> None:
        """Open the graph at `path`; `session`, such as an engine, runs it instead of ONNX Runtime."""
        self.geometry = geometry
        self.session = open_session(path, options, providers) if session is None else session
        self._grids = Kept[tuple[int, int], dict[str, NDArray[Any]]](KEPT_GRIDS)

    def encode(self, vision: VisionInput, deadline: Deadline = NEVER) -> NDArray[np.float32]:
        """Features of one picture.

        Args:
            vision: patches (N, channels * temporal_patch * patch²) float32 and their grid (1, height, width).

        Returns:
            (N / merge², hidden) float32, in the order of the prompt's picture tokens.

        Raises:
            ImageError: more patches than the graph's rotary table has rows.
            DeadlinePassed: it came first.
        """
        frames, height, width = (int(v) for v in vision.grid_thw)
        assert frames == 1, f"still pictures only, got {frames} frames"
        if height * width > self.geometry.max_patches:
            raise ImageError(
                f"picture: {width} x {height} patches after resizing, the bundle allows "
                f"{self.geometry.max_patches:,} in all. Give a smaller picture."
            )
        tables = self._grids.get((height, width), lambda: grid_tables(height, width, self.geometry))
        feeds = {**tables, "patches": vision.patches}
        with deadline.running() as options:
            features: NDArray[np.float32] = self.session.run(["features"], feeds, options)[0]
        return features
