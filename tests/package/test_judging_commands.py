"""`evaluate`, `compare` and `data show` from the command line: the fixed JSON, exit codes, usage errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rexthinker_edge.benchmarks import trials
from rexthinker_edge.benchmarks.comparison import Subjected
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.calibration.humanref import write_humanref
from rexthinker_edge.calibration.records import Record
from rexthinker_edge.commands.compare import compare
from rexthinker_edge.commands.data import data
from rexthinker_edge.commands.evaluate import evaluate
from rexthinker_edge.runtime.errors import DataError, OptionError

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "small" / "vlm"
BOXES = ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0))
METRICS = {
    "recall_50", "recall_mean", "precision_50", "precision_mean", "density_f1_50", "density_f1_mean", "count",
}  # fmt: skip


def invoke(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def humanref(tmp_path: Path) -> Path:
    """Four records: two answerable, two rejections."""
    records = [
        Record(k, f"{k}.png", f"ball {k}", "rejection" if k > 1 else "attribute", "color", "ball", BOXES,
               () if k > 1 else BOXES[:1])
        for k in range(4)
    ]  # fmt: skip
    write_humanref(tmp_path / "set", [(r, np.zeros((20, 40, 3), np.uint8)) for r in records])
    return tmp_path / "set"


def predictions(path: Path, told: dict[int, list]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": k, "extracted_predictions": v}) + "\n" for k, v in told.items())
    )
    return path


def test_the_contract_of_predictions(humanref: Path, tmp_path: Path) -> None:
    path = predictions(tmp_path / "p.jsonl", {0: [[0, 0, 10, 10], [20, 0, 30, 10]], 1: [], 2: [[]]})
    arguments = ("--dataset", f"humanref:{humanref}", "--predictions", path, "--json")
    told = json.loads(invoke(evaluate, *arguments).stdout)
    assert set(told) == {"average", "domain", "subdomain", "box_count", "rejection"}
    # the first item: recall 1, precision 1/2, F1 2/3, density 1/2; the second scores nothing
    row = {
        "recall_50": 0.5, "recall_mean": 0.5, "precision_50": 0.25, "precision_mean": 0.25,
        "density_f1_50": 1 / 6, "density_f1_mean": 1 / 6, "count": 2,
    }  # fmt: skip
    assert set(row) == METRICS
    for found in (
        told["average"],
        told["domain"]["attribute"],
        told["subdomain"]["color"],
        told["box_count"]["1"],
    ):
        assert found == pytest.approx(row)
    assert told["rejection"] == {"correct": 1, "total": 2, "unanswered": 1}
    published = json.loads(invoke(evaluate, *arguments, "--as-published").stdout)
    assert published["rejection"] == {"correct": 2, "total": 2, "unanswered": 1}
    assert {**published, "rejection": 0} == {**told, "rejection": 0}


def test_predictions_for_people_and_as_a_report(humanref: Path, tmp_path: Path) -> None:
    path = predictions(tmp_path / "p.jsonl", {0: [[0, 0, 10, 10]], 7: []})
    result = invoke(
        evaluate, "--dataset", f"humanref:{humanref}", "--predictions", path, "--report", tmp_path / "r.json"
    )
    assert "rejections: 0 of 2 correct, 2 without a usable answer" in result.stdout
    assert "no prediction of 3 items; where there is an answer they score 0" in result.stdout
    assert "p.jsonl: id 7 is of no record (left out)" in result.stderr
    whole = json.loads((tmp_path / "r.json").read_text())
    assert whole["intervals"]["average"]["density_f1_mean"] == [0.0, 1.0]
    assert whole["problems"] == ["p.jsonl: id 7 is of no record (left out)"]
    assert (whole["unpredicted"], whole["records"]) == (3, [0, 4])
    assert whole["grounding"]["union_iou"]["value"] == 0.5
    assert "one-to-one F1 of centres 50.0 % (0.0 to 100.0) of 2" in result.stdout


def test_predictions_of_some_records(humanref: Path, tmp_path: Path) -> None:
    """--start and --count choose what is scored; a prediction of another record is no stranger."""
    path = predictions(tmp_path / "p.jsonl", {0: [[0, 0, 10, 10]], 1: [], 3: []})
    arguments = ("--dataset", f"humanref:{humanref}", "--predictions", path, "--json")
    told = json.loads(invoke(evaluate, *arguments, "--count", 1).stdout)
    assert (told["average"]["density_f1_mean"], told["rejection"]["total"]) == (1.0, 0)
    result = invoke(evaluate, *arguments, "--start", 1, "--count", 2)
    assert result.stderr == ""
    told = json.loads(result.stdout)
    assert (told["average"]["count"], told["average"]["recall_50"]) == (1, 0.0)
    assert told["rejection"] == {"correct": 0, "total": 1, "unanswered": 1}
    told = json.loads(invoke(evaluate, *arguments, "--start", 2, "--count", 1).stdout)
    assert told["rejection"] == {"correct": 0, "total": 1, "unanswered": 1}
    strange = predictions(tmp_path / "q.jsonl", {"0": [], "1": []})
    with pytest.raises(DataError, match=r"any of the 4 readable records .*ids such as \[0, 1, 2\]"):
        invoke(evaluate, *arguments[:3], strange, "--as-published")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (evaluate, ("--dataset", "workbench:easy", "--bundle", "a", "--checkpoint", "b"), "one of them"),
        (evaluate, ("--dataset", "workbench:easy", "--dtype", "bf16"), "--dtype goes with --checkpoint"),
        (
            evaluate,
            ("--dataset", "workbench:easy", "--predictions", "p", "--bundle", "b", "--orders", "0"),
            "--predictions asks nothing: leave out --bundle, --orders.",
        ),
        (
            evaluate,
            ("--dataset", "workbench:easy", "--boxes", "detector", "--orders", "1"),
            "the detector's come in its own order",
        ),
        (compare, ("small", "b", "--boxes", "detector", "--orders", "1"), "come in its own order"),
        (
            evaluate,
            ("--dataset", "workbench:easy", "--predictions", "p", "--report", "r.html"),
            "its --report is FILE.json",
        ),
        (
            evaluate,
            ("--dataset", "workbench:easy", "--checkpoint", "b", "--boxes", "detector"),
            "has no detector",
        ),
        (
            evaluate,
            ("--dataset", "workbench:easy", "--bundle", "b", "--boxes", "detector", "--calibrate-risk"),
            "the truth is no set of the detector's candidates",
        ),
        (compare, ("small",), "two subjects or more"),
        (compare, ("small", "b@fp32", "--boxes", "detector"), "has no detector"),
        (compare, ("small", "b", "--max-flips", "200%"), "a share such as 2%"),
        (compare, ("small", "b", "--max-flips", "few"), "a share such as 2%"),
    ],
)
def test_usage(command, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 2
    assert message in result.output


def test_a_report_in_no_form_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"ending in \.pdf, one of \.html, \.md, \.json is needed"):
        invoke(compare, "a", "b", "--report", tmp_path / "r.pdf")
    with pytest.raises(OptionError, match=r"ending in \.pdf, one of \.html, \.md, \.json is needed"):
        invoke(evaluate, "--dataset", "workbench:easy", "--report", tmp_path / "r.pdf")
    with pytest.raises(OptionError, match="its directory does not exist"):
        invoke(evaluate, "--dataset", "workbench:easy", "--report", tmp_path / "no" / "r.md")
    for option in ("--report", "--write-predictions"):
        with pytest.raises(OptionError, match="its directory does not exist"):
            invoke(evaluate, "--dataset", "workbench:easy", option, tmp_path / "no" / "r")
    for subject in ("none", tmp_path, f"{CHECKPOINT}@int3"):
        with pytest.raises(OptionError, match=r"no manifest\.json and no config|number format 'int3'"):
            invoke(compare, "small", subject, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_reports_of_a_run(tmp_path: Path) -> None:
    reports = [tmp_path / f"r{ending}" for ending in (".html", ".md", ".json", "")]
    named = [part for path in reports for part in ("--report", path)]
    out = ("--out", tmp_path / "run.jsonl")
    told = json.loads(
        invoke(evaluate, "--dataset", "workbench:easy:3:2", "--threads", 1, *out, *named, "--json").stdout
    )
    page, text, *machine = (path.read_text(encoding="utf-8") for path in reports)
    assert [json.loads(one) for one in machine] == [told, told]
    name = told["subject"]["name"]
    assert page.startswith("<!DOCTYPE html>")
    assert f"<title>{name}</title>" in page
    assert text.startswith(f"# {name}\n\n2 items of workbench:easy:3:2.\n")


def test_errors(humanref: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no manifest\.json and no config\.json"):
        invoke(evaluate, "--dataset", "workbench:easy:1:1", "--bundle", tmp_path)
    with pytest.raises(DataError, match="workbench:easy:1:0: it has no records"):
        invoke(compare, "small", "small", "--dataset", "workbench:easy:1:0")
    with pytest.raises(OptionError, match="record 9, the dataset has 4"):
        invoke(evaluate, "--dataset", f"humanref:{humanref}", "--start", 9)
    with pytest.raises(DataError, match="record 4 asked for, there are 4"):
        invoke(data, "show", f"humanref:{humanref}", "--index", 4)
    with pytest.raises(OptionError, match=r"ending in \.bmp"):
        invoke(data, "show", f"humanref:{humanref}", "--out", tmp_path / "x.bmp")
    with pytest.raises(OptionError, match="cannot be written"):
        invoke(data, "show", f"humanref:{humanref}", "--out", tmp_path / "no" / "x.html")
    (humanref / "images").rename(humanref / "elsewhere")
    with pytest.raises(DataError, match=r"none of its records could be asked, .* --images"):
        invoke(evaluate, "--dataset", f"humanref:{humanref}", "--threads", 1, "--out", tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("arguments", "code"), [((), 0), (("--max-flips", "100%"), 0), (("--max-flips", "2%"), 6)]
)
def test_the_gate_is_an_exit_code(
    arguments: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def item(status: str) -> Item:
        return Item(0, 0, "a.png", "ball", "rejection", "", "ball", 2, (), (), status)

    def hold(specs, trial, folder):
        assert (trial.numbers, trial.orders, trial.device) == (range(3), 2, "cpu")
        return [Subjected(s, {}, {}, [item(t)]) for s, t in zip(specs, ("absent", "found"), strict=True)], []

    monkeypatch.setattr(trials, "hold", hold)
    result = CliRunner().invoke(
        compare,
        ["a", "b", "--dataset", "workbench:easy:1:3", "--json", *arguments, "--orders", "2",
         "--report", str(tmp_path / "r.html"), "--report", str(tmp_path / "r.json")],
        standalone_mode=False,
    )  # fmt: skip
    assert result.return_value == code, result.output
    told = json.loads(result.stdout.splitlines()[0])
    assert told["schema"] == "rexthinker-edge/comparison/1"
    assert told == json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert told["gate"]["passed"] == (code == 0)
    assert ("gate: b: 100.00 % of the answers flipped" in result.stderr) == (code == 6)


def test_data_show(humanref: Path, tmp_path: Path) -> None:
    (humanref / "images" / "3.png").unlink()
    page, image = tmp_path / "x.html", tmp_path / "x.png"
    result = invoke(data, "show", f"humanref:{humanref}", "--index", 0, 2, 3, "--out", page)
    assert "the picture 3.png is missing (left out)" in result.stderr
    text = page.read_text(encoding="utf-8")
    assert text.count('<section class="record">') == 2
    assert text.count('class="candidate c0 answer"') == 1
    invoke(data, "show", f"humanref:{humanref}", "--index", 1, "--out", image)
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert "→ Ball 1  [0, 0, 10, 10]" in invoke(data, "show", f"humanref:{humanref}").stdout
    with pytest.raises(DataError, match="none of the records can be shown"):
        invoke(data, "show", f"humanref:{humanref}", "--index", 3)
