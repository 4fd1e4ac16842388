"""HumanRef's metric against hand-computed cases and a brute-force oracle."""

import numpy as np
import pytest

from rexthinker_edge.benchmarks.humanref_metric import THRESHOLDS, score, summarise

SQUARE = [0.0, 0.0, 10.0, 10.0]


def oracle(
    truth: list[list[float]], predicted: list[list[float]], threshold: float
) -> tuple[float, float, float]:
    """The public procedure with plain loops, written from its description."""

    def overlap(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inter = max(w, 0.0) * max(h, 0.0)
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return inter / (areas - inter)

    if not predicted:
        return 0.0, 0.0, 0.0
    used: set[int] = set()
    for t in truth:
        best, best_overlap = -1, threshold
        for k, p in enumerate(predicted):
            if k not in used and (o := overlap(t, p)) >= best_overlap and (best < 0 or o > best_overlap):
                best, best_overlap = k, o
        if best >= 0:
            used.add(best)
    recall, precision = len(used) / len(truth), len(used) / len(predicted)
    f1 = 2 * recall * precision / (recall + precision) if used else 0.0
    return recall, precision, f1 * min(1.0, len(truth) / len(predicted))


def test_equals_the_oracle_on_random_items() -> None:
    rng = np.random.default_rng(5)
    for _ in range(500):
        boxes = []
        for count in (rng.integers(1, 5), rng.integers(0, 6)):
            corner = rng.integers(0, 12, (count, 2))
            boxes.append(
                np.concatenate([corner, corner + rng.integers(4, 12, (count, 2))], 1).astype(float).tolist()
            )
        made = score(boxes[0], boxes[1])
        for k, threshold in enumerate(THRESHOLDS):
            wanted = oracle(boxes[0], boxes[1], float(threshold))
            assert (made.recall[k], made.precision[k], made.density_f1[k]) == pytest.approx(wanted)


def test_a_guess_at_everything_is_punished_by_density() -> None:
    made = score([SQUARE], [SQUARE, [20, 0, 30, 10], [40, 0, 50, 10]])
    # recall 1, precision 1/3, F1 1/2, density 1/3
    assert made.density_f1[0] == pytest.approx(1 / 6)


def test_duplicates_match_once_and_no_prediction_scores_zero() -> None:
    assert score([SQUARE], [SQUARE, SQUARE]).precision.tolist() == [0.5] * 10
    assert score([SQUARE], []).density_f1.tolist() == [0.0] * 10


def test_thresholds_count_an_overlap_at_the_edge() -> None:
    # IoU 0.6 misses the third threshold, which the public code's arange makes 0.6000000000000001
    assert score([SQUARE], [[0, 0, 10, 6]]).recall.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    made = score([SQUARE], [[0, 0, 10, 6.001]])
    assert made.recall.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert summarise([made]) == pytest.approx(
        {
            "count": 1, "recall_50": 100, "recall_mean": 30, "precision_50": 100, "precision_mean": 30,
            "density_f1_50": 100, "density_f1_mean": 30,
        }
    )  # fmt: skip
    assert summarise([]) == {}
