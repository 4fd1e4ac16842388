"""HumanRef prediction files: read, written, and what is wrong in them named."""

from pathlib import Path

import pytest

from rexthinker_edge.benchmarks.predictions import read_predictions, unknown_ids, write_predictions
from rexthinker_edge.calibration.records import Problem
from rexthinker_edge.runtime.errors import DataError, OptionError

from .conftest import record


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    path, told = tmp_path / "p.jsonl", {3: ((1.0, 2.0, 3.5, 4.0),), 1: ()}
    write_predictions(path, told.items())
    assert path.read_text() == (
        '{"id": 3, "extracted_predictions": [[1, 2, 3.5, 4]]}\n{"id": 1, "extracted_predictions": []}\n'
    )
    problems: list[Problem] = []
    assert read_predictions(path, problems) == told
    assert problems == []
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_bad_lines_are_named_and_the_later_of_two_counts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [
        '{"id": 1, "extracted_predictions": [[0, 0, 1, 1]], "raw_response": "kept out"}',
        "not json",
        "[1]",
        '{"id": 2}',
        '{"extracted_predictions": []}',
        '{"id": 2, "extracted_predictions": [[1, 2]]}',
        '{"id": 2, "extracted_predictions": [[0, 0, 1, 1], []]}',
        '{"id": 1.5, "extracted_predictions": []}',
        '{"id": 2, "extracted_predictions": {}}',
        "[" * 100_000,
        "",
        '{"id": "x", "extracted_predictions": [[]]}',
        '{"id": 1, "extracted_predictions": []}',
    ]
    path.write_text("\n".join(lines))
    problems: list[Problem] = []
    assert read_predictions(path, problems) == {1: (), "x": ()}
    assert sorted(p.line for p in problems) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    told = {p.line: p.reason for p in problems}
    assert told[1] == "id 1 comes again in line 13, which counts"
    assert told[4] == "no field 'extracted_predictions'"
    assert told[6] == "it predicts points; only boxes are scored here"
    assert "not a box of four numbers" in told[7]
    records = [record(1), record(4), record(4)]
    strange = unknown_ids(path, {1: (), "x": ()}, records)
    assert [p.reason for p in strange] == [
        "id 'x' is of no record",
        "id 4 is shared by 2 records, all get its prediction",
    ]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file, predictions as JSON lines"):
        read_predictions(tmp_path / "no.jsonl", [])
    (tmp_path / "p.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"no line of it is a prediction.*No field 'id'"):
        read_predictions(tmp_path / "p.jsonl", [])
    with pytest.raises(OptionError, match="cannot be written"):
        write_predictions(tmp_path / "no" / "p.jsonl", [])
