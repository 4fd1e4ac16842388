"""On what a report's figures rest: data, how it was asked, the machine, the day.

Elsewhere reports: report.py, report_alone.py; in words: report_tables.py.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rexthinker_edge.benchmarks.machine import machine_card
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.benchmarks.trials import Trial
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Problem

ASKED = ("boxes", "orders", "workers", "threads")


def setting(
    dataset: Dataset, trial: Trial, problems: Sequence[Problem], items: Sequence[Item]
) -> dict[str, Any]:
    """`dataset`, its `questions`, `records`, `asked`, `machine`, `made` (UTC) and `problems` of a report.

    Args:
        items: of the run, or of the reference's.
    """
    return {
        "dataset": dataset.spec,
        "questions": questions_digest(items),
        "records": [trial.numbers.start, trial.numbers.stop],
        "asked": {key: getattr(trial, key) for key in ASKED},
        "machine": machine_card(),
        "made": datetime.now(UTC).date().isoformat(),
        "problems": [str(problem) for problem in problems],
    }


def questions_digest(items: Sequence[Item]) -> str:
    """SHA-256 over what was asked and what is true of it, whatever the dataset is called."""
    asked = [
        (i.id, i.image_name, i.category, i.referring, i.domain, i.candidates, i.answers)
        for i in sorted(items, key=lambda item: item.number)
    ]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()
