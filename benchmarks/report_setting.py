"""On what a report's figures rest: data, how it was asked, the machine, the day.

Elsewhere reports: report.py, report_alone.py; in words: report_tables.py.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rexthinker_edge.benchmarks.machine import machine_card
from rexthinker_edge.benchmarks.trials import Trial
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Problem

ASKED = ("boxes", "orders", "workers", "threads")


def setting(dataset: Dataset, trial: Trial, problems: Sequence[Problem]) -> dict[str, Any]:
    """`dataset`, `records`, `asked`, `machine`, `made` (UTC) and `problems` of a report."""
    return {
        "dataset": dataset.spec,
        "records": [trial.numbers.start, trial.numbers.stop],
        "asked": {key: getattr(trial, key) for key in ASKED},
        "machine": machine_card(),
        "made": datetime.now(UTC).date().isoformat(),
        "problems": [str(problem) for problem in problems],
    }
