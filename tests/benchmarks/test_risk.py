"""Risk kept on held-out answers, and conformal risk control's exact correction."""

import json
import sys

import numpy as np
import pytest

from rexthinker_edge.benchmarks import risk as risks
from rexthinker_edge.benchmarks.risk import check, check_marginal, conformal_threshold, report


def made(count, seed=0):
    """Confidence uniform, wrong with the probability (1 - c)²: above t that is (1 - t)² / 3."""
    rng = np.random.default_rng(seed)
    sure = rng.random(count)
    return list(zip(sure.tolist(), (rng.random(count) < 1 - (1 - sure) ** 2).tolist(), strict=True))


def test_the_realised_error_stays_within_the_risk():
    rows = check(made(600), risks=(0.001, 0.1, 0.2), splits=12)
    assert rows[0] == {
        "risk": 0.001, "splits": 12, "reached": 0, "threshold_median": None, "given": None, "error": None,
        "error_p90": None, "exceeded": 0,
    }  # fmt: skip
    for row in rows[1:]:
        assert row["reached"] >= 6
        assert 0 < row["error"] <= row["risk"]
        assert row["error"] <= row["error_p90"]
        assert row["exceeded"] <= 2  # a held-out half strays
    assert rows[1]["given"] < rows[2]["given"]
    assert rows[1]["threshold_median"] > rows[2]["threshold_median"]


def by_definition(pairs, risk):
    best = float("inf")
    for bar in [*sorted({confidence for confidence, _ in pairs}, reverse=True), -1.0]:
        wrong = sum(not right for confidence, right in pairs if confidence > bar)
        if (wrong + 1) / (len(pairs) + 1) <= risk:
            best = bar
    return best


def test_conformal_threshold():
    for seed in range(20):
        pairs = [(round(confidence, 1), right) for confidence, right in made(40, seed)]  # many ties
        for risk in (0.02, 0.03, 0.1, 0.2, 0.9):
            assert conformal_threshold(pairs, risk) == by_definition(pairs, risk)
    assert conformal_threshold([(0.5, True)] * 8, 0.1) == float("inf")  # 1 / 9 is above it: nothing is given
    assert conformal_threshold([(0.5, True)] * 9, 0.1) == -1.0
    assert conformal_threshold([(0.5, False), *[(0.9, True)] * 18], 0.06) == 0.5
    (row,) = check_marginal(made(600), risks=(0.1,), splits=20)
    assert row["error_of_all"] <= 0.11  # 0.1 over draws of calibration and held-out answers


def test_the_report(tmp_path, monkeypatch, capsys):
    told = report(made(200), [made(30, seed) for seed in range(10)], 210, splits=3)
    assert told["reliability"]["verdicts"]["count"] == 300
    assert (told["schema"], told["items"], told["answers"]) == ("rexthinker-edge/risk-check/1", 210, 200)
    assert told["coverage"][-1]["coverage"] == 1.0
    assert told["coverage"][-1]["error"] == pytest.approx(1 - told["right"])
    assert [row["risk"] for row in told["risks"]] == list(risks.RISKS)
    monkeypatch.setattr(risks, "read_run", lambda path: ({}, []))
    monkeypatch.setattr(risks, "answer_pairs", lambda items: made(120))
    monkeypatch.setattr(sys, "argv", ["risk", "a.jsonl", "--splits", "2"])
    risks.main()
    assert json.loads(capsys.readouterr().out)["answers"] == 120
