"""The report of a comparison: what was compared, on what, and every figure; as HTML, Markdown or JSON.

Layout    `compared` gives the comparison (comparison.py) with `report`: `rexthinker-edge/report/1`,
          `gate`, and what report_setting.py tells. The JSON file is that; the Markdown is its figures and
          texts; the page adds charts and pictures of what flipped.
Contract  The three are made of the same figures. A file is written whole or not at all.
Elsewhere the page: report_page.py; Markdown: comparison_text.py; the figures: comparison.py, gate.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rexthinker_edge.benchmarks.comparison import Subjected, compare
from rexthinker_edge.benchmarks.comparison_text import markdown
from rexthinker_edge.benchmarks.gate import Gate
from rexthinker_edge.benchmarks.report_alone import wrong_gallery
from rexthinker_edge.benchmarks.report_gallery import gallery
from rexthinker_edge.benchmarks.report_page import page
from rexthinker_edge.benchmarks.report_setting import setting
from rexthinker_edge.benchmarks.trials import Trial
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Problem
from rexthinker_edge.runtime.errors import OptionError

SCHEMA = "rexthinker-edge/report/1"
ENDINGS = (".html", ".md", ".json")


def check_ending(path: Path) -> None:
    """Raise OptionError for a file that is no report, before anything is asked."""
    if path.suffix.lower() not in ENDINGS:
        raise OptionError(
            f"{path}: a report ending in {path.suffix or 'nothing'}, one of {', '.join(ENDINGS)} is needed. "
            "Rename it."
        )
    check_place(path)


def check_place(path: Path) -> None:
    """Raise OptionError where no file can be made, before anything is asked."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        seen = "a directory of that name" if path.is_dir() else "its directory does not exist"
        raise OptionError(f"{path}: {seen}, a place for a file is needed. Choose another or make it.")


def compared(
    runs: Sequence[Subjected], dataset: Dataset, trial: Trial, gate: Gate, problems: Sequence[Problem]
) -> dict[str, Any]:
    """Everything a report tells; the first run is the reference."""
    told = compare(runs)
    rests_on = setting(dataset, trial, problems, runs[0].items)
    return {**told, "report": SCHEMA, **rests_on, "gate": gate.judge(told)}


def write_report(path: Path, report: dict[str, Any], dataset: Dataset) -> None:
    """Write a report in the form that its file's ending names.

    Raises:
        OptionError: another ending, or it cannot be written there.
    """
    check_ending(path)
    ending = path.suffix.lower()
    if ending == ".json":
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    else:
        drawn = gallery if report["pairs"] else wrong_gallery
        text = markdown(report) if ending == ".md" else page(report, drawn(report, dataset))
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OptionError(
            f"{path}: cannot be written ({error.strerror}), a writable place is needed. Choose another."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
