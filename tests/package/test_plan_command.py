"""`plan` and `doctor` as a user calls them."""

import json

import pytest

from rexthinker_edge.cli import run
from rexthinker_edge.commands.plan import DEVICES
from rexthinker_edge.runtime.devices import DEVICES as KNOWN


def test_every_device_is_known():
    assert set(DEVICES) == {*KNOWN, "cpu"}


@pytest.mark.parametrize(
    ("device", "shape", "fits"), [("orin-nano-8gb", "32b", False), ("rtx-4090", "7b", True)]
)
def test_plan(device, shape, fits, capsys):
    assert run(["plan", "--device", device, "--shape", shape, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "rexthinker-edge/plan/1"
    assert report["fits"] is fits
    assert (report["spare_bytes"] >= 0) is fits
    assert report["forecast"]["token_ms"] > 0
    assert run(["plan", "--device", device, "--shape", shape]) == 0
    assert ("does not fit" in capsys.readouterr().out) is not fits


def test_precisions_change_what_it_takes(capsys):
    spare = []
    for given in ([], ["--vision", "fp32"], ["--detector-precision", "int8"], ["--head-bits", "4"],
                  ["--embeddings", "int4"], ["--precision", "int8"]):  # fmt: skip
        assert run(["plan", "--device", "rtx-3060", "--shape", "7b", *given, "--json"]) == 0
        spare.append(json.loads(capsys.readouterr().out)["spare_bytes"])
    usual, wide_vision, small_detector, small_head, small_table, wide_decoder = spare
    assert wide_decoder < wide_vision < usual < small_detector < small_table < small_head


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--picture", "big"], "--picture: 'big', width x height is needed"),
        (["--bundle", "x", "--shape", "7b"], "--bundle and --shape exclude each other"),
        (["--device", "toaster"], "'toaster' is not one of"),
        (["--vision-precision", "int8"], "--vision: a bundle has its own, this goes with --shape"),
        (["--detector-precision", "int8"], "--detector-precision: a bundle has its own"),
        (["--shape", "7b", "--threads", "1"], "--threads: of the CPU at hand, and another device was named"),
    ],
)
def test_plan_refuses(arguments, said, capsys):
    device = [] if "--device" in arguments else ["--device", "rtx-4090"]
    assert run(["plan", *device, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_doctor_of_an_absent_bundle(tmp_path, capsys):
    assert run(["doctor", "--bundle", str(tmp_path / "none"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "rexthinker-edge/doctor/1"
    assert not report["ok"]
    failed = {check["name"]: check for check in report["checks"] if check["status"] == "failed"}
    assert set(failed) == {"bundle"}
    assert failed["bundle"]["remedy"]


def test_engines_are_checked_without_tensorrt(tmp_path, capsys):
    from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415

    assert run(["export", str(small_bundle()), "--target", "tensorrt", "--dry-run"]) == 0
    assert "all on the list of TensorRT 10.0" in capsys.readouterr().out
    assert run(["export", str(tmp_path)]) == 2
    assert "--detector and --out are needed" in capsys.readouterr().err
