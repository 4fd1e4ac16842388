"""HumanRef prediction files: one JSON object a line, `id` and `extracted_predictions`.

Layout    `{"id": …, "extracted_predictions": [[x0, y0, x1, y1], …]}`, boxes in pixels of the original
          picture; a rejection is `[]` or `[[]]`. Other keys are let through: published files carry questions
          and raw answers. `id` is compared as JSON has it: 7 and "7" are two.
Contract  A line that cannot be read, and an id that no item has, is named and does not end the reading. Of
          two lines with one id the later counts, as in the public code, and the earlier is named.
          Points, which some published models give, are not boxes and are named.
Elsewhere the metric: humanref_metric.py; what a run writes besides: runs.py.
Source    docs/sources.md#humanref-metric
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rexthinker_edge.calibration.records import Box, Problem, Record, plain_numbers, read_box, read_json
from rexthinker_edge.runtime.errors import DataError, OptionError

Id = int | str


def read_predictions(path: Path, problems: list[Problem]) -> dict[Id, tuple[Box, ...]]:
    """Read predictions by item id.

    Args:
        problems: receives what could not be read or does not count.

    Raises:
        DataError: there is no such file, or no line of it is a prediction.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, predictions as JSON lines are needed. Name the file.")
    found: dict[Id, tuple[Box, ...]] = {}
    lines: dict[Id, int] = {}
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                key, boxes = _read_line(line)
            except ValueError as error:
                problems.append(Problem(path.name, number, str(error)))
                continue
            if key in found:
                problems.append(
                    Problem(path.name, lines[key], f"id {key!r} comes again in line {number}, which counts")
                )
            found[key], lines[key] = boxes, number
    if not found:
        raise DataError(
            f"{path}: no line of it is a prediction, objects with id and extracted_predictions are needed. "
            f"{problems[0].reason.capitalize() if problems else 'It is empty'}: give another file."
        )
    return found


def _read_line(line: bytes) -> tuple[Id, tuple[Box, ...]]:
    value = read_json(line)
    if not isinstance(value, dict):
        raise ValueError("the line is not a JSON object")
    for name in ("id", "extracted_predictions"):
        if name not in value:
            raise ValueError(f"no field {name!r}")
    key, rows = value["id"], value["extracted_predictions"]
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise ValueError(f"id {key!r} is neither a whole number nor text")
    if not isinstance(rows, list):
        raise ValueError("extracted_predictions is not a list of boxes")
    if rows == [[]]:
        return key, ()
    if any(isinstance(row, list) and len(row) == 2 for row in rows):
        raise ValueError("it predicts points; only boxes are scored here")
    return key, tuple(read_box(row) for row in rows)


def unknown_ids(path: Path, predictions: Iterable[Id], records: Iterable[Record]) -> list[Problem]:
    """Predictions that belong to no record, and ids that several records share."""
    known: dict[Id, int] = {}
    for record in records:
        known[record.id] = known.get(record.id, 0) + 1
    strange = [
        Problem(path.name, 0, f"id {key!r} is of no record") for key in predictions if key not in known
    ]
    twice = [key for key, count in known.items() if count > 1]
    return strange + [
        Problem(
            path.name, 0, f"id {key} is shared by {known[key]} records, all get its prediction", kept=True
        )
        for key in twice
    ]


def write_predictions(path: Path, predictions: Iterable[tuple[Id, Iterable[Box]]]) -> None:
    """Write a prediction file whole, or not at all.

    Raises:
        OptionError: it cannot be written there.
    """
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    except OSError as error:
        raise OptionError(
            f"{path}: cannot be written ({error.strerror}), a writable place is needed. Choose another."
        ) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            for key, boxes in predictions:
                row = {"id": key, "extracted_predictions": plain_numbers(list(boxes))}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        Path(partial).chmod(0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
