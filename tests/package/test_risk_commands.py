"""`refer --max-risk`, `refer --explain` and `evaluate --calibrate-risk`."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.benchmarks.runs import Finished
from rexthinker_edge.cli import run
from rexthinker_edge.commands.evaluate import evaluate
from rexthinker_edge.commands.risk_card import store_risk
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.errors import DataError, OptionError
from rexthinker_edge.runtime.measured_cards import riskless_digest, write_risk
from rexthinker_edge.runtime.risk import SCORE, RiskCard, RiskStep, upper_bound


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(np.full((100, 200, 3), 90, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def calibrate(make_world):
    """Ask for more than `bar` of an answer."""

    def put(bar):
        world = make_world()
        step = RiskStep(bar, 100, 0, upper_bound(0, 100, 0.1))
        digest = riskless_digest(world.directory)
        write_risk(world.directory, RiskCard("tests", SCORE, digest, 100, 100, 0.1, 1, (step,)))

    return put


def test_max_risk(calibrate, picture, capsys):
    ask = ["refer", picture, "ball", "the red ball", "--max-risk", "0.05"]
    calibrate(0.5)
    assert run([*ask, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["status"], value["abstention"]) == ("found", None)
    calibrate(1.0)
    assert run([*ask, "--json"]) == 5
    value = json.loads(capsys.readouterr().out)
    assert (value["status"], value["boxes"], value["abstention"]["status"]) == ("ungrounded", [], "found")
    for options in ([], ["--stream"]):
        assert run([*ask, *options]) == 5
        assert "withheld: the answer's confidence is 0." in capsys.readouterr().out
    assert run(["refer", picture, "ball", "it", "that", "--max-risk", "0.05"]) == 5
    assert run(["refer", picture, "ball", "it"]) == 0


def test_what_cannot_be_promised(make_world, calibrate, picture, capsys):
    make_world()
    for risk, code, message in [
        ("0.05", 1, "max_risk: the bundle stand-in has never been calibrated for risk"),
        ("0", 2, "Invalid value for '--max-risk'"),
        ("5%", 2, "Invalid value for '--max-risk'"),
    ]:
        assert run(["refer", picture, "ball", "it", "--max-risk", risk]) == code
        assert message in capsys.readouterr().err
    calibrate(0.5)
    assert run(["refer", picture, "ball", "it", "--max-risk", "0.01"]) == 1
    assert "max_risk: 0.01, the lowest that 100 calibration answers" in capsys.readouterr().err


def test_explain(make_world, picture, tmp_path, capsys):
    make_world()
    begins = {"html": "<!DOCTYPE html>", "svg": "<svg ", "json": "{", "txt": "found, confidence "}
    for ending, begin in begins.items():
        path = tmp_path / f"why.{ending}"
        assert run(["refer", picture, "ball", "the red ball", "--explain", str(path)]) == 0
        assert path.read_text(encoding="utf-8").startswith(begin)
    capsys.readouterr()
    for path, options, code, message in [
        (tmp_path / "why.pdf", [], 1, "one of .html, .json, .svg, .txt is needed"),
        (tmp_path / "no" / "why.svg", [], 1, "no such directory"),
        (tmp_path / "why.svg", ["that"], 2, "--explain is about one expression"),
    ]:
        assert run(["refer", picture, "ball", "it", *options, "--explain", str(path)]) == code
        assert message in capsys.readouterr().err


def an_item(number, right, confidence):
    return Item(
        number, number, "a.png", "it", "attribute", "", "ball", 2, (0,), ((0.0, 0.0, 9.0, 9.0),), "found",
        indices=(0,) if right else (1,), boxes=((0.0, 0.0, 9.0, 9.0),), confidence=confidence,
    )  # fmt: skip


def a_run(bundle, count):
    header = {"dataset": "workbench:easy:1", "plan": {"boxes": "given"}}
    header["subject"] = {"digest": open_bundle(bundle).digest}
    items = [an_item(k, right=k % 25 > 0, confidence=0.99 - 0.0001 * k) for k in range(count)]
    failed = replace(an_item(count, right=True, confidence=None), status="malformed", indices=())
    return Finished(header, [*items, failed, replace(failed, status=None, error="no picture")], [])


def test_calibrate_risk(sealed_bundle, capsys):
    finished = a_run(sealed_bundle, 400)
    told = store_risk(sealed_bundle, finished)
    card = open_bundle(sealed_bundle, hashes=True).manifest.risk
    assert (card.answers, card.questions, card.source) == (400, 401, "workbench:easy:1, given boxes")
    assert told["answers"] == 400
    assert told["steps"][-1]["wrong"] == 16
    printed = capsys.readouterr().err
    assert "risk 0.01: not reached" in printed
    assert "risk 0.1: above 0.95" in printed
    with pytest.raises(OptionError, match=r"It was changed meanwhile: evaluate it again"):
        store_risk(sealed_bundle, finished)  # the bundle has another digest by now
    store_risk(sealed_bundle, a_run(sealed_bundle, 300))
    assert open_bundle(sealed_bundle).manifest.risk.answers == 300
    with pytest.raises(DataError, match="49 answers to calibrate on"):
        store_risk(sealed_bundle, a_run(sealed_bundle, 49))
    assert open_bundle(sealed_bundle).manifest.risk.answers == 300


@pytest.mark.parametrize("options", [(), ("--bundle", "small"), ("--checkpoint", "c")])
def test_calibrate_risk_needs_a_bundle_of_ones_own(options):
    result = CliRunner().invoke(evaluate, ["--dataset", "workbench:easy:1:1", "--calibrate-risk", *options])
    assert result.exit_code == 2
    assert "--calibrate-risk writes into a bundle: name yours with --bundle" in result.output
