"""Runs: nothing asked twice, nothing lost, nothing scored that was not said."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rexthinker_edge.benchmarks.figures import grounding, is_right, report
from rexthinker_edge.benchmarks.run_file import Item, RunFile, read_run, read_top
from rexthinker_edge.benchmarks.runs import Plan, Reference, answer, kl_of_top, log_softmax, run
from rexthinker_edge.benchmarks.subjects import Reply
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.errors import DataError, OptionError

from .conftest import BOXES, Listed, Scripted, item, record

ALL = range(8)


def test_a_run_asks_every_item_once_and_goes_on(listed: Listed, tmp_path: Path) -> None:
    path, subject = tmp_path / "run.jsonl", Scripted()
    first = run(subject, listed, range(3), path, Plan())
    assert [i.number for i in first.items] == [0, 1, 2]
    told: list[tuple[int, int]] = []
    whole = run(subject, listed, ALL, path, Plan(), lambda done, total: told.append((done, total)))
    assert subject.asked == ["1", "2", "nothing", "3", "broken 1", "nothing", "2"]
    assert [i.number for i in whole.items] == [0, 1, 2, 4, 5, 6, 7]
    assert (told[0], told[-1]) == ((3, 8), (8, 8))
    assert [str(p) for p in whole.problems] == [
        "list, line 4: the line is gone (left out)",
        "list, line 6: it cannot be asked: picture: not to be read, a picture is needed. "
        "Give another. (left out)",
    ]
    assert run(subject, listed, ALL, path, Plan()).problems == whole.problems
    assert whole.items[4].status is None
    assert read_run(path)[1] == whole.items
    assert list(tmp_path.iterdir()) == [path]  # the file of likeliest tokens was not needed


def test_a_torn_line_costs_its_item_alone(listed: Listed, tmp_path: Path) -> None:
    path, subject = tmp_path / "run.jsonl", Scripted()
    whole = run(subject, listed, ALL, path, Plan(keep_top=2))
    lines = path.read_bytes().splitlines(keepends=True)
    top = path.with_name("run.jsonl.top").read_bytes()
    for cut in (1, 17, len(lines[-1]) - 1):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        path.with_name("run.jsonl.top").write_bytes(top + b"torn")
        subject.asked.clear()
        again = run(subject, listed, ALL, path, Plan(keep_top=2))
        assert set(subject.asked) == {"2"}
        assert again.items == whole.items
        assert path.with_name("run.jsonl.top").read_bytes() == top
    path.write_bytes(b"".join([lines[0], b"spoilt\n", *lines[2:]]))
    assert run(subject, listed, ALL, path, Plan(keep_top=2)).items[0].number == 0
    path.write_bytes(lines[0][:20])  # killed before the header was whole
    assert run(subject, listed, ALL, path, Plan(keep_top=2)).items == whole.items


def test_only_the_same_run_goes_on(listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(Scripted(), listed, range(1), path, Plan())
    with pytest.raises(OptionError, match=r"a run with subject .*scripted.*this one has .*other"):
        run(Scripted("other"), listed, range(1), path, Plan())
    with pytest.raises(OptionError, match="a run with plan"):
        run(Scripted(), listed, range(1), path, Plan(orders=1))
    with RunFile(tmp_path / "b.jsonl", {}), pytest.raises(OptionError, match="another process is writing it"):
        RunFile(tmp_path / "b.jsonl", {})
    (tmp_path / "c.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="its first line is no header"):
        run(Scripted(), listed, range(1), tmp_path / "c.jsonl", Plan())
    with pytest.raises(OptionError, match="cannot be written"):
        run(Scripted(), listed, range(1), tmp_path / "no" / "d.jsonl", Plan())


KILLED = """
import sys, time
from pathlib import Path
from rexthinker_edge.benchmarks.run_file import RunFile
sys.path.insert(0, sys.argv[2])
from conftest import item
with RunFile(Path(sys.argv[1]), {"subject": {}}) as file:
    for number in range(100000):
        file.add(item(number))
"""


def test_kill_9_loses_no_item_that_was_told(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), os.path.dirname(__file__)])
    deadline = time.monotonic() + 120
    while (not path.exists() or path.stat().st_size < 4000) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    with RunFile(path, {"subject": {}}) as file:
        assert list(file.items) == list(range(len(whole) - 1))
        assert len(file.items) > 2
        file.add(item(len(file.items)))
    assert len({json.loads(line).get("number") for line in path.read_bytes().splitlines()}) == len(whole) + 1


def test_other_orders_are_told_in_the_first_order(listed: Listed) -> None:
    made = answer(Scripted(), listed, 1, Plan(orders=3)).item
    assert made is not None
    assert [(a.status, a.indices) for a in made.again] == [("found", (1,))] * 3
    assert len({a.order for a in made.again}) > 1

    def first_of_the_hint(question, reply):
        return replace(reply, indices=(0,))

    moved = answer(Scripted(change=first_of_the_hint), listed, 1, Plan(orders=3)).item
    assert moved is not None
    assert [a.indices for a in moved.again] == [(a.order[0],) for a in moved.again]
    changed = report([moved])["order"]
    assert changed["changed"]["value"] == np.mean([a.order[0] != 0 for a in moved.again])
    assert changed["status_changed"]["value"] == 0
    assert (changed["turns"], changed["changed"]["count"]) == (3, 1)  # three orders of one item are one draw
    other = replace(item(0), again=tuple(replace(a, indices=(0,)) for a in moved.again))
    assert report([moved, other])["order"]["changed"]["value"] == changed["changed"]["value"] / 2


def test_the_reference_leads_other_subjects(listed: Listed, tmp_path: Path) -> None:
    path = tmp_path / "ref.jsonl"
    told = run(Scripted(), listed, ALL, path, Plan(keep_top=3)).items[0]
    ids, values = read_top(path, told) or pytest.fail("nothing was kept")
    assert ids[:, 0].tolist() == [1, 2, 3]
    logits = np.zeros((1, 5), np.float32)
    logits[0, 1] = 3
    # float32 keeps seven digits
    assert values[0, 0] == pytest.approx(log_softmax(logits)[0, 1], rel=1e-6)
    same, warm = Scripted(), Scripted("warm")
    warm.temperature = 2.0
    lead = Reference(path)
    forced = [answer(s, listed, 0, Plan(), lead.of(0)).item.forced for s in (same, warm)]
    assert forced[0].same_top == (True, True, True)
    assert max(forced[0].divergence) < 1e-6
    p, q = np.exp(log_softmax(logits))[0], np.exp(log_softmax(logits / 2))[0]
    # all tokens but the kept three are equal under both, so joining them loses nothing
    assert forced[1].divergence[0] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert lead.of(3) is None


def test_the_joined_divergence_is_a_lower_bound() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        a, b = (log_softmax(rng.normal(0, 3, (4, 9)).astype(np.float32)) for _ in range(2))
        whole = (np.exp(a) * (a - b)).sum(1)
        kept = np.argsort(-a, axis=1)[:, :4]
        part = kl_of_top(np.take_along_axis(a, kept, 1), np.take_along_axis(b, kept, 1))
        assert (part <= whole + 1e-9).all()
        assert (part >= 0).all()


def test_figures_by_hand() -> None:
    items = [
        item(0),  # right
        item(1, (1,), indices=(2,), boxes=(BOXES[2],)),  # wrong, and not what the thought marked
        item(2, (1,), status="absent", indices=(), boxes=()),  # over-rejected; the thought marked ball 2
        item(3, ()),  # rejected rightly
        item(4, (), status="malformed"),  # a failure is no rejection
        item(5, (), status=None, verdicts=(), tokens={}, ms={}),
        item(
            6, (), status="found", indices=(0,), boxes=(BOXES[0],), verdicts=("match", "no_match", "no_match")
        ),
        item(7, (0, 1), truth=None),
    ]
    told = report(items)
    assert [is_right(i) for i in items] == [True, False, False, True, False, False, False, None]
    assert told["exact"]["all"]["value"] == pytest.approx(2 / 7)
    assert told["exact"]["rejection"]["count"] == 4
    assert told["rejection"] == {"correct": 1, "total": 4, "unanswered": 2}
    assert report(items, as_published=True)["rejection"]["correct"] == 3
    assert told["rejected"]["value"] == 0.25
    assert told["over_rejected"] == {"value": 0.25, "low": 0.0, "high": 0.75, "count": 4}
    assert told["statuses"] == {
        "found": 4, "absent": 2, "no_candidates": 0, "malformed": 1, "truncated": 0, "timeout": 0,
        "ungrounded": 0,
    }  # fmt: skip
    assert told["unasked"] == 1
    assert told["average"]["recall_50"] == 0.5
    agreement = told["agreement"]
    assert (agreement["agree"]["value"], agreement["agree"]["count"]) == (pytest.approx(4 / 6), 6)
    assert (agreement["named_but_not_answered"], agreement["answered_but_not_named"]) == (2, 1)
    assert told["ms"]["total"] == {"p50": 7.0, "p95": 7.0}
    assert [told["grounding"][key]["value"] for key in ("union_iou", "point_f1")] == [0.5, 0.5]
    assert told["grounding"]["union_iou"]["count"] == 4


def test_grounding_of_answers() -> None:
    square, over, far = (0.0, 0.0, 10.0, 10.0), (5.0, 0.0, 15.0, 10.0), (90.0, 0.0, 91.0, 1.0)
    told = grounding([((square, over), (square,)), ((), (square,)), ((far, square), (square, far))])
    # two boxes over one thing: 100 of 150 px, and one of two centres; nothing; all, in another order
    assert told["union_iou"]["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert told["point_f1"]["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert grounding([])["point_f1"] == {"value": None, "low": None, "high": None, "count": 0}


def test_a_clipped_candidate_is_scored_as_the_file_has_it() -> None:
    over = replace(
        record(0),
        candidate_boxes=((-5.0, 0.0, 10.0, 10.0), *BOXES[1:]),
        answer_boxes=((-5.0, 0.0, 10.0, 10.0),),
    )

    def first(question, reply: Reply) -> Reply:
        assert question.boxes[0] == (0.0, 0.0, 10.0, 10.0)
        return replace(reply, status=Status.FOUND, indices=(0,))

    made = answer(Scripted(change=first), Listed([over]), 0, Plan())
    assert isinstance(made.item, Item)
    assert made.item.boxes == over.answer_boxes
    assert made.item.truth == (0,)
    assert [p.kept for p in made.item.problems] == [True]
