"""How well a thought's references hit what they speak of: the grounding scores of arXiv 2606.16122.

Layout    Boxes are (x0, y0, x1, y1), points (x, y), masks (height, width) bool, all in one coordinate system.
Contract  Boxes of a phrase: intersection over union of their unions, so that two boxes over one thing count
          once. Points of a phrase: each may stand for one instance and each instance for one point, as many
          as can be at once; F1 of those against all points and all instances. A phrase of the truth that the
          thought does not ground scores 0; one that the truth does not know is counted and scores nothing.
          Nothing said of nothing is right: 1.
Elsewhere reading thoughts: runtime/grounded.py; IoU of pairs: runtime/boxes.py.
Source    docs/sources.md#grounded-thoughts
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rexthinker_edge.runtime.grounded import GroundedThought, Shape

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Grounding:
    """Scores of one thought.

    Attributes:
        phrases: per phrase of the truth, from 0 to 1.
        unknown: phrases grounded that the truth does not hold.
        malformed: places that could not be read as a reference.
    """

    phrases: dict[str, float]
    unknown: int
    malformed: int

    @property
    def mean(self) -> float:
        """Over the truth's phrases; 1 where it has none and nothing was said."""
        if not self.phrases:
            return float(self.unknown == 0)
        return sum(self.phrases.values()) / len(self.phrases)


def score_grounding(thought: GroundedThought, truth: Mapping[str, Sequence[Shape]]) -> Grounding:
    """Score a thought's references.

    Args:
        thought: as `read_grounded` gives it.
        truth: boxes of the instances of each phrase, in thousandths; phrases are compared without case.
    """
    wanted = {phrase.casefold(): np.asarray(boxes, float).reshape(-1, 4) for phrase, boxes in truth.items()}
    said: dict[str, list[Shape]] = {}
    for reference in thought.references:
        said.setdefault(reference.phrase.casefold(), []).extend(reference.shapes)
    scores = {phrase: _phrase(said.get(phrase, []), boxes) for phrase, boxes in wanted.items()}
    return Grounding(scores, len(said.keys() - wanted.keys()), len(thought.problems))


def union_iou(first: ArrayLike, second: ArrayLike) -> float:
    """Intersection over union of the areas that two sets of boxes cover.

    Args:
        first: (N, 4), second: (M, 4); either may be empty. Both empty, or both without area: 1.
    """
    a = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    every = np.concatenate([a, b])
    xs, ys = np.unique(every[:, [0, 2]]), np.unique(every[:, [1, 3]])
    cells = np.diff(ys)[:, None] * np.diff(xs)[None, :]
    in_a, in_b = _covered(a, xs, ys), _covered(b, xs, ys)
    union = float(cells[in_a | in_b].sum())
    return float(cells[in_a & in_b].sum()) / union if union > 0 else 1.0


def point_f1(points: ArrayLike, instances: ArrayLike | Sequence[Mask]) -> float:
    """F1 of points against instances, one to one.

    Args:
        points: (N, 2).
        instances: (M, 4) boxes, whose edges count as inside, or M masks that points index by (x, y).
    """
    where = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    hits = _in_masks(where, instances) if _are_masks(instances) else _in_boxes(where, instances)
    points_, instances_ = len(where), int(hits.shape[1])
    if not points_ and not instances_:
        return 1.0
    return 2 * most_pairs(hits) / (points_ + instances_)


def most_pairs(hits: Mask) -> int:
    """The size of a largest one-to-one choice among (N, M) pairs that are allowed (augmenting paths)."""
    owner, held = dict[int, int](), dict[int, int]()  # row of a column, column of a row
    for row in range(len(hits)):
        came, queue, end = dict[int, int](), [row], None
        while queue and end is None:
            now = queue.pop()
            for column in np.flatnonzero(hits[now]).tolist():
                if column not in came:
                    came[column] = now
                    if column not in owner:
                        end = column
                        break
                    queue.append(owner[column])
        while end is not None:  # every row on the way moves over by one
            mover = came[end]
            before = held.get(mover)
            owner[end], held[mover], end = mover, end, before
    return len(held)


def _phrase(shapes: Sequence[Shape], boxes: NDArray[np.float64]) -> float:
    if not shapes:
        return float(len(boxes) == 0)
    points = [shape for shape in shapes if len(shape) == 2]
    if len(points) == len(shapes):
        return point_f1(points, boxes)
    return union_iou([shape for shape in shapes if len(shape) == 4], boxes)


def _covered(boxes: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64]) -> Mask:
    """(len(ys) - 1, len(xs) - 1): which cells of the grid some box covers."""
    made = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), np.bool_)
    for x0, y0, x1, y1 in boxes:
        rows, columns = np.searchsorted(ys, (y0, y1)), np.searchsorted(xs, (x0, x1))
        made[rows[0] : rows[1], columns[0] : columns[1]] = True
    return made


def _are_masks(instances: ArrayLike | Sequence[Mask]) -> bool:
    return bool(isinstance(instances, list | tuple) and instances and np.asarray(instances[0]).ndim == 2)


def _in_boxes(points: NDArray[np.float64], boxes: ArrayLike | Sequence[Mask]) -> NDArray[np.bool_]:
    around = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low, high = around[None, :, :2], around[None, :, 2:]
    return np.asarray(((points[:, None] >= low) & (points[:, None] <= high)).all(axis=2), np.bool_)


def _in_masks(points: NDArray[np.float64], masks: ArrayLike | Sequence[Mask]) -> NDArray[np.bool_]:
    held = [np.asarray(mask, np.bool_) for mask in masks]  # type: ignore[union-attr]
    hits = np.zeros((len(points), len(held)), np.bool_)
    for row, (x, y) in enumerate(np.floor(points).astype(int)):
        for column, mask in enumerate(held):
            height, width = mask.shape
            hits[row, column] = 0 <= x < width and 0 <= y < height and bool(mask[y, x])
    return hits
