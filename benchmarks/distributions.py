"""What averages hide: how sure answers were and how often rightly, tokens won per pass, error by coverage.

Layout    `coverage` takes (confidence, right) pairs, `reliability` groups of them, one an item;
          `answer_pairs` and `verdict_groups` make them of a run's items. All shares are fractions.
Contract  A verdict counts where it is ✅ or ❌, its confidence is told and the truth is a set of candidates;
          an answer where it is found or absent. Nothing told gives counts of 0, never a figure.
Elsewhere where confidence comes from: runtime/; the other figures: figures.py; drawn: report_charts.py.
Source    docs/sources.md#reliability
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rexthinker_edge.benchmarks.figures import ANSWERED, is_right
from rexthinker_edge.benchmarks.intervals import ratio
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.runtime.trace import Verdict

BINS = 10
CURVE_POINTS = 50
PASS_BINS = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33)  # tokens a pass: where each bin begins
Pairs = Sequence[tuple[float, bool]]


def verdict_groups(items: Iterable[Item]) -> list[Pairs]:
    """(confidence, right) of every verdict that has both, item by item."""
    groups = list[Pairs]()
    for item in items:
        told = zip(item.verdicts, item.verdict_confidences, strict=False)
        groups.append(
            [
                (confidence, (verdict == Verdict.MATCH) == (index in item.truth))
                for index, (verdict, confidence) in enumerate(told)
                if item.truth is not None
                and confidence is not None
                and verdict in (Verdict.MATCH, Verdict.NO_MATCH)
            ]
        )
    return groups


def answer_pairs(items: Iterable[Item]) -> list[tuple[float, bool]]:
    """(confidence, exactly right) of every usable answer that has both."""
    pairs = []
    for item in items:
        right = is_right(item)
        if item.confidence is not None and item.status in ANSWERED and right is not None:
            pairs.append((item.confidence, right))
    return pairs


def reliability(groups: Iterable[Pairs]) -> dict[str, Any]:
    """Confidence against truth in `BINS` bins of equal width.

    Args:
        groups: (confidence, right) pairs, item by item: those of one item are no independent draws.

    Returns:
        count; error: the expected calibration error, mean |confidence - share right| over pairs; bins that
        hold any: low, high, count, confidence (mean) and right (a share with its interval over items).
    """
    filled: dict[int, list[Pairs]] = {}
    for group in groups:
        inside: dict[int, list[tuple[float, bool]]] = {}
        for pair in group:
            inside.setdefault(min(int(pair[0] * BINS), BINS - 1), []).append(pair)
        for place, pairs in inside.items():
            filled.setdefault(place, []).append(pairs)
    total = sum(len(pairs) for held in filled.values() for pairs in held)
    bins, error = [], 0.0
    for place, held in sorted(filled.items()):
        confidence = float(np.mean([c for pairs in held for c, _ in pairs]))
        right = ratio([sum(r for _, r in pairs) for pairs in held], [len(pairs) for pairs in held])
        count = sum(map(len, held))
        error += count * abs(confidence - float(right["value"] or 0.0)) / total
        low, high = place / BINS, (place + 1) / BINS
        bins.append({"low": low, "high": high, "count": count, "confidence": confidence, "right": right})
    return {"count": total, "error": error if total else None, "bins": bins}


def coverage(pairs: Pairs) -> list[dict[str, float]]:
    """The error among the answers that are kept, surest first: at most `CURVE_POINTS` points.

    Answers of equal confidence are kept together; the last point keeps them all.
    """
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    wrong, points = 0, []
    for place, (confidence, right) in enumerate(ordered, 1):
        wrong += not right
        if place == len(ordered) or ordered[place][0] != confidence:
            points.append({"coverage": place / len(ordered), "error": wrong / place, "threshold": confidence})
    if len(points) <= CURVE_POINTS:
        return points
    chosen = np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))
    return [points[place] for place in chosen]


def tokens_per_pass(items: Iterable[Item]) -> dict[str, Any]:
    """How many tokens each decoder pass gave, over all passes of all answers.

    Returns:
        mean: all tokens by all passes, None without any; bins: low, high (None: no end), passes and tokens of
        each of `PASS_BINS` up to the last that holds any.
    """
    given = list(items)
    asked = [item.tokens for item in given if item.tokens.get("passes")]
    mean = sum(t["generated"] for t in asked) / sum(t["passes"] for t in asked) if asked else None
    lengths = np.array([length for item in given for length in item.pass_tokens], np.int64)
    bins = []
    for low, after in zip(PASS_BINS, [*PASS_BINS[1:], None], strict=True):
        inside = lengths[(lengths >= low) & (lengths < (after or np.inf))]
        high = None if after is None else after - 1
        bins.append({"low": low, "high": high, "passes": len(inside), "tokens": int(inside.sum())})
    while bins and not bins[-1]["passes"]:
        bins.pop()
    return {"mean": mean, "bins": bins}
