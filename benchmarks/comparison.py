"""Two or more runs over the same items, side by side: what was lost, and how sure that is.

Layout    `compare` gives schema `rexthinker-edge/comparison/1`: one entry per subject, and one per pair of
          the first, the reference, with each other. Differences are subject minus reference in points,
          `drop` is the opposite sign; shares are fractions; every difference has a 95 % interval over items.
Contract  Pairs are made of items that both runs have; one that either could not ask counts as a flip.
          A flip is another status, or other candidates (boxes, where each found its own candidates:
          one-to-one at IoU 0.5). McNemar counts items that one subject alone answered exactly right.
Elsewhere runs: runs.py; the gate: gate.py; in words: comparison_text.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rexthinker_edge.benchmarks.distributions import (
    answer_pairs,
    coverage,
    reliability,
    tokens_per_pass,
    verdict_groups,
)
from rexthinker_edge.benchmarks.figures import group, is_right, judged_item, report
from rexthinker_edge.benchmarks.humanref_metric import KEYS
from rexthinker_edge.benchmarks.intervals import Figure, bootstrap, mcnemar, share
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.boxes import iou

SCHEMA = "rexthinker-edge/comparison/1"
UNASKED = "unasked"
SAME_BOX_IOU = 0.5
WORST = 20
COPIED = (
    "statuses", "average", "domain", "intervals", "rejection", "exact", "rejected", "over_rejected",
    "grounding", "agreement", "order", "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Subjected:
    """One subject's run: who, its items, and what it took."""

    name: str
    identity: dict[str, Any]
    details: dict[str, Any]
    items: Sequence[Item]
    peak_bytes: int | None = None
    given: bool = True  # the record's candidates; False: its own
    device_peak_bytes: int | None = None


@dataclass(frozen=True)
class Pair:
    """One item in both runs."""

    first: Item
    second: Item
    given: bool

    @property
    def is_flip(self) -> bool:
        """Another status or other candidates; an item that was not asked is always one."""
        a, b = self.first, self.second
        if a.status != b.status or a.status is None:
            return True
        return set(a.indices) != set(b.indices) if self.given else not _same_boxes(a, b)

    @property
    def first_divergence(self) -> int | None:
        """Index of the first token in which the two answers differ; None when they do not."""
        a, b = self.first.token_ids, self.second.token_ids
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return index
        return None if len(a) == len(b) else min(len(a), len(b))

    def values(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """The six `KEYS` of both in points; None for a rejection."""
        a, b = judged_item(self.first).score, judged_item(self.second).score
        return None if a is None or b is None else (100 * a.values(), 100 * b.values())


def _same_boxes(a: Item, b: Item) -> bool:
    if len(a.boxes) != len(b.boxes):
        return False
    overlaps = iou(a.boxes, b.boxes)
    best = overlaps.argmax(axis=1) if len(a.boxes) else np.zeros(0, np.int64)
    return len(set(best.tolist())) == len(best) and bool(
        (overlaps.max(axis=1, initial=0.0) >= SAME_BOX_IOU).all()
    )


def compare(subjects: Sequence[Subjected]) -> dict[str, Any]:
    """Every figure; the first subject is the reference."""
    assert len(subjects) > 1, "one run has nothing to be compared with"
    reference = subjects[0]
    return {
        "schema": SCHEMA,
        "subjects": [told_of(subject) for subject in subjects],
        "pairs": [compare_pair(reference, subject) for subject in subjects[1:]],
    }


def told_of(subject: Subjected) -> dict[str, Any]:
    """One subject's own figures."""
    whole = report(subject.items)
    generated = sum(item.tokens.get("generated", 0) for item in subject.items)
    spent = sum(item.ms.get("generate", 0.0) for item in subject.items)
    sure = answer_pairs(subject.items)
    return {
        "name": subject.name,
        "identity": subject.identity,
        "details": subject.details,
        "items": len(subject.items),
        "unasked": whole["unasked"],
        **{key: whole[key] for key in COPIED},
        "tokens_per_pass": tokens_per_pass(subject.items),
        "reliability": {
            "verdicts": reliability(verdict_groups(subject.items)),
            "answers": reliability([pair] for pair in sure),
        },
        "coverage": coverage(sure),
        "ms": whole["ms"],
        "tokens_per_second": 1000 * generated / spent if spent else None,
        "peak_bytes": subject.peak_bytes,
        "device_peak_bytes": subject.device_peak_bytes,
    }


def compare_pair(reference: Subjected, subject: Subjected) -> dict[str, Any]:
    """The reference and one other subject."""
    second = {item.number: item for item in subject.items}
    given = reference.given and subject.given
    pairs = [Pair(item, second[item.number], given) for item in reference.items if item.number in second]
    scored = [values for pair in pairs if (values := pair.values()) is not None]
    domains = sorted({group(pair.first) for pair in pairs})
    return {
        "reference": reference.name,
        "subject": subject.name,
        "items": len(pairs),
        "missing": len({i.number for i in reference.items} ^ set(second)),
        "difference": _differences(scored),
        "exact": _exact(pairs),
        "flips": share([pair.is_flip for pair in pairs]),
        "flip_matrix": _matrix(pairs),
        "other_candidates": sum(
            p.is_flip and p.first.status == p.second.status == Status.FOUND for p in pairs
        ),
        "tokens": _tokens(pairs),
        "domains": {name: _domain([pair for pair in pairs if group(pair.first) == name]) for name in domains},
        "worst": [_shown(pair) for pair in _worst_first(pairs)[:WORST]],
    }


def _differences(scored: Sequence[tuple[Any, Any]]) -> dict[str, Figure]:
    """Per metric the mean of subject minus reference, in points."""
    if not scored:
        return {key: {"value": None, "low": None, "high": None, "count": 0} for key in KEYS}
    rows = np.array([b - a for a, b in scored])
    low, high = bootstrap(rows)
    return {
        key: {
            "value": float(rows[:, k].mean()),
            "low": float(low[k]),
            "high": float(high[k]),
            "count": len(rows),
        }
        for k, key in enumerate(KEYS)
    }


def _exact(pairs: Sequence[Pair]) -> dict[str, Any]:
    known = [(is_right(p.first), is_right(p.second)) for p in pairs]
    rights = [(a, b) for a, b in known if a is not None and b is not None]
    only_reference = sum(a and not b for a, b in rights)
    only_subject = sum(b and not a for a, b in rights)
    return {
        "reference": share([a for a, _ in rights]),
        "subject": share([b for _, b in rights]),
        "only_reference": only_reference,
        "only_subject": only_subject,
        "mcnemar_p": mcnemar(only_reference, only_subject),
    }


def _matrix(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """Statuses of the reference, and for each what the subject said."""
    counts = Counter((p.first.status or UNASKED, p.second.status or UNASKED) for p in pairs)
    names = [*(status.value for status in Status), UNASKED]
    met = [name for name in names if any(name in key for key in counts)]
    return {a: {b: counts[a, b] for b in met} for a in met}


def _tokens(pairs: Sequence[Pair]) -> dict[str, Any]:
    """First diverging token, and the reference's tokens under the subject's eyes."""
    places = [pair.first_divergence for pair in pairs if pair.first.token_ids or pair.second.token_ids]
    apart = [place for place in places if place is not None]
    forced = [pair.second.forced for pair in pairs if pair.second.forced is not None]
    divergence = np.array([value for f in forced for value in f.divergence])
    same = [value for f in forced for value in f.same_top]
    spread: dict[str, Any] = {
        "count": len(same),
        "kl_mean": None,
        "kl_p99": None,
        "kl_max": None,
        "same_top": None,
    }
    if len(divergence):
        spread |= {
            "kl_mean": float(divergence.mean()),
            "kl_p99": float(np.percentile(divergence, 99)),
            "kl_max": float(divergence.max()),
            "same_top": float(np.mean(same)),
        }
    return {
        "same_answer_token_by_token": share([place is None for place in places]),
        "first_divergence_median": float(np.median(apart)) if apart else None,
        "forced": spread,
    }


def _domain(pairs: Sequence[Pair]) -> dict[str, Any]:
    scored = [values for pair in pairs if (values := pair.values()) is not None]
    return {
        "items": len(pairs),
        "density_f1_mean": _differences(scored)["density_f1_mean"],
        "exact": _exact(pairs),
        "flips": share([pair.is_flip for pair in pairs]),
    }


def _worst_first(pairs: Sequence[Pair]) -> list[Pair]:
    """Flips, the largest loss first; then items that kept their answer on the farthest way."""

    def loss(pair: Pair) -> tuple[float, float, int]:
        values = pair.values()
        right = (is_right(pair.first) or False) - (is_right(pair.second) or False)
        lost = float(values[0][-1] - values[1][-1]) if values else 100.0 * right
        forced = pair.second.forced
        return (
            -lost - 0.01 * pair.is_flip,
            -max(forced.divergence, default=0.0) if forced else 0.0,
            pair.first.number,
        )

    return sorted((p for p in pairs if p.is_flip or p.first_divergence is not None), key=loss)


def _shown(pair: Pair) -> dict[str, Any]:
    a, b = pair.first, pair.second
    values, forced = pair.values(), b.forced
    return {
        "number": a.number,
        "id": a.id,
        "image_name": a.image_name,
        "category": a.category,
        "referring": a.referring,
        "domain": a.domain,
        "truth": a.truth,
        "flip": pair.is_flip,
        "status": [a.status, b.status],
        "indices": [list(a.indices), list(b.indices)],
        "density_f1_mean": None if values is None else [float(values[0][-1]), float(values[1][-1])],
        "first_divergence": pair.first_divergence,
        "kl_max": max(forced.divergence, default=0.0) if forced else None,
        "text": [a.text, b.text],
    }
