"""Average precision against a slow reading of COCO's definition, and against numbers worked out by hand."""

import numpy as np
import pytest

from rexthinker_edge.benchmarks.detection import THRESHOLDS, Judged, average_precision, hits, judge

NONE = np.zeros((0, 4), np.float32)


def item(boxes, scores, truths, category="ball"):
    return Judged(
        category, np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
        np.array(truths, np.float32).reshape(-1, 4),
    )  # fmt: skip


def box(x, side=10.0):
    return [x, 0.0, x + side, side]


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area else 0.0


def slow_average_precision(items, threshold):
    """Loops, straight from cocoeval.py."""
    found, truths = [], sum(len(i.truths) for i in items)
    for one in items:
        free = list(range(len(one.truths)))
        for k in sorted(range(len(one.scores)), key=lambda k: -one.scores[k]):
            best = max(free, key=lambda t: overlap(one.boxes[k], one.truths[t]), default=None)
            good = best is not None and overlap(one.boxes[k], one.truths[best]) >= threshold
            if good:
                free.remove(best)
            found.append((float(one.scores[k]), good))
    found.sort(key=lambda pair: -pair[0])
    points, right = [], 0
    for n, (_, good) in enumerate(found, start=1):
        right += good
        points.append((right / truths, right / n))
    total = 0.0
    for step in range(101):
        total += max((p for r, p in points if r >= step / 100 - 1e-12), default=0.0)
    return total / 101


def test_worked_by_hand():
    """Right, wrong, right over two truths: precision 1 up to recall 0.5, then 2/3."""
    one = item([box(0), box(50), box(100)], [0.9, 0.8, 0.7], [box(0), box(100)])
    assert average_precision([one], 0.5) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_the_slow_reading(seed):
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(8):
        truths = [[x, y, x + w, y + w] for x, y, w in rng.uniform(5, 60, (int(rng.integers(0, 5)), 3))]
        near = [np.array(t) + rng.normal(0, 3, 4) for t in truths for _ in range(int(rng.integers(0, 3)))]
        far = [[x, x, x + 20, x + 20] for x in rng.uniform(0, 60, int(rng.integers(0, 3)))]
        boxes = [*near, *far]
        items.append(item(boxes, rng.permutation(1000)[: len(boxes)] / 1000, truths))
    if sum(len(i.truths) for i in items):
        for threshold in (0.5, 0.75):
            assert average_precision(items, threshold) == pytest.approx(
                slow_average_precision(items, threshold)
            )


def test_a_second_box_on_one_thing_is_wrong():
    found, overlaps = hits(item([box(1), box(0)], [0.9, 0.8], [box(0)]), 0.5)
    assert found.tolist() == [True, False]
    assert overlaps[0] == pytest.approx(9 / 11)


def test_order_is_by_score_over_all_pictures():
    """A confident wrong box in one picture costs the right one in another."""
    pictures = [item([box(50)], [0.9], [box(0)]), item([box(0)], [0.8], [box(0)])]
    assert average_precision(pictures, 0.5) == pytest.approx(51 * 0.5 / 101)


def test_figures_average_categories_and_thresholds():
    perfect = item([box(0)], [0.9], [box(0)], "ball")
    loose = item([[0, 0, 10, 7.2]], [0.9], [box(0)], "mug")  # IoU 0.72: right at 0.50 ... 0.70
    missed = item(NONE, [], [box(0)], "cone")
    figures = judge([perfect, loose, missed, item([box(0)], [0.9], NONE, "star")])
    assert figures.ap50 == pytest.approx(2 / 3)
    assert figures.ap == pytest.approx((1 + 0.5 + 0) / 3)
    assert figures.hit_iou == pytest.approx((1 + 0.72) / 2)
    assert (figures.pictures, figures.truths) == (4, 3)
    assert THRESHOLDS[0] == 0.5
    assert len(THRESHOLDS) == 10


def test_nothing_found_and_nothing_there():
    assert average_precision([item(NONE, [], [box(0)])], 0.5) == 0.0
    assert np.isnan(average_precision([item([box(0)], [0.9], NONE)], 0.5))
    assert judge([item(NONE, [], NONE)]).ap50 == 0.0
