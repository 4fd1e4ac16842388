"""Questions about a scene whose answer nobody could dispute.

Layout    `ask` draws a chain of checks for a domain, finds its answers, and says it in English.
Contract  HumanRef's six domains, 0 to 8 answers; `rejection` has none, the others at least one. A chain is
          kept only if no thing is a borderline case, and mostly only if each of its checks decides something.
          Level easy: attribute, position and rejection; a two-step chain is labelled by its last step.
Elsewhere checks and their truth: predicates.py; their English: wording.py; reasoning about them: traces.py.
"""

from dataclasses import dataclass

import numpy as np

from rexthinker_edge.calibration.workbench.predicates import (
    Beside,
    Check,
    Finding,
    Largest,
    Letter,
    Look,
    Rank,
    RareColor,
    Related,
    apply,
)
from rexthinker_edge.calibration.workbench.proposals import PROPOSALS, Draw
from rexthinker_edge.calibration.workbench.wording import express
from rexthinker_edge.calibration.workbench.world import Level, Scene

DOMAINS = ("attribute", "position", "interaction", "reasoning", "identity", "rejection")
EASY_DOMAINS = ("attribute", "position", "rejection")
MAX_ANSWERS = 8
TRIES = 40


@dataclass(frozen=True)
class Question:
    """One expression and its truth.

    Attributes:
        domain: one of `DOMAINS`.
        sub_domain: what decides, such as "color" or "ordinal"; for rejection the domain it imitates.
        category: what is looked for.
        expression: the English.
        checks: the chain the expression says, in the order it is reasoned about.
        findings: what each check found among the things that passed the one before it.
        answers: indices of the things that pass all checks.
    """

    domain: str
    sub_domain: str
    category: str
    expression: str
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    answers: frozenset[int]


def ask(scene: Scene, category: str, rng: np.random.Generator, domain: str | None = None) -> Question | None:
    """Draw one question about the things of a category.

    Args:
        category: a category with at least one thing in the scene.
        rng: decides everything that is left open.
        domain: one of `DOMAINS` (`EASY_DOMAINS` for an easy scene); drawn when None.

    Returns:
        A question, or None when `TRIES` draws gave none that is beyond dispute.
    """
    allowed = EASY_DOMAINS if scene.level is Level.EASY else DOMAINS
    assert domain is None or domain in allowed, domain
    things = tuple(i for i, thing in enumerate(scene.things) if thing.category == category)
    if not things:
        return None
    for _ in range(TRIES):
        wanted = domain or allowed[int(rng.integers(len(allowed)))]
        miss = wanted == "rejection"
        imitated = _pick_other(allowed, rng) if miss else wanted
        chain = PROPOSALS[imitated](Draw(scene, category, things, rng, miss))
        lenient = len(things) == 1 or rng.random() < (0.4 if miss else 0.15)
        findings = None if chain is None else _follow(chain, scene, things, miss=miss, lenient=lenient)
        if chain is None or findings is None:
            continue
        answers = frozenset(findings[-1].passed)
        if len(answers) == len(things) > 1 and rng.random() < 0.7:
            continue
        many = len(answers) > 1 or (not answers and rng.random() < 0.3) or _plural_form(chain)
        expression = express(category, chain, many, rng)
        name = imitated if miss else _sub_domain(chain)
        return Question(wanted, name, category, expression, chain, tuple(findings), answers)
    return None


def _pick_other(allowed: tuple[str, ...], rng: np.random.Generator) -> str:
    others = [domain for domain in allowed if domain != "rejection"]
    return others[int(rng.integers(len(others)))]


def _plural_form(chain: tuple[Check, ...]) -> bool:
    last = chain[-1]
    return isinstance(last, Rank) and last.group


def _follow(
    chain: tuple[Check, ...], scene: Scene, things: tuple[int, ...], *, miss: bool, lenient: bool
) -> list[Finding] | None:
    """Apply the chain; None where it is disputable or has the wrong outcome.

    Unless `lenient`, also where a step of several decides nothing or leaves nothing to the next.
    """
    findings: list[Finding] = []
    left = things
    for check in chain:
        finding = apply(check, scene, left)
        if finding is None:
            return None
        if len(chain) > 1 and not lenient and (not left or len(finding.passed) == len(left)):
            return None
        findings.append(finding)
        left = finding.passed
    if len(left) > MAX_ANSWERS or bool(left) is miss:
        return None
    return findings


def _sub_domain(chain: tuple[Check, ...]) -> str:
    if len(chain) > 1:
        return f"{len(chain)} steps"
    check = chain[0]
    if isinstance(check, Look):
        fields = (("size", check.size), ("color", check.colors), ("pattern", check.pattern))
        name = " and ".join(label for label, value in fields if value)
        return f"not {name}" if check.negated else name
    if isinstance(check, Rank | Largest) and check.negated:
        return "exclusion"
    if isinstance(check, Rank):
        return "extreme" if check.count == 1 else "ordinal"
    if isinstance(check, Related):
        return str(check.kind.value)
    return {Largest: "size order", Beside: "relative", Letter: "letter", RareColor: "counting"}[type(check)]
