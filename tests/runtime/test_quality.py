"""Quality cards: a report becomes a card of the bundle that was asked, and of no other."""

import json
from copy import deepcopy

import pytest

from rexthinker_edge.cli import run
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.errors import BundleError, OptionError
from rexthinker_edge.runtime.measured_cards import riskless_digest, write_quality
from rexthinker_edge.runtime.strict_json import to_json

STATUSES = {"found": 60, "absent": 30, "no_candidates": 0, "malformed": 4, "truncated": 3, "timeout": 2,
            "ungrounded": 1}  # fmt: skip


def report_of(directory, dataset="workbench:full:1000000", **changed):
    """The keys of a report that a card is made of, as benchmarks/figures.py writes them."""
    asked = {"kind": "bundle", "name": "stand-in", "digest": open_bundle(directory).digest}
    return {
        "schema": "rexthinker-edge/quality/1", "dataset": dataset, "subject": asked, "items": 100,
        "plan": {"boxes": "given", "orders": 0}, "statuses": STATUSES, "unasked": 0,
        "exact": {"all": {"value": 0.57, "low": 0.47, "high": 0.66, "count": 100}},
        "average": {"density_f1_mean": 0.612, "recall_mean": 0.7},
        "rejected": {"value": None, "low": None, "high": None, "count": 0},
    } | changed  # fmt: skip


def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


def test_a_report_becomes_a_card(sealed_bundle, capsys):
    before, report = open_bundle(sealed_bundle), report_of(sealed_bundle)
    (card,) = write_quality(sealed_bundle, [report]).manifest.quality
    assert to_json(card) == {
        "dataset": "workbench:full:1000000", "boxes": "given", "items": 100, "exact": 0.57,
        "density_f1": 0.612, "rejected": None, "unusable": 0.1, "bundle": riskless_digest(sealed_bundle),
    }  # fmt: skip
    after = open_bundle(sealed_bundle, hashes=True)
    assert after.digest != before.digest  # results name the manifest as it is
    assert riskless_digest(sealed_bundle) == card.bundle
    assert [path.name for path in sealed_bundle.parent.iterdir()] == [sealed_bundle.name]
    assert run(["info", str(sealed_bundle)]) == 0
    line = (
        "workbench:full:1000000, 100 items, given boxes: exact answers 57.0, DensityF1 61.2, unusable 10.0 %"
    )
    assert f"quality     {line}\n" in capsys.readouterr().out


def test_cards_of_other_datasets_are_added_and_of_the_same_replaced(sealed_bundle):
    full, easy = report_of(sealed_bundle), report_of(sealed_bundle, "workbench:easy:1000000")
    write_quality(sealed_bundle, [full])
    write_quality(sealed_bundle, [easy])  # measured before the first card was written
    again = report_of(sealed_bundle, exact={"all": {"value": 0.6}})  # and one measured after both
    found = write_quality(sealed_bundle, [again]).manifest.quality
    assert [(card.dataset, card.exact) for card in found] == [
        ("workbench:easy:1000000", 0.57), ("workbench:full:1000000", 0.6)
    ]  # fmt: skip


def test_a_bundle_without_the_key_opens(sealed_bundle, capsys):
    value = {key: item for key, item in manifest(sealed_bundle).items() if key not in ("quality", "drafts")}
    (sealed_bundle / "manifest.json").write_text(json.dumps(value))
    report = report_of(sealed_bundle)
    assert open_bundle(sealed_bundle).manifest.quality == ()
    assert run(["info", str(sealed_bundle)]) == 0
    out = capsys.readouterr().out
    assert "quality     not measured" in out
    assert "drafts      no table" in out
    assert len(write_quality(sealed_bundle, [report]).manifest.quality) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "rexthinker-edge/bench/1"}, "quality: schema 'rexthinker-edge/bench/1'"),
        ({"subject": {"kind": "bundle", "name": "x", "digest": "0" * 64}}, "a report of x (000000000000…)"),
        ({"subject": {"kind": "checkpoint", "name": "y"}}, "a report of y (None…)"),
        ({"statuses": {}}, "a report without 'malformed'"),
        ({"items": 0}, "has no items or a share outside 0 to 1"),
        ({"average": {"density_f1_mean": 1.2}}, "has no items or a share outside 0 to 1"),
    ],
)
def test_other_reports_are_refused(sealed_bundle, change, told):
    report = report_of(sealed_bundle) | change
    before = (sealed_bundle / "manifest.json").read_bytes()
    with pytest.raises(OptionError) as caught:
        write_quality(sealed_bundle, [report])
    assert told in str(caught.value)
    assert (sealed_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda value: value["quality"][0].update(tone=1), r"unknown key quality\[0\].tone"),
        (lambda value: value["quality"][0].update(exact="all"), r"quality\[0\].exact"),
        (lambda value: value.update(name="other"), "the quality card of .* is of bundle .*, not "),
        (
            lambda value: value["quality"].append(deepcopy(value["quality"][0])),
            "two quality cards are of one",
        ),
        (lambda value: value["quality"][0].update(unusable=-0.1), "a share outside 0 to 1"),
        (lambda value: value.update(quality=value["quality"] * 101), "101 quality cards, at most 100"),
    ],
)
def test_edited_cards_are_refused(sealed_bundle, edit, told):
    write_quality(sealed_bundle, [report_of(sealed_bundle)])
    value = manifest(sealed_bundle)
    edit(value)
    (sealed_bundle / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match=told):
        open_bundle(sealed_bundle)


def test_the_command(sealed_bundle, tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report_of(sealed_bundle)))
    assert run(["export", str(sealed_bundle), "--quality", str(path)]) == 0
    assert "exact answers 57.0" in capsys.readouterr().out
    path.write_text("{")
    assert run(["export", str(sealed_bundle), "--quality", str(path)]) == 1
    assert "a report of `evaluate --report` is needed" in capsys.readouterr().err
    assert run(["export", str(tmp_path / "vlm"), "--quality", str(path)]) == 2
    assert "is no bundle. Export it first" in capsys.readouterr().err
