"""Figures of a run: HumanRef's tables, and what they hide.

Layout    `report` is schema `rexthinker-edge/quality/1`; shares and metrics are fractions from 0 to 1, each
          share with a 95 % interval. `tables` alone is the contract of `evaluate --predictions --json`.
Contract  A failure to answer is never a correct rejection: only `absent` is. An item that could not be asked,
          or whose answer is unusable, has no prediction. `exact` asks for the true candidates and no other.
          Agreement looks at answers with a readable thought: the candidates marked ✅ are those answered.
Elsewhere the metric: humanref_metric.py; intervals: intervals.py; grounding: grounding.py; two runs side by
          side: comparison.py.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rexthinker_edge.benchmarks.grounding import point_f1, union_iou
from rexthinker_edge.benchmarks.humanref_metric import (
    KEYS,
    REJECTION,
    Judged,
    Table,
    is_rejection,
    judge,
    tabulate,
)
from rexthinker_edge.benchmarks.intervals import bootstrap, mean, share
from rexthinker_edge.benchmarks.predictions import Id
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.calibration.records import Box, Record
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.quality import REPORT
from rexthinker_edge.runtime.trace import Verdict

ANSWERED = (Status.FOUND, Status.ABSENT)


def judged_item(item: Item) -> Judged:
    """An item of a run for the tables; only `found` and `absent` are predictions."""
    said = item.boxes if item.status in ANSWERED else None
    return judge(item.domain, item.sub_domain, item.answers, said, item.candidates)


def judge_predictions(records: Iterable[Record], predictions: Mapping[Id, Sequence[Box]]) -> list[Judged]:
    """A prediction file's items for the tables."""
    return [
        judge(r.domain, r.sub_domain, r.answer_boxes, predictions.get(r.id), len(r.candidate_boxes))
        for r in records
    ]


def tables(table: Table) -> dict[str, Any]:
    """The tables as JSON: average, domain, subdomain, box_count, rejection."""
    return {
        "average": table.average,
        "domain": table.domain,
        "subdomain": table.subdomain,
        "box_count": table.box_count,
        "rejection": table.rejection,
    }


def metric_intervals(judged: Sequence[Judged]) -> dict[str, Any]:
    """95 % intervals of the tables' averages: {"average": {key: [low, high]}, "domain": {…}}."""
    scored = [item for item in judged if item.score is not None]
    domains = sorted({item.domain for item in scored})
    return {
        "average": _interval_row(scored),
        "domain": {name: _interval_row([i for i in scored if i.domain == name]) for name in domains},
    }


def _interval_row(items: Sequence[Judged]) -> dict[str, list[float] | None]:
    if not items:
        return dict.fromkeys(KEYS)
    low, high = bootstrap([item.score.values() for item in items if item.score is not None])
    return {key: [float(low[k]), float(high[k])] for k, key in enumerate(KEYS)}


def group(item: Item) -> str:
    """The domain that an item counts for: what asks for nothing that is there is a rejection."""
    return REJECTION if is_rejection(item.domain, len(item.answers)) else item.domain


def is_right(item: Item) -> bool | None:
    """Whether the true candidates are answered and no other; None where the truth is no set of candidates."""
    if item.truth is None:
        return None
    if is_rejection(item.domain, len(item.answers)):
        return item.status == Status.ABSENT
    return item.status == Status.FOUND and set(item.indices) == set(item.truth)


def report(items: Sequence[Item], *, as_published: bool = False) -> dict[str, Any]:
    """Every figure of a run."""
    judged = [judged_item(item) for item in items]
    rejections = [item for item in items if is_rejection(item.domain, len(item.answers))]
    answerable = [item for item in items if not is_rejection(item.domain, len(item.answers))]
    statuses = Counter(item.status for item in items)
    return {
        "schema": REPORT,
        "items": len(items),
        **tables(tabulate(judged, as_published=as_published)),
        "intervals": metric_intervals(judged),
        "statuses": {status.value: statuses[status.value] for status in Status},
        "unasked": statuses[None],
        "exact": _exact(items),
        "rejected": share([item.status == Status.ABSENT for item in rejections]),
        "over_rejected": share([item.status == Status.ABSENT for item in answerable]),
        "agreement": agreement(items),
        "grounding": grounding(
            (item.boxes if item.status in ANSWERED else (), item.answers) for item in answerable
        ),
        "order": order_sensitivity(items),
        "tokens": _tokens(items),
        "ms": _milliseconds(items),
    }


def _exact(items: Sequence[Item]) -> dict[str, Any]:
    known = [(item, right) for item in items if (right := is_right(item)) is not None]
    groups: dict[str, list[bool]] = {name: [] for name in sorted({group(item) for item, _ in known})}
    for item, right in known:
        groups[group(item)].append(right)
    return {"all": share([right for _, right in known])} | {k: share(v) for k, v in groups.items()}


def agreement(items: Iterable[Item]) -> dict[str, Any]:
    """Whether thought and answer say the same, over answers whose thought marks any candidate."""
    agrees, dropped, added, marked = list[bool](), 0, 0, 0
    for item in items:
        if item.status not in ANSWERED or all(v == Verdict.UNKNOWN for v in item.verdicts):
            continue
        marked += 1
        matching = {k for k, verdict in enumerate(item.verdicts) if verdict == Verdict.MATCH}
        dropped += bool(matching - set(item.indices))
        added += bool(set(item.indices) - matching)
        agrees.append(matching == set(item.indices))
    return {"agree": share(agrees), "named_but_not_answered": dropped, "answered_but_not_named": added}


def grounding(pairs: Iterable[tuple[Sequence[Box], Sequence[Box]]]) -> dict[str, Any]:
    """How well answers lie where the truth does, by the grounding scores of arXiv 2606.16122.

    Args:
        pairs: (boxes answered, boxes of the truth) of every item that has an answer.

    Returns:
        union_iou: of the areas that both cover; point_f1: of the answers' centres, each for one true box.
    """
    listed = list(pairs)
    centres = [[((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in said] for said, _ in listed]
    return {
        "union_iou": mean([union_iou(said, truth) for said, truth in listed]),
        "point_f1": mean([point_f1(c, truth) for c, (_, truth) in zip(centres, listed, strict=True)]),
    }


def order_sensitivity(items: Iterable[Item]) -> dict[str, Any]:
    """How often another order of the hints gives another status or other candidates.

    The orders of one item are no independent draws: intervals are over items, each with its own share.
    """
    turned = [item for item in items if item.again]

    def changed(item: Item) -> float:
        own = (item.status, set(item.indices))
        return float(np.mean([(a.status, set(a.indices)) != own for a in item.again]))

    def status_changed(item: Item) -> float:
        return float(np.mean([a.status != item.status for a in item.again]))

    return {
        "turns": sum(len(item.again) for item in turned),
        "changed": mean([changed(item) for item in turned]),
        "status_changed": mean([status_changed(item) for item in turned]),
    }


def _tokens(items: Sequence[Item]) -> dict[str, float | None]:
    asked = [item.tokens for item in items if item.tokens]
    names = ("prompt", "generated", "passes")
    return {name: float(np.mean([t[name] for t in asked])) if asked else None for name in names}


def _milliseconds(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each stage, as the subject tells them."""
    names = sorted({name for item in items for name in item.ms})
    values = {name: [item.ms[name] for item in items if name in item.ms] for name in names}
    return {
        name: {"p50": float(np.percentile(v, 50)), "p95": float(np.percentile(v, 95))}
        for name, v in values.items()
    }
