"""HumanRef's metric: recall, precision and DensityF1 over ten IoU thresholds, rejection apart.

Layout    One `Score` per item, three values per threshold; `summarise` averages them over items.
Contract  As the public code computes it, not as its README words it: ground truths in order each take the
          unused prediction of highest IoU at or above the threshold; empty predictions score 0; items with
          no ground truth count for rejection alone.
Elsewhere which answers are asked for: accuracy.py; IoU: runtime/boxes.py.
Source    docs/sources.md#humanref-metric
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rexthinker_edge.runtime.boxes import iou

THRESHOLDS = np.arange(10) * 0.05 + 0.5


@dataclass(frozen=True)
class Score:
    """Of one item with at least one ground truth; (10,) float64 each, one value per threshold."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    density_f1: NDArray[np.float64]


def score(truth: ArrayLike, predicted: ArrayLike) -> Score:
    """Score the predicted boxes of one item.

    Args:
        truth: (T, 4) xyxy, T at least 1.
        predicted: (P, 4) xyxy in the same pixels; P may be 0.
    """
    truths = np.asarray(truth, np.float64).reshape(-1, 4)
    predictions = np.asarray(predicted, np.float64).reshape(-1, 4)
    assert len(truths), "items without ground truth count for rejection alone"
    if not len(predictions):
        return Score(np.zeros(10), np.zeros(10), np.zeros(10))
    overlaps = iou(truths, predictions)
    matched = np.array([_matches(overlaps, threshold) for threshold in THRESHOLDS], np.float64)
    recall, precision = matched / len(truths), matched / len(predictions)
    both = recall + precision
    f1 = np.divide(2 * recall * precision, both, out=np.zeros(10), where=both > 0)
    return Score(recall, precision, f1 * min(1.0, len(truths) / len(predictions)))


def _matches(overlaps: NDArray[np.float64], threshold: float) -> int:
    """Ground truths that find a prediction of their own, taken in order, best first."""
    free = np.ones(overlaps.shape[1], bool)
    count = 0
    for row in overlaps:
        candidate = int(np.argmax(np.where(free, row, -1.0)))
        if free[candidate] and row[candidate] >= threshold:
            free[candidate] = False
            count += 1
    return count


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Means over items, in percent: at IoU 0.5, and over the ten thresholds."""
    if not scores:
        return {}
    found = {"recall": [s.recall for s in scores], "precision": [s.precision for s in scores]}
    found["density_f1"] = [s.density_f1 for s in scores]
    summary = {"count": float(len(scores))}
    for name, rows in found.items():
        mean = np.mean(rows, axis=0)
        summary[f"{name}_50"], summary[f"{name}_mean"] = 100 * float(mean[0]), 100 * float(mean.mean())
    return summary
