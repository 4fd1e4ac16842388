"""Choosing how sure an answer must be: thresholds with bounds that hold, from questions with known answers.

Layout    `make_card` takes (confidence, right) of every answer of a calibration run.
Contract  Learn then Test: each of `COVERAGES` thresholds is a hypothesis "more than this share of the answers
          above it is wrong", refuted by an exact binomial test. A threshold is the confidence of the answer
          at a rank fixed beforehand; given that value, the answers strictly above it are independent draws
          from "surer than it", so the number of wrong ones among them is binomial, ties included. Bonferroni
          over all thresholds makes the bounds hold together: a risk may be asked for after the fact, and the
          laxest threshold that allows it be taken. One that is not an exchangeable sample of the questions
          to come (another kind of picture, harder words) promises nothing.
Elsewhere using cards: runtime/risk.py; confidence: runtime/confidence.py; the check: benchmarks/risk.py.
Source    docs/sources.md#risk
"""

from collections.abc import Sequence

from rexthinker_edge.runtime.errors import DataError
from rexthinker_edge.runtime.risk import SCORE, RiskCard, RiskStep, upper_bound

COVERAGES = 16  # thresholds, at equal shares of the answers
DELTA = 0.1
LEAST_ANSWERS = 50  # fewer bound no risk below 0.1, not even when all are right

Answers = Sequence[tuple[float, bool]]


def make_card(
    answers: Answers,
    questions: int,
    source: str,
    bundle: str,
    delta: float = DELTA,
    coverages: int = COVERAGES,
) -> RiskCard:
    """A card of calibration answers.

    Args:
        answers: (confidence from 0 to 1, exactly right) of each that is found or absent.
        questions: how many were asked; those without an answer have no part in the risk.
        source: where the questions come from.
        bundle: digest of the bundle without its card.
        delta: probability that any bound is exceeded.
        coverages: thresholds.

    Raises:
        DataError: too few answers.
    """
    check_answers(source, len(answers))
    steps = list[RiskStep]()
    for step in thresholds(answers, coverages):
        given, wrong = counts(answers, step)
        steps.append(RiskStep(step, given, wrong, upper_bound(wrong, given, delta / coverages)))
    return RiskCard(source, SCORE, bundle, questions, len(answers), delta, coverages, tuple(steps))


def check_answers(source: str, count: int) -> None:
    """Raise DataError where so few answers bound no risk."""
    if count < LEAST_ANSWERS:
        raise DataError(
            f"{source}: {count} answers to calibrate on, {LEAST_ANSWERS} or more are needed (some "
            "hundreds for a risk of 0.05). Ask more questions: --count."
        )


def thresholds(answers: Answers, coverages: int) -> list[float]:
    """Confidences at equal steps of rank, falling, each once."""
    falling = sorted((confidence for confidence, _ in answers), reverse=True)
    ranks = [max(1, round(step * len(falling) / coverages)) for step in range(1, coverages + 1)]
    return list(dict.fromkeys(falling[rank - 1] for rank in ranks))


def counts(answers: Answers, threshold: float) -> tuple[int, int]:
    """How many answers are surer than a threshold, and how many of those are wrong."""
    rights = [right for confidence, right in answers if confidence > threshold]
    return len(rights), len(rights) - sum(rights)
