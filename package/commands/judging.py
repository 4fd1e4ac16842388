"""What `evaluate` and `compare` share: which records, where runs are kept, how problems are told.

Elsewhere the verbs: evaluate.py, compare.py.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rexthinker_edge.runtime.errors import DataError, OptionError

if TYPE_CHECKING:
    from rexthinker_edge.calibration.dataset import Dataset
    from rexthinker_edge.calibration.records import Problem

SHOWN_PROBLEMS = 20


def chosen_numbers(dataset: "Dataset", start: int, count: int | None) -> range:
    """The records asked for.

    Raises:
        DataError: the dataset has none at all.
        OptionError: it has none there.
    """
    if not len(dataset):
        raise DataError(f"{dataset.spec}: it has no records, one at least is needed. Name other data.")
    numbers = range(len(dataset))[start:][:count]
    if not numbers:
        raise OptionError(
            f"--start: record {start:,}, the dataset has {len(dataset):,}, counted from 0. "
            "Give a smaller number."
        )
    return numbers


def check_orders(boxes: str, orders: int) -> None:
    """UsageError for other orders of hints that the subject finds by itself."""
    if orders and boxes == "detector":
        raise click.UsageError(
            "--orders shuffles the candidates that are given; the detector's come in its own order. "
            "Leave out --orders or --boxes detector."
        )


def default_path(name: str, dataset: "Dataset", key: str) -> Path:
    """runs/NAME-DATASET-KEY.jsonl: the same question always goes to the same file."""
    kind = ":".join(dataset.spec.split(":")[:2])
    spec = dataset.spec.rpartition(":")[0] if kind.startswith("workbench") else dataset.spec
    digest = hashlib.sha256(f"{key} {spec}".encode()).hexdigest()[:12]
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{name}-{Path(kind).name}")[:80]
    return Path("runs") / f"{safe}-{digest}.jsonl"


def tell_problems(problems: "list[Problem]") -> None:
    """Name what was wrong with the data, on standard error."""
    for problem in problems[:SHOWN_PROBLEMS]:
        click.echo(f"data: {problem}", err=True)
    if problems:
        left = sum(not problem.kept for problem in problems)
        more = f", {len(problems) - SHOWN_PROBLEMS} not shown" if len(problems) > SHOWN_PROBLEMS else ""
        click.echo(
            f"data: {len(problems)} problems{more}; {left} left out, {len(problems) - left} kept", err=True
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a report; OptionError when it cannot be written there."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; OptionError when it cannot be written there."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(
            f"{path}: cannot be written ({error.strerror}), a writable place is needed. Choose another."
        ) from error
