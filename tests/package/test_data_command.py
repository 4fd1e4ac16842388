"""`data make`: both layouts from the command line, the same items whatever the count."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rexthinker_edge.calibration.humanref_cot import HumanRefCot
from rexthinker_edge.calibration.workbench.items import make_item
from rexthinker_edge.commands.data import data
from rexthinker_edge.runtime.errors import DataError


def _make(directory: Path, *options: str) -> str:
    result = CliRunner().invoke(data, ["make", str(directory), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_items_do_not_depend_on_the_count(tmp_path: Path) -> None:
    for count in (2, 4):
        told = _make(tmp_path / str(count), "--level", "easy", "--seed", "5", "--count", str(count))
        assert told == f"{count} easy items of seed 5 in {tmp_path / str(count)} (humanref)\n"
    two, four = ((tmp_path / n / "annotations.jsonl").read_text(encoding="utf-8") for n in ("2", "4"))
    assert four.startswith(two)
    for line in two.splitlines():
        name = json.loads(line)["image_name"]
        assert (tmp_path / "2" / "images" / name).read_bytes() == (
            tmp_path / "4" / "images" / name
        ).read_bytes()
    said = [json.loads(line)["referring"] for line in four.splitlines()]
    assert said == [make_item("easy", 5, index).question.expression for index in range(4)]


def test_the_cot_layout_holds_every_item_once(tmp_path: Path) -> None:
    _make(tmp_path / "set", "--level", "full", "--seed", "6", "--count", "6", "--layout", "humanref-cot")
    with HumanRefCot(tmp_path / "set") as dataset:
        records = [record for _, record in dataset.records([])]
        found, absent = records[: len(dataset.pairs[0])], records[len(dataset.pairs[0]) :]
    assert all(record.answer_boxes for record in found)
    assert not any(record.answer_boxes for record in absent)
    said = sorted(record.referring for record in found + absent)
    assert said == sorted(make_item("full", 6, index).question.expression for index in range(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "hard"], "'hard' is not one of 'easy', 'full'"),
        (["--count", "0"], "0 is not in the range x>=1"),
        (["--seed", "-1"], "-1 is not in the range x>=0"),
        (["--layout", "coco"], "'coco' is not one of 'humanref', 'humanref-cot'"),
        (["--colour"], "No such option"),
    ],
)
def test_wrong_options_are_usage_errors(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["make", str(tmp_path / "set"), *options])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "set").exists()


def test_a_filled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="the folder has files in it"):
        CliRunner().invoke(data, ["make", str(tmp_path), "--count", "1"], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
