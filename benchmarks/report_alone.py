"""The report of one subject: what `evaluate` tells, in the form of a comparison that has no pairs.

Layout    `alone` gives what report.py's forms take: one subject, `pairs` empty, and `wrong`, the items that
          were not answered exactly right, the worst first. `wrong_gallery` are these with their pictures.
Contract  The figures are those of `evaluate --json`, from the same items.
Elsewhere several subjects: report.py, comparison.py; the forms: report_page.py, comparison_text.py.
"""

from collections.abc import Sequence
from typing import Any

from rexthinker_edge.benchmarks.comparison import Subjected, told_of
from rexthinker_edge.benchmarks.figures import is_right, judged_item
from rexthinker_edge.benchmarks.report_gallery import Flip, seen_item
from rexthinker_edge.benchmarks.report_setting import setting
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.benchmarks.trials import Trial
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Problem

WORST, PICTURED = 20, 8


def alone(subject: Subjected, dataset: Dataset, trial: Trial, problems: Sequence[Problem]) -> dict[str, Any]:
    """Everything a report of one run tells."""
    return {
        "subjects": [told_of(subject)],
        "pairs": [],
        "wrong": [_wrong(item) for item in _worst_first(subject.items)[:WORST]],
        **setting(dataset, trial, problems, subject.items),
    }


def _worst_first(items: Sequence[Item]) -> list[Item]:
    """Items not answered exactly right, by their DensityF1; one that could not be scored counts as 0."""

    def score(item: Item) -> tuple[float, int]:
        return _density(item) or 0.0, item.number

    return sorted((item for item in items if is_right(item) is False), key=score)


def _density(item: Item) -> float | None:
    score = judged_item(item).score
    return None if score is None else 100 * float(score.values()[-1])


def _wrong(item: Item) -> dict[str, Any]:
    return {
        "number": item.number,
        "image_name": item.image_name,
        "category": item.category,
        "referring": item.referring,
        "domain": item.domain,
        "truth": item.truth,
        "status": [item.status],
        "indices": [list(item.indices)],
        "density_f1_mean": _density(item),
        "text": [item.text],
    }


def wrong_gallery(report: dict[str, Any], dataset: Dataset) -> list[tuple[str, list[Flip]]]:
    """The worst wrong answers on their pictures; none where candidates were the subject's own."""
    if report["asked"]["boxes"] != "given":
        return []
    name = report["subjects"][0]["name"]
    shown = (seen_item(item, (name,), dataset) for item in report["wrong"][:PICTURED])
    return [(name, [flip for flip in shown if flip is not None])]
