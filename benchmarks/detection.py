"""How good a detector's boxes are: average precision as COCO counts it.

What      Detections of all pictures are sorted by score; each takes the free truth of its picture with the
          highest IoU, if that reaches the threshold; precision, made non-increasing, is read at 101 recalls.
Contract  Boxes (x0, y0, x1, y1) in any one unit. A category is averaged over its own pictures; categories
          without a truth anywhere do not count.
Elsewhere IoU: runtime/boxes.py. What one question is scored by (DensityF1): humanref_metric.py.
Source    COCO API, cocoeval.py: no crowds, all areas, up to 100 detections a picture.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.runtime.boxes import iou
from rexthinker_edge.runtime.detector import Detector, keep_candidates

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Judged:
    """One question to the detector: what it found and what was there."""

    category: str
    boxes: NDArray[np.float32]  # (N, 4)
    scores: NDArray[np.float32]  # (N,)
    truths: NDArray[np.float32]  # (M, 4)


@dataclass(frozen=True)
class Figures:
    """AP at IoU 0.5, AP over 0.50:0.95, both in 0..1, and the mean IoU of hits at 0.5."""

    ap50: float
    ap: float
    hit_iou: float
    pictures: int
    truths: int


Detect = Callable[[NDArray[np.uint8], str], tuple[NDArray[np.float32], NDArray[np.float32]]]


def hits(judged: Judged, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which detections, in order of falling score, find a truth, and the IoU they find it with."""
    order = np.argsort(-judged.scores, kind="stable")[:MOST_DETECTIONS]
    found, overlap = np.zeros(len(order), dtype=bool), np.zeros(len(order))
    if len(judged.truths) == 0 or len(order) == 0:
        return found, overlap
    matrix = np.array(iou(judged.boxes[order], judged.truths), dtype=np.float64)
    for row in range(len(order)):
        best = int(np.argmax(matrix[row]))
        if matrix[row, best] >= threshold:
            found[row], overlap[row] = True, matrix[row, best]
            matrix[:, best] = -1.0
    return found, overlap


def average_precision(items: Sequence[Judged], threshold: float) -> float:
    """Average precision of one category's questions at one IoU threshold; NaN without any truth."""
    truths = sum(len(item.truths) for item in items)
    if truths == 0:
        return float("nan")
    scores = np.concatenate([np.sort(item.scores)[::-1][:MOST_DETECTIONS] for item in items])
    found = np.concatenate([hits(item, threshold)[0] for item in items])
    order = np.argsort(-scores, kind="stable")
    true_so_far = np.cumsum(found[order])
    if len(true_so_far) == 0:
        return 0.0
    recall = true_so_far / truths
    precision = true_so_far / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0).mean())


def judge(items: Sequence[Judged]) -> Figures:
    """AP averaged over categories, then over thresholds."""
    categories = sorted({item.category for item in items if len(item.truths)})
    groups = [[item for item in items if item.category == category] for category in categories]
    per_threshold = [float(np.mean([average_precision(g, t) for g in groups] or [0.0])) for t in THRESHOLDS]
    overlaps = [overlap[found] for found, overlap in (hits(item, 0.5) for item in items)]
    together = np.concatenate(overlaps) if overlaps else np.zeros(0)
    return Figures(
        ap50=per_threshold[0], ap=float(np.mean(per_threshold)),
        hit_iou=float(together.mean()) if len(together) else 0.0,
        pictures=len(items), truths=sum(len(item.truths) for item in items),
    )  # fmt: skip


def everything(detector: Detector) -> Detect:
    """All queries of a detector, the unlikely ones too: average precision wants them."""

    def find(pixels_HWC: NDArray[np.uint8], category: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits, shares = detector.raw(pixels_HWC, category)
        return keep_candidates(logits, shares, (pixels_HWC.shape[1], pixels_HWC.shape[0]), 0.0)

    return find


def workbench_items(find: Detect, level: str, seed: int, count: int) -> Iterator[Judged]:
    """Ask for the category of each workbench item, boxes in pixels of its picture.

    Args:
        find: (pixels_HWC, category) to boxes and scores; a torch model or an exported one.
        seed: 1,000,000 and up is data no model was trained on.
    """
    from rexthinker_edge.calibration.workbench.items import make_item  # noqa: PLC0415
    from rexthinker_edge.calibration.workbench.render import render  # noqa: PLC0415

    for index in range(count):
        item = make_item(level, seed, index)
        boxes, scores = find(render(item.scene), item.category)
        truths = [thing.box for thing in item.scene.things if thing.category == item.category]
        yield Judged(item.category, boxes, scores, np.array(truths, dtype=np.float32).reshape(-1, 4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a detector checkpoint and print its figures on unseen workbench items, one JSON line a level."""
    import onnxruntime as ort  # noqa: PLC0415

    from rexthinker_edge.export.detector_graph import write_detector  # noqa: PLC0415
    from rexthinker_edge.export.detector_int8 import PRECISIONS, detector_layers  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m rexthinker_edge.benchmarks.detection", description=main.__doc__
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    given = parser.parse_args(arguments)
    options = ort.SessionOptions()
    options.intra_op_num_threads = given.threads
    with tempfile.TemporaryDirectory() as folder:
        int8 = detector_layers(given.checkpoint, given.precision)
        geometry = write_detector(given.checkpoint, Path(folder, "detector.onnx"), int8=int8)
        tokenizer = given.checkpoint / "tokenizer.json"
        detector = Detector(Path(folder, "detector.onnx"), tokenizer, geometry, options)
        for level in ("easy", "full"):
            figures = judge(list(workbench_items(everything(detector), level, given.seed, given.count)))
            report = {"level": level, "seed": given.seed, "int8_layers": len(int8), **asdict(figures)}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
