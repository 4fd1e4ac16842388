"""Whether abstaining keeps its promise: calibrated on one half of a run's items, judged on the other, often.

Layout    `python -m rexthinker_edge.benchmarks.risk RUN…` prints one JSON object: how sure answers were and
          how often rightly, the risk-coverage curve, and per stated risk what came of it on held-out items.
          RUN is a file of `evaluate --out`; several are put together.
Contract  Every split draws its calibration items anew, makes a card exactly as `evaluate --calibrate-risk`
          does, and asks it for each risk; what it then gives away is counted on the other items alone.
          `exceeded` counts splits whose held-out share of wrong answers lies above the risk: held-out items
          are few, so that share strays around the true one, and a bound that holds may be exceeded by it.
          Splits share their items, so their spread is not that of independent runs.
          `marginal` is conformal risk control of another thing: wrong answers among all questions, threshold
          by (wrong + 1) / (questions + 1) <= risk. It is shown beside, not used.
Elsewhere cards: calibration/risk.py; curves and reliability: distributions.py.
Source    docs/sources.md#risk
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rexthinker_edge.benchmarks.distributions import (
    Pairs,
    answer_pairs,
    coverage,
    reliability,
    verdict_groups,
)
from rexthinker_edge.benchmarks.run_file import read_run
from rexthinker_edge.calibration.risk import DELTA, counts, make_card
from rexthinker_edge.runtime.risk import RiskCard

SCHEMA = "rexthinker-edge/risk-check/1"
RISKS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
SPLITS, SEED = 100, 7


def check(pairs: Pairs, risks: Sequence[float] = RISKS, splits: int = SPLITS) -> list[dict[str, Any]]:
    """What comes of each risk on held-out answers.

    Args:
        pairs: (confidence, right) of every answer; half of them calibrate.
    """
    cards = _splits(pairs, splits)
    return [_risk(risk, cards) for risk in risks]


def _splits(pairs: Pairs, splits: int) -> Sequence[tuple[RiskCard, Pairs]]:
    rng, made = np.random.default_rng(SEED), []
    for _ in range(splits):
        order = rng.permutation(len(pairs)).tolist()
        half = len(pairs) // 2
        seen, held = ([pairs[k] for k in part] for part in (order[:half], order[half:]))
        made.append((make_card(seen, half, "split", ""), held))
    return made


def _risk(risk: float, cards: Sequence[tuple[RiskCard, Pairs]]) -> dict[str, Any]:
    errors, given, wrong, held_out, bars = list[float](), 0, 0, 0, list[float]()
    for card, held in cards:
        reached = [step.threshold for step in card.steps if step.bound <= risk]
        if not reached:
            continue
        bars.append(min(reached))
        above, false = counts(held, bars[-1])
        errors.append(false / above if above else 0.0)
        given, wrong, held_out = given + above, wrong + false, held_out + len(held)
    return {
        "risk": risk,
        "splits": len(cards),
        "reached": len(bars),
        "threshold_median": float(np.median(bars)) if bars else None,
        "given": given / held_out if held_out else None,
        "error": wrong / given if given else None,
        "error_p90": float(np.percentile(errors, 90)) if errors else None,
        "exceeded": sum(error > risk for error in errors),
    }


def check_marginal(
    pairs: Pairs, risks: Sequence[float] = RISKS, splits: int = SPLITS
) -> list[dict[str, Any]]:
    """Conformal risk control of wrong answers among all answers, on held-out ones."""
    rng, rows = np.random.default_rng(SEED), []
    for risk in risks:
        wrong, given, total = 0, 0, 0
        for _ in range(splits):
            order = rng.permutation(len(pairs)).tolist()
            half = len(pairs) // 2
            seen, held = ([pairs[k] for k in part] for part in (order[:half], order[half:]))
            above, false = counts(held, conformal_threshold(seen, risk))
            wrong, given, total = wrong + false, given + above, total + len(held)
        rows.append({"risk": risk, "given": given / total, "error_of_all": wrong / total})
    return rows


def conformal_threshold(pairs: Pairs, risk: float) -> float:
    """The laxest threshold at which the wrong answers and one more are within the risk; inf without any."""
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    bars = np.array([confidence for confidence, _ in ordered] + [-1.0])
    # Strictly surer than bars[k] are the first ones down to the first of equal confidence.
    wrong = np.concatenate([[0], np.cumsum([not right for _, right in ordered])])[
        np.searchsorted(-bars, -bars, side="left")
    ]
    fits = np.flatnonzero((wrong + 1) / (len(pairs) + 1) <= risk)
    return float(bars[fits[-1]]) if len(fits) else float("inf")


def main() -> None:
    """See the module's layout."""
    parser = argparse.ArgumentParser(description="Whether a stated risk is kept on held-out items.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="files of `evaluate --out`")
    parser.add_argument("--splits", type=int, default=SPLITS)
    arguments = parser.parse_args()
    items = [item for path in arguments.runs for item in read_run(path)[1]]
    print(json.dumps(report(answer_pairs(items), verdict_groups(items), len(items), arguments.splits)))


def report(answers: Pairs, verdicts: Sequence[Pairs], items: int, splits: int = SPLITS) -> dict[str, Any]:
    """Every figure, as plain values; verdicts item by item."""
    return {
        "schema": SCHEMA,
        "items": items,
        "answers": len(answers),
        "right": float(np.mean([right for _, right in answers])) if answers else None,
        "delta": DELTA,
        "reliability": {
            "answers": reliability([pair] for pair in answers),
            "verdicts": reliability(verdicts),
        },
        "coverage": coverage(answers),
        "risks": check(answers, splits=splits),
        "marginal": check_marginal(answers, splits=splits),
    }


if __name__ == "__main__":
    main()
