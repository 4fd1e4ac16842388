"""Comparison and gate, by hand; McNemar against SciPy's binomial test; intervals against the normal ones."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from rexthinker_edge.benchmarks.comparison import Pair, Subjected, compare
from rexthinker_edge.benchmarks.comparison_text import markdown
from rexthinker_edge.benchmarks.gate import Gate
from rexthinker_edge.benchmarks.intervals import bootstrap, mcnemar, share
from rexthinker_edge.benchmarks.run_file import Forced

from .conftest import BOXES, item

ITEMS = [item(k) for k in range(8)] + [item(8, ()), item(9, ())]


def changed() -> list:
    """Two flips in ten: other candidates, and a rejection that became malformed."""
    items = list(ITEMS)
    items[0] = item(
        0, indices=(1,), boxes=(BOXES[1],), token_ids=(1, 9, 3), forced=Forced((0.5, 0.0), (False, True))
    )
    items[9] = item(9, (), status="malformed", text="``` ````", token_ids=(1, 2))
    return items


def sides(second: list, **fields) -> list[Subjected]:
    """A reference and another."""
    return [Subjected("ref", {}, {}, ITEMS), Subjected("other", {}, {}, second, **fields)]


def test_by_hand() -> None:
    told = compare(sides(changed()))
    (pair,) = told["pairs"]
    change = pair["difference"]["density_f1_mean"]
    assert (change["value"], change["count"]) == (-12.5, 8)
    assert change["low"] <= -12.5 <= change["high"] <= 0
    assert pair["flips"]["value"] == 0.2
    assert pair["other_candidates"] == 1
    assert pair["flip_matrix"]["absent"] == {"found": 0, "absent": 1, "malformed": 1}
    assert (pair["exact"]["only_reference"], pair["exact"]["only_subject"], pair["exact"]["mcnemar_p"]) == (
        2,
        0,
        0.5,
    )
    assert pair["domains"]["rejection"]["flips"]["value"] == 0.5
    tokens = pair["tokens"]
    assert tokens["same_answer_token_by_token"]["value"] == 0.8
    assert tokens["first_divergence_median"] == 1.5
    assert tokens["forced"] == {"count": 2, "kl_mean": 0.25, "kl_p99": 0.495, "kl_max": 0.5, "same_top": 0.5}
    assert [w["number"] for w in pair["worst"]] == [0, 9]
    assert told["subjects"][0]["tokens_per_second"] == pytest.approx(500)
    text = markdown({**told, "gate": Gate(max_flips=0.1).judge(told)})
    assert "- DensityF1: -12.50" in text
    assert "### Item 0: 1" in text
    assert "Gate: closed" in text
    json.dumps(told)


def test_the_gate() -> None:
    told = compare(sides(changed()))
    assert Gate().judge(told)["passed"]
    assert Gate(max_drop=12.5, max_flips=0.2, min_same_top=0.5).judge(told)["passed"]
    failures = Gate(max_drop=0.5, max_flips=0.02, min_same_top=0.99).judge(told)["failures"]
    assert failures == [
        "other: DensityF1 dropped by 12.50 points, 0.5 are allowed",
        "other: 20.00 % of the answers flipped, 2 % are allowed",
        "other: tokens agree in 50.00 %, 99 % are needed",
    ]
    assert Gate(max_drop=0.5, max_flips=0.02).judge(compare(sides(ITEMS)))["passed"]
    assert Gate(min_same_top=0.9).judge(compare(sides(ITEMS)))["failures"] == [
        "other: tokens could not be compared, 90 % are needed"
    ]
    absent = [Subjected(name, {}, {}, ITEMS[8:]) for name in ("ref", "other")]
    assert Gate(max_drop=50).judge(compare(absent))["failures"] == [
        "other: DensityF1 could not be compared, no item has an answer that is there"
    ]
    assert not Gate().judge(compare(sides([])))["passed"]
    assert Gate().judge(compare(sides(ITEMS[:7])))["failures"] == ["other: 3 items are in one run alone"]


def test_own_candidates_are_compared_as_boxes() -> None:
    near = [(0.0, 1.0, 10.0, 10.0)]
    same = Pair(ITEMS[0], item(0, indices=(2,), boxes=tuple(near)), given=False)
    assert not same.is_flip
    assert Pair(ITEMS[0], item(0, boxes=((0.0, 6.0, 10.0, 10.0),)), given=False).is_flip
    double = item(0, indices=(0, 1), boxes=(BOXES[0], (0.0, 1.0, 10.0, 10.0)))
    assert Pair(double, item(0, indices=(0, 1), boxes=(BOXES[0], BOXES[1])), given=False).is_flip
    assert Pair(item(0, status=None), item(0, status=None), given=True).is_flip


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 5), (12, 3), (0, 20), (200, 150)])
def test_mcnemar_is_the_exact_binomial_test(a: int, b: int) -> None:
    wanted = 1.0 if a + b == 0 else binomtest(a, a + b, 0.5).pvalue
    assert mcnemar(a, b) == pytest.approx(wanted)


def test_intervals_are_near_the_normal_ones() -> None:
    values = np.random.default_rng(3).random((400, 1))
    low, high = bootstrap(values)[:, 0]
    half = 1.96 * values.std() / 20
    # 2,000 resamples leave about 3 % of the half width
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.1 * half),
        pytest.approx(values.mean() + half, abs=0.1 * half),
    )
    assert share([]) == {"value": None, "low": None, "high": None, "count": 0}
    assert share([True])["low"] == 1.0
