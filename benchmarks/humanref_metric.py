"""HumanRef's metric: recall, precision and DensityF1 over ten IoU thresholds, rejection apart.

Layout    One `Score` per item, three values per threshold; `Table` groups items as the public tables do: all
          items, by domain, by sub-domain, by number of answers. Values are fractions from 0 to 1.
Contract  As the public code computes it, not as its README words it: ground truths in order each take the
          unused prediction of highest IoU at or above the threshold; an empty prediction (`[]` or `[[]]`)
          scores 0; the penalty is the ratio of the two densities per candidate; items of the domain
          `rejection` count for rejection alone; `average` is over items, not over domains.
          Two departures, each where the public code has none or hides something: an item without truth
          outside that domain is a rejection (the public code stops there), and a rejection item without a
          prediction is `unanswered`, correct only `as_published`.
Elsewhere prediction files: predictions.py; other figures: figures.py; IoU: runtime/boxes.py.
Source    docs/sources.md#humanref-metric
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rexthinker_edge.runtime.boxes import iou

# The public code's own expression: its third value is 0.6000000000000001, which an IoU of 0.6 misses.
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
REJECTION = "rejection"
NAMES = ("recall", "precision", "density_f1")
KEYS = tuple(f"{name}_{part}" for name in NAMES for part in ("50", "mean"))
COUNT_RANGES = ("1", "2-5", "6-10", ">10")


@dataclass(frozen=True)
class Score:
    """Of one item with at least one ground truth; (10,) float64 each, one value per threshold."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    density_f1: NDArray[np.float64]

    def values(self) -> NDArray[np.float64]:
        """(6,) float64 in the order of `KEYS`: each at IoU 0.5, and its mean over the thresholds."""
        rows = (self.recall, self.precision, self.density_f1)
        return np.array([value for row in rows for value in (row[0], row.mean())])


@dataclass(frozen=True)
class Judged:
    """One item as the tables need it; `score` is None for a rejection."""

    domain: str
    sub_domain: str
    answers: int
    score: Score | None
    boxes: int | None  # predicted; None: there is no prediction for it


def is_rejection(domain: str, answers: int) -> bool:
    """Whether an item asks for something that is not there."""
    return domain == REJECTION or not answers


def score(truth: ArrayLike, predicted: ArrayLike, candidates: int | None = None) -> Score:
    """Score the predicted boxes of one item.

    Args:
        truth: (T, 4) xyxy, T at least 1.
        predicted: (P, 4) xyxy in the same pixels; P may be 0.
        candidates: how many there are in the picture; without any, DensityF1 is 0, as in the public code.
            None: some.
    """
    truths = np.asarray(truth, np.float64).reshape(-1, 4)
    predictions = np.asarray(predicted, np.float64).reshape(-1, 4)
    assert len(truths), "items without ground truth count for rejection alone"
    if not len(predictions):
        return Score(np.zeros(10), np.zeros(10), np.zeros(10))
    overlaps = iou(truths, predictions)
    rows = overlaps.tolist()
    matched = np.array([_matches(rows, threshold) for threshold in THRESHOLDS.tolist()], np.float64)
    recall, precision = matched / len(truths), matched / len(predictions)
    both = recall + precision
    f1 = np.divide(2 * (precision * recall), both, out=np.zeros(10), where=both > 0)
    return Score(recall, precision, f1 * _penalty(len(truths), len(predictions), candidates))


def _penalty(truths: int, predictions: int, candidates: int | None) -> float:
    """The ratio of densities, divided one by one as the public code does."""
    if candidates is None:
        return min(1.0, truths / predictions)
    return min(1.0, (truths / candidates) / (predictions / candidates)) if candidates else 0.0


def _matches(overlaps: Sequence[Sequence[float]], threshold: float) -> int:
    """Ground truths that find a prediction of their own, taken in order, best first."""
    free = set(range(len(overlaps[0])))
    for row in overlaps:
        best = max(free, key=lambda k: (row[k], -k), default=None)
        if best is not None and row[best] >= threshold:
            free.remove(best)
    return len(overlaps[0]) - len(free)


def judge(
    domain: str, sub_domain: str, truth: ArrayLike, predicted: ArrayLike | None, candidates: int | None = None
) -> Judged:
    """One item for the tables.

    Args:
        truth: (T, 4) xyxy; T may be 0.
        predicted: (P, 4) xyxy, or None where there is no prediction for the item.
        candidates: as in `score`.
    """
    truths = np.asarray(truth, np.float64).reshape(-1, 4)
    boxes = np.asarray([] if predicted is None else predicted, np.float64).reshape(-1, 4)
    made = None if is_rejection(domain, len(truths)) else score(truths, boxes, candidates)
    return Judged(domain, sub_domain, len(truths), made, None if predicted is None else len(boxes))


def count_range(answers: int) -> str:
    """The public table's row for a number of answers, from 1 up."""
    return COUNT_RANGES[int(np.searchsorted([2, 6, 11], answers, side="right"))]


Row = dict[str, float | int | None]


@dataclass(frozen=True)
class Table:
    """The public tables; rows have the six `KEYS` and `count`, values from 0 to 1 or None for no item."""

    average: Row
    domain: dict[str, Row]
    subdomain: dict[str, Row]
    box_count: dict[str, Row]
    rejection: dict[str, int]


def tabulate(items: Iterable[Judged], *, as_published: bool = False) -> Table:
    """Group and average items.

    Args:
        as_published: a rejection item without a prediction is correct, as the public code has it.
    """
    judged = list(items)
    scored = [item for item in judged if item.score is not None]
    rejections = [item for item in judged if item.score is None]
    correct = sum(not item.boxes if as_published else item.boxes == 0 for item in rejections)
    return Table(
        average=mean_row(scored),
        domain=_grouped(scored, lambda item: item.domain),
        subdomain=_grouped(scored, lambda item: item.sub_domain),
        box_count=_grouped(scored, lambda item: count_range(item.answers), COUNT_RANGES),
        rejection={
            "correct": correct,
            "total": len(rejections),
            "unanswered": sum(item.boxes is None for item in rejections),
        },
    )


def mean_row(items: Sequence[Judged]) -> Row:
    """Means over scored items; None where there are none."""
    if not items:
        return {**dict.fromkeys(KEYS), "count": 0}
    means = np.mean([item.score.values() for item in items if item.score is not None], axis=0)
    return {**{key: float(value) for key, value in zip(KEYS, means, strict=True)}, "count": len(items)}


def _grouped(
    items: Sequence[Judged], key: Callable[[Judged], str], order: Sequence[str] = ()
) -> dict[str, Row]:
    names = {key(item) for item in items}
    listed = [name for name in order if name in names] or sorted(names)
    return {name: mean_row([item for item in items if key(item) == name]) for name in listed}
