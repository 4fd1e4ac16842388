"""Which linear layers of the detector may compute in 8 bits: those that do not move its boxes.

What      Every layer that all cells of the picture go through is tried alone: how far do the candidates'
          boxes move? Layers are then taken in the order of that, as many as together stay within the limit.
Contract  Drift is the mean distance of a candidate's four box edges from the nearest box of the rounded
          detector, in pixels of a picture whose shorter side is 800. Candidates are the exact detector's
          boxes above its threshold, or its ten best where those are fewer. Layers that only words or queries
          go through stay exact: they cost next to nothing.
Elsewhere the graph with switches: detector_graph.py; average precision: benchmarks/detection.py; what came of
          it: docs/detector.md.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.items import make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.export.detector_graph import write_both_precisions
from rexthinker_edge.runtime.caption import CaptionTokenizer
from rexthinker_edge.runtime.detector import Detector
from rexthinker_edge.runtime.dino_pixels import dino_pixels
from rexthinker_edge.runtime.errors import OptionError

PRECISIONS = ("fp32", "int8")
LIMIT_PX = 0.5
SHORTER_PX = 800
PICTURES = 8
SEED = 3_000_000
LEAST_CANDIDATES = 10
THROUGH_CELLS = ("swin.", "levels.", "encoder.", "proposals.cells")
THROUGH_WORDS = (".words",)
Progress = Callable[[str, int, int], None]  # what is tried, layers done, layers in all


@dataclass(frozen=True)
class Int8Choice:
    """The layers taken, and what they cost together; `alone_px` holds every layer that was tried."""

    layers: tuple[str, ...]
    drift_px: float
    alone_px: dict[str, float]


def may_be_rounded(name: str) -> bool:
    """Whether all cells of the picture go through a layer."""
    if name.startswith("decoder.") and name.endswith(".value"):
        return True
    return name.startswith(THROUGH_CELLS) and not any(part in name for part in THROUGH_WORDS)


def detector_layers(checkpoint_dir: Path, precision: str) -> tuple[str, ...]:
    """The layers to round for a precision of the detector, "fp32" or "int8".

    Raises:
        OptionError: another precision.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"detector: {precision!r}, one of {PRECISIONS} is needed. Choose one.")
    return choose_int8(checkpoint_dir).layers if precision == "int8" else ()


def choose_int8(
    checkpoint_dir: Path, limit_px: float = LIMIT_PX, pictures: int = PICTURES, report: Progress | None = None
) -> Int8Choice:
    """Try every layer on workbench pictures and take what stays within the limit.

    Raises:
        CheckpointError, ConfigError: as `write_detector`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "detector.onnx")
        geometry, names = write_both_precisions(checkpoint_dir, path)
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        detector = Detector(path, checkpoint_dir / "tokenizer.json", geometry)
        tokenizer = CaptionTokenizer(checkpoint_dir / "tokenizer.json", geometry.max_text_len)
        feeds = []
        for index in range(pictures):
            item = make_item("full", SEED, index)
            pixels = dino_pixels(render(item.scene), geometry.pixel_rules)
            feeds.append(detector.feeds(pixels, tokenizer.caption(item.category)))
        return choose(Measure(session, names, feeds, geometry.box_threshold), limit_px, report)


class Measure:
    """How far boxes move when some layers are rounded."""

    def __init__(
        self, session: ort.InferenceSession, names: Sequence[str], feeds: Sequence[dict[str, NDArray[Any]]],
        threshold: float,
    ) -> None:  # fmt: skip
        self.names, self._session, self._feeds = list(names), session, feeds
        self._wanted = [candidates(*self._run(feed, ()), threshold) for feed in feeds]

    def _run(
        self, feed: dict[str, NDArray[Any]], layers: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rounded = np.isin(self.names, list(layers)).astype(np.float32)
        logits, boxes = self._session.run(["logits", "pred_boxes"], {**feed, "rounded": rounded})
        return logits, boxes

    def drift_px(self, layers: Sequence[str]) -> float:
        """The mean over all candidates of all pictures."""
        moved = []
        for feed, wanted in zip(self._feeds, self._wanted, strict=True):
            sides = np.array(feed["pixel_values"].shape[:1:-1], np.float32)  # width, height
            moved.append(distances(wanted, self._run(feed, layers)[1], sides))
        return float(np.concatenate(moved).mean())


def candidates(
    logits: NDArray[np.float32], boxes: NDArray[np.float32], threshold: float
) -> NDArray[np.float32]:
    """The boxes (N, 4) above the threshold, or the ten best."""
    best = logits.max(axis=1)
    count = max(LEAST_CANDIDATES, int((1 / (1 + np.exp(-best)) > threshold).sum()))
    return boxes[np.argsort(-best, kind="stable")[:count]]


def distances(
    wanted: NDArray[np.float32], found: NDArray[np.float32], sides: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(N,): each wanted box's mean edge distance from the nearest found one, in px at a shorter side of 800.

    Args:
        wanted, found: (N, 4), (M, 4) centre x, centre y, width, height as shares.
        sides: (2,) width and height, to weigh shares with.
    """
    scale = np.tile(sides, 2) * SHORTER_PX / sides.min()
    edges = [
        np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1) * scale
        for b in (wanted, found)
    ]
    apart = np.abs(edges[0][:, None] - edges[1][None]).mean(axis=2)
    return np.asarray(apart.min(axis=1), np.float32)


def choose(measure: Measure, limit_px: float, report: Progress | None = None) -> Int8Choice:
    """Layers in the order of their own drift, as many as together stay within the limit."""
    tried = [name for name in measure.names if may_be_rounded(name)]
    alone = {}
    for done, name in enumerate(tried):
        if report is not None:
            report(name, done, len(tried))
        alone[name] = measure.drift_px([name])
    order = sorted(tried, key=lambda name: alone[name])
    fits, drift, beyond = 0, 0.0, len(order) + 1
    while fits + 1 < beyond:  # the first `fits` are within the limit, the first `beyond` are not
        middle = (fits + beyond) // 2
        seen = measure.drift_px(order[:middle])
        if seen <= limit_px:
            fits, drift = middle, seen
        else:
            beyond = middle
    return Int8Choice(tuple(sorted(order[:fits])), drift, alone)
