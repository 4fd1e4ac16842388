"""Abstaining: how sure an answer must be, so that of the answers given no more than a stated share is wrong.

Layout    A bundle may carry a `RiskCard`: for some thresholds of confidence, how many of the calibration
          questions' answers lay above, how many of those were wrong, and the share of wrong ones that is
          not exceeded, with probability 1 - `delta` for all thresholds together.
Contract  `threshold` gives the laxest threshold whose bound is within the risk asked for; answers strictly
          above it are given, all others are not. What was promised holds for questions like those of the
          calibration, answered by the very bundle the card names; a card of another bundle is refused.
          Nothing is promised where nothing was measured: no card, or no bound low enough, is an error.
Elsewhere making cards: calibration/risk.py; confidence: confidence.py; the manifest: manifest.py.
Source    docs/sources.md#risk
"""

import math
from dataclasses import dataclass
from typing import Any

from rexthinker_edge.runtime.errors import OptionError

SCORE = "steps/1"  # which confidence a card is about: that of confidence.py, as it is now
MOST_TESTS = 1000
_BOUND_SLACK = 1e-6  # of a bound written down and computed again elsewhere


@dataclass(frozen=True)
class RiskStep:
    """One threshold: of the calibration's answers surer than it, how many there were and how many wrong.

    `bound` is the share of wrong ones that is not exceeded.
    """

    threshold: float
    given: int
    wrong: int
    bound: float


@dataclass(frozen=True)
class RiskCard:
    """What a bundle's answers were worth on calibration questions.

    Attributes:
        source: the questions, such as "workbench:full:1000000", and whose candidates.
        score: the confidence that thresholds are of.
        bundle: digest of the bundle that answered, this card left out.
        questions: how many were asked; answers: how many of them it answered, by `found` or `absent`.
        delta: probability that any of the bounds is exceeded; tests: bounds that share it.
        steps: thresholds, falling, each once; at most `tests`.
    """

    source: str
    score: str
    bundle: str
    questions: int
    answers: int
    delta: float
    tests: int
    steps: tuple[RiskStep, ...]

    @property
    def lowest(self) -> float:
        """The lowest risk that can be asked for."""
        return min((step.bound for step in self.steps), default=1.0)

    def describe(self) -> dict[str, Any]:
        """What it says, in short; plain values."""
        return {"source": self.source, "answers": self.answers, "delta": self.delta, "lowest": self.lowest}


def threshold(card: RiskCard | None, bundle: str, max_risk: float) -> float:
    """How sure an answer must be; only one that is surer is given.

    Args:
        bundle: its name, for messages.
        max_risk: of the answers given, the share that may be wrong.

    Raises:
        OptionError: no share between 0 and 1, or the bundle has no card, or none that reaches it.
    """
    number = isinstance(max_risk, int | float) and not isinstance(max_risk, bool)
    if not number or not 0 < max_risk < 1:
        raise OptionError(
            f"max_risk: {max_risk!r}, a share between 0 and 1 is needed, such as 0.05. "
            "Leave it out for every answer."
        )
    if card is None:
        raise OptionError(
            f"max_risk: the bundle {bundle} has never been calibrated for risk, a bundle with a risk card is "
            "needed. Make one: rexthinker-edge evaluate --dataset DATA --bundle DIR --calibrate-risk."
        )
    reached = [step for step in card.steps if step.bound <= max_risk]
    if not reached:
        raise OptionError(
            f"max_risk: {max_risk:g}, the lowest that {card.answers:,} calibration answers of the bundle "
            f"{bundle} show is {math.ceil(card.lowest * 1000) / 1000:g}. Ask for that or more, or calibrate "
            "on more questions: rexthinker-edge evaluate --calibrate-risk."
        )
    return min(step.threshold for step in reached)


def upper_bound(wrong: int, given: int, level: float) -> float:
    """The largest share of wrong answers that is not refuted by `wrong` among `given`.

    Args:
        level: probability that the true share lies above, from 0 to 1.

    Returns:
        The exact (Clopper-Pearson) bound: with it, seeing at most `wrong` has probability `level`; 1 where
        nothing was given or all were wrong.
    """
    assert 0 <= wrong <= given, (wrong, given)
    assert 0 < level < 1, level
    if wrong == given:
        return 1.0
    low, high = wrong / given, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if _at_most(wrong, given, middle) > level:
            low = middle
        else:
            high = middle
    return high


def _at_most(wrong: int, given: int, share: float) -> float:
    """P(Binomial(given, share) <= wrong)."""
    if share <= 0 or share >= 1:
        return float(share <= 0)
    whole, yes, no = math.lgamma(given + 1), math.log(share), math.log1p(-share)
    return math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(given - k + 1) + k * yes + (given - k) * no)
        for k in range(wrong + 1)
    )


def unfit_card(card: RiskCard, bundle: str) -> str | None:  # noqa: PLR0911 - one way out per rule
    """What is wrong with a card in the manifest of a bundle, or None.

    Args:
        bundle: the digest of that manifest without its card.
    """
    if card.score != SCORE:
        return f"risk.score is {card.score!r}, this version's confidence is {SCORE!r}"
    if card.bundle != bundle:
        return f"risk.bundle is {card.bundle[:12]}…, the rest of this manifest is {bundle[:12]}…"
    if not 0 < card.delta < 1 or not 0 <= card.answers <= card.questions:
        return "risk.delta or risk.answers is out of range"
    if not 1 <= card.tests <= MOST_TESTS or len(card.steps) > card.tests:
        return f"risk.tests is {card.tests} with {len(card.steps)} risk.steps"
    before = (math.inf, -1, -1)
    for place, step in enumerate(card.steps):
        if not 0 <= step.threshold <= 1 or not 0 <= step.wrong <= step.given <= card.answers:
            return f"risk.steps[{place}] holds numbers out of range"
        now = (step.threshold, step.given, step.wrong)
        if now[0] >= before[0] or now[1] < before[1] or now[2] < before[2]:
            return f"risk.steps[{place}] does not fall in threshold and rise in counts"
        if abs(step.bound - upper_bound(step.wrong, step.given, card.delta / card.tests)) > _BOUND_SLACK:
            return f"risk.steps[{place}].bound is {step.bound:g}, not what its counts give"
        before = now
    return None
