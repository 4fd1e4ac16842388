"""HumanRef's metric against hand-computed cases and a brute-force oracle."""

import numpy as np
import pytest

from rexthinker_edge.benchmarks.humanref_metric import (
    KEYS,
    THRESHOLDS,
    Judged,
    count_range,
    judge,
    score,
    tabulate,
)

SQUARE = [0.0, 0.0, 10.0, 10.0]
Rows = list[list[float]]


def oracle(truth: Rows, predicted: Rows, candidates: int, threshold: float) -> tuple[float, float, float]:
    """The public procedure with plain loops, written from its description."""

    def overlap(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        if w <= 0 or h <= 0:
            return 0.0
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return w * h / (areas - w * h)

    if not predicted:
        return 0.0, 0.0, 0.0
    used: set[int] = set()
    for t in truth:
        best, best_overlap = -1, 0.0
        for k, p in enumerate(predicted):
            if k not in used and (o := overlap(t, p)) >= threshold and o > best_overlap:
                best, best_overlap = k, o
        if best >= 0:
            used.add(best)
    recall, precision = len(used) / len(truth), len(used) / len(predicted)
    f1 = 2 * recall * precision / (recall + precision) if used else 0.0
    density = min(1.0, len(truth) / len(predicted)) if candidates else 0.0
    return recall, precision, f1 * density


def random_boxes(rng: np.random.Generator, count: int) -> Rows:
    """Whole-number boxes that often coincide, nest and touch; one in nine has no area."""
    corner = rng.integers(0, 12, (count, 2))
    side = rng.integers(0 if rng.random() < 0.1 else 1, 10, (count, 2))
    return np.concatenate([corner, corner + side], 1).astype(float).tolist()


def random_prediction(rng: np.random.Generator, truth: Rows) -> Rows:
    """Nothing, the truth, doubles, nested and shifted boxes, strangers."""
    kind = rng.integers(6)
    if kind == 0:
        return []
    if kind == 1:
        return truth + truth[: int(rng.integers(0, 3))]
    if kind == 2:
        return [[a + (c - a) // 4, b, c, d] for a, b, c, d in truth] + truth[:1]
    if kind == 3:
        return [[a + float(rng.integers(-1, 2)), b, c + float(rng.integers(0, 3)), d] for a, b, c, d in truth]
    return random_boxes(rng, int(rng.integers(1, 7))) + truth[: int(rng.integers(0, 2))]


def random_item(rng: np.random.Generator, number: int) -> tuple[Judged, tuple[Rows, Rows | None, int], str]:
    truth = random_boxes(rng, int(rng.integers(0, 14))) if rng.random() < 0.8 else []
    predicted = None if rng.random() < 0.1 else random_prediction(rng, truth)
    candidates = int(rng.integers(0, 5)) and len(truth) + 2
    domain = "rejection" if rng.random() < 0.1 else "ab"[number % 2]
    made = judge(domain, f"{domain}{number % 3}", truth, predicted, candidates)
    return made, (truth, predicted, candidates), domain


def test_ten_thousand_random_items_equal_the_oracle() -> None:
    rng, judged = np.random.default_rng(5), list[Judged]()
    wanted: dict[str, list[list[float]]] = {}
    rejections = correct = unanswered = 0
    for number in range(10_000):
        made, (truth, predicted, candidates), domain = random_item(rng, number)
        judged.append(made)
        if domain == "rejection" or not truth:
            assert made.score is None
            rejections, unanswered = rejections + 1, unanswered + (predicted is None)
            correct += predicted == []
            continue
        rows = np.array([oracle(truth, predicted or [], candidates, float(t)) for t in THRESHOLDS])
        row = [value for column in rows.T for value in (column[0], column.mean())]
        assert made.score is not None
        assert made.score.values() == pytest.approx(row)
        answers = len(truth)
        size = "1" if answers == 1 else "2-5" if answers < 6 else "6-10" if answers < 11 else ">10"
        for name in ("all", domain, f"{domain}{number % 3}", size):
            wanted.setdefault(name, []).append(row)
    table = tabulate(judged)
    assert table.rejection == {"correct": correct, "total": rejections, "unanswered": unanswered}
    found = {"all": table.average} | table.domain | table.subdomain | table.box_count
    assert set(found) == set(wanted)
    for name, rows in wanted.items():
        assert [found[name][key] for key in KEYS] == pytest.approx(np.mean(rows, axis=0).tolist())
        assert found[name]["count"] == len(rows)
    assert list(table.box_count) == ["1", "2-5", "6-10", ">10"]
    assert tabulate(judged, as_published=True).rejection["correct"] == correct + unanswered


def test_a_guess_at_everything_is_punished_by_density() -> None:
    made = score([SQUARE], [SQUARE, [20, 0, 30, 10], [40, 0, 50, 10]])
    # recall 1, precision 1/3, F1 1/2, density 1/3
    assert made.density_f1[0] == pytest.approx(1 / 6)
    assert score([SQUARE], [SQUARE], candidates=0).density_f1.tolist() == [0.0] * 10  # as the public code


def test_duplicates_match_once_and_no_prediction_scores_zero() -> None:
    assert score([SQUARE], [SQUARE, SQUARE]).precision.tolist() == [0.5] * 10
    assert score([SQUARE], []).density_f1.tolist() == [0.0] * 10


def test_thresholds_are_the_public_codes_to_the_last_bit() -> None:
    # IoU 0.6 misses the third threshold, which the public code's arange makes 0.6000000000000001
    assert score([SQUARE], [[0, 0, 10, 6]]).recall.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    made = score([SQUARE], [[0, 0, 10, 6.001]])
    assert made.recall.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert dict(zip(KEYS, made.values().tolist(), strict=True)) == pytest.approx(
        {
            "recall_50": 1, "recall_mean": 0.3, "precision_50": 1, "precision_mean": 0.3,
            "density_f1_50": 1, "density_f1_mean": 0.3,
        }
    )  # fmt: skip


def test_nothing_to_average_is_none() -> None:
    table = tabulate([judge("rejection", "x", [], None), judge("", "", [], [])])
    assert table.average == {**dict.fromkeys(KEYS), "count": 0}
    assert (table.domain, table.subdomain, table.box_count) == ({}, {}, {})
    assert table.rejection == {"correct": 1, "total": 2, "unanswered": 1}
    assert [count_range(n) for n in (1, 2, 5, 6, 10, 11, 99)] == [
        "1",
        "2-5",
        "2-5",
        "6-10",
        "6-10",
        ">10",
        ">10",
    ]
