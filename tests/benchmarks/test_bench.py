"""The whole bench on a tiny bundle: its schema, its real answers, and what it says when they are not."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from rexthinker_edge.benchmarks import bench as benches
from rexthinker_edge.benchmarks import speed
from rexthinker_edge.benchmarks.bench import Plan, picture_size
from rexthinker_edge.benchmarks.bench_questions import EXPRESSIONS, fitted, padded_boxes, questions
from rexthinker_edge.benchmarks.bench_text import as_markdown, as_table, faults
from rexthinker_edge.benchmarks.random_bundle import random_bundle
from rexthinker_edge.cli import run
from rexthinker_edge.commands.bench import bench as command
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.scene import Scene
from rexthinker_edge.runtime.thinker import load, small_bundle

QUICK = {"ceiling_seconds": 0.0, "ceiling_bytes": 1 << 20}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "tiny"
    with random_bundle("tiny", place):
        return place


@pytest.fixture(scope="module")
def plan(tiny):
    return Plan(bundle=tiny, threads=1, count=2, tokens=6, size=(160, 120), **QUICK)


@pytest.fixture(scope="module")
def report(plan):
    return benches.bench(plan)


@pytest.fixture(scope="module")
def small_seen():
    """One picture asked of the small bundle, whose answers mean something."""
    thinker = load(small_bundle(), threads=1)
    limits = benches.pixel_limits(open_bundle(small_bundle()))
    return speed.Bench(thinker, limits, tokens=60).run(questions(2, (240, 180)), lambda done: None)


SCHEMA = {
    "schema": str, "machine": dict, "bundle": dict,
    "ceilings": {"read_gb_s": float, "int8_gflop_s": float, "fp32_gflop_s": float},
    "stages": {
        name: {"p50_ms": float, "p95_ms": float, "ceiling_ms": float, "share": float}
        for name in ("detect", "vision", "prefill", "token")
    },
    "first": {"ttft_ms": float, "total_ms": float},
    "second": {"ttft_ms": float, "total_ms": float, "reused": int, "prompt": int},
    "together": {"1": float, "2": float, "4": float, "8": float},
    "drafting": {"off_ms": float, "on_ms": float, "tokens_per_pass": float, "identical": bool},
    "load": {"cold_ms": float, "warm_ms": float}, "peak_bytes": int,
}  # fmt: skip


def check(value, schema, where="report"):
    if isinstance(schema, dict):
        assert set(value) == set(schema), where
        for key, inner in schema.items():
            check(value[key], inner, f"{where}.{key}")
        return
    assert type(value) is schema, where
    if schema is float:
        assert math.isfinite(value), where
        assert value > 0, where


def test_the_report_has_exactly_its_schema(report):
    check(report, SCHEMA)
    assert report["schema"] == "rexthinker-edge/bench/1"
    assert json.loads(json.dumps(report)) == report


def test_machine_versions_and_bundle_are_inside(report, tiny):
    opened = open_bundle(tiny)
    assert report["bundle"]["digest"] == opened.digest
    assert report["bundle"]["random"]
    assert report["machine"]["threads"] == 1
    assert report["machine"]["versions"]["onnxruntime"]
    assert report["machine"]["energy"]["available"] in (True, False)
    assert "throttled" in report["machine"]["throttling"]
    assert set(report["bundle"]["work"]) == set(report["stages"])


def test_figures_belong_together(report):
    for name, stage in report["stages"].items():
        assert stage["share"] == pytest.approx(stage["ceiling_ms"] / stage["p50_ms"]), name
        assert stage["p50_ms"] <= stage["p95_ms"]
    assert report["first"]["ttft_ms"] <= report["first"]["total_ms"]
    assert 0 < report["second"]["reused"] < report["second"]["prompt"]
    assert report["bundle"]["ready_ms"]["warm"] >= report["load"]["warm_ms"]
    assert sum(report["bundle"]["statuses"].values()) == 2 * (2 + 1 + 2 + 4 + 8)
    assert 1 <= report["bundle"]["answer_tokens"] <= 6
    assert 1 <= report["drafting"]["tokens_per_pass"] <= 6
    assert report["drafting"]["identical"]
    assert report["bundle"]["together_identical"]
    assert faults(report) == []


def test_ceilings_are_the_best_of_before_and_after(plan, monkeypatch):
    told = iter([benches.Ceilings(1.0, 9.0, 4.0), benches.Ceilings(2.0, 5.0, 4.0)])
    monkeypatch.setattr(benches, "measure_ceilings", lambda *_, **__: next(told))
    monkeypatch.setattr(speed, "TOGETHER", (1,))
    again = benches.bench(replace(plan, count=1))
    assert again["ceilings"] == {"read_gb_s": 2.0, "int8_gflop_s": 9.0, "fp32_gflop_s": 4.0}
    work = again["bundle"]["work"]["token"]
    expected = max(work["bytes"] / 2.0, work["int8_ops"] / 9.0 + work["fp32_ops"] / 4.0) / 1e6
    assert again["stages"]["token"]["ceiling_ms"] == pytest.approx(expected)


def test_answers_of_the_small_bundle_are_real(small_seen):
    assert small_seen.drafting_identical
    assert small_seen.together_identical
    assert small_seen.given_boxes in (0, 1)
    assert set(small_seen.statuses) <= {"found", "absent", "truncated", "malformed", "ungrounded"}
    assert all(len(group.results) == count for count, (group,) in small_seen.together.items())
    assert sorted(small_seen.together) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "change",
    [
        lambda results: [],
        lambda results: results[:-1],
        lambda results: results[::-1],
        lambda results: [replace(result, token_ids=()) for result in results],
        lambda results: [replace(results[0], token_ids=results[0].token_ids[:-1]), *results[1:]],
        lambda results: [*results[:-1], replace(results[-1], boxes=[[0.0, 0.0, 1.0, 1.0]])],
    ],
)
def test_answers_that_are_not_real_are_found(small_seen, change):
    group = small_seen.together[8][0]
    for count, groups in small_seen.together.items():
        if count == 8:
            changed = small_seen.together | {count: [replace(groups[0], results=change(group.results))]}
            assert not replace(small_seen, together=changed).together_identical
    assert not replace(small_seen, alone=[]).together_identical


def test_a_draft_that_changes_a_token_is_found(small_seen):
    asked = small_seen.second[0]
    other = replace(asked.result, token_ids=(*asked.result.token_ids, 1))
    assert not replace(small_seen, second=[replace(asked, result=other)]).drafting_identical


def test_a_runtime_that_answers_wrongly_together_ends_with_1(tiny, monkeypatch, capsys):
    honest = Scene.refer_many

    def lazy(scene, expressions, *rest):
        return honest(scene, list(expressions)[:1], *rest) * len(list(expressions))

    monkeypatch.setattr(Scene, "refer_many", lazy)
    quick(monkeypatch)
    arguments = [
        "--bundle",
        str(tiny),
        "--count",
        "1",
        "--tokens",
        "3",
        "--threads",
        "1",
        "--picture",
        "96x96",
    ]
    assert run(["bench", *arguments]) == 1
    told = capsys.readouterr()
    assert "error: together: an answer has other tokens than alone" in told.err
    assert "DIFFERENT TOKENS" in told.out


def quick(monkeypatch):
    slow = benches.measure_ceilings
    monkeypatch.setattr(
        benches, "measure_ceilings", lambda threads, *_, **__: slow(threads, 1 << 20, 128, 0.0)
    )


@pytest.mark.parametrize(("style", "lines"), [((), 30), (("--markdown",), 30), (("--json",), 1)])
def test_the_last_line_is_one_json_object(report, monkeypatch, style, lines):
    monkeypatch.setattr(benches, "bench", lambda plan, told: report)
    done = CliRunner().invoke(command, style)
    assert done.exit_code == 0
    out = done.stdout.splitlines()
    assert json.loads(out[-1]) == report
    assert len(out) >= lines
    assert (len(out) == 1) == (style == ("--json",))


def test_a_shape_is_built_where_it_shall_stay_and_measured(tiny, report, monkeypatch):
    asked = []
    monkeypatch.setattr(benches, "bench", lambda plan, told: asked.append(plan) or report)
    arguments = ["--shape", "tiny", "--keep", str(tiny), "--picture", "64x48", "--threads", "2", "--json"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert asked == [Plan(bundle=tiny, threads=2, size=(64, 48))]


@pytest.mark.parametrize("text", [as_table, as_markdown])
def test_tables_show_every_figure(report, text):
    shown = text(report)
    stages = report["stages"].values()
    figures = [f"{stage[name]:,.2f}" for stage in stages for name in ("p50_ms", "p95_ms", "ceiling_ms")]
    late = report["bundle"]["p95_ms"]
    figures += [f"{ms:,.1f}" for ms in (*report["together"].values(), *late["together"].values())]
    figures += [f"{late[name][one]:,.1f}" for name in ("first", "second") for one in ("ttft_ms", "total_ms")]
    figures += [f"{report['ceilings']['read_gb_s']:,.1f} GB/s", report["bundle"]["digest"][:12]]
    figures += [f"{report['load']['cold_ms']:,.0f} ms cold", "the same tokens", "random numbers"]
    figures += [f"peak memory {report['peak_bytes'] / 2**20:,.0f} MiB"]
    for figure in figures:
        assert figure in shown, figure


def test_what_the_machine_does_not_tell_has_a_line(report):
    machine = report["machine"] | {
        "energy": {"available": False, "why": "no RAPL, no power sensor"},
        "throttling": {
            "throttled": None, "events": {}, "clock_share": None, "hottest_c": None, "why": "no counters"
        },
        "cold_load": {"dropped": False, "why": "posix_fadvise: no", "cached_share": None},
        "peak_since_load": False, "others_share": 0.3, "waited_share": 0.4,
    }  # fmt: skip
    shown = as_table(report | {"machine": machine})
    assert "QUIET MACHINE: other programs had 30 % of its cores, threads waited for one 40 %" in shown
    assert "energy: not told (no RAPL, no power sensor)" in shown
    assert "throttling: not told (no counters)" in shown
    assert "not cold: posix_fadvise: no" in shown
    assert "the bench's own arrays included" in shown


def test_what_the_machine_tells_has_its_figure(report):
    machine = report["machine"] | {
        "energy": {
            "available": True, "seconds": 2.0, "joules": {"VDD": 30.0}, "watts": {"VDD": 15.0},
            "joules_per_expression": {"VDD": 1.5},
        },
        "throttling": {"throttled": True, "events": {"a": 3}, "clock_share": 0.5, "hottest_c": 80.4},
        "cold_load": {"dropped": True, "why": None, "cached_share": 0.02}, "others_share": 0.01,
        "waited_share": 0.4,
    }  # fmt: skip
    shown = as_table(report | {"machine": machine})
    assert "QUIET" not in shown
    assert "energy: VDD 15.0 W, 1.50 J an expression" in shown
    assert "throttled: 3 events; 80 °C at the hottest; clock at 50 % of its most" in shown
    assert "2 % of the files stayed in memory" in shown


def test_questions_are_of_one_size_and_always_the_same():
    one, two = questions(2, (200, 100)), questions(2, (200, 100))
    assert [question.pixels_HWC.shape for question in one] == [(100, 200, 3)] * 2
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.pixels_HWC, b.pixels_HWC)
        assert a.expressions == b.expressions
        assert len(set(a.expressions)) == EXPRESSIONS
        assert (a.boxes >= 0).all()
        assert (a.boxes <= [200, 100, 200, 100]).all()


def test_a_picture_is_scaled_and_its_boxes_with_it():
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:20] = 255
    made, scale, corner = fitted(pixels, (100, 80))
    assert (made.shape, scale, corner) == ((80, 100, 3), 2.0, (30.0, 0.0))
    assert made[10, 50, 0] > 200
    assert made[70, 50, 0] < 50
    assert abs(int(made[10, 5, 0]) - 128) <= 1
    assert padded_boxes(np.zeros((0, 4)), (100, 80)).tolist()[0] == [0.0, 0.0, 16.0, 16.0]
    assert len(padded_boxes(np.ones((12, 4)), (100, 80))) == 9


def test_pictures_are_of_a_size_that_the_bundle_was_made_for(tiny):
    assert picture_size(Plan(), open_bundle(tiny)) == (320, 240)
    assert picture_size(Plan(size=(64, 48)), open_bundle(tiny)) == (64, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bundle", "a", "--shape", "7b"), "--bundle and --shape exclude each other"),
        (("--keep", "a"), "--keep goes with --shape"),
        (("--json", "--markdown"), "--markdown and --json exclude each other"),
        (("--picture", "big"), "--picture: 'big', width x height of 32 to 8192 is needed"),
        (("--picture", "16x9000"), "--picture: '16x9000'"),
        (("--shape", "70b"), "'70b' is not one of"),
        (("--count", "0"), "--count"),
    ],
)
def test_usage(arguments, message, capsys):
    assert run(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_bundle_that_is_not_there_is_an_error(tmp_path, capsys):
    assert run(["bench", "--bundle", str(tmp_path / "none")]) == 1
    assert "no such directory, a bundle is needed" in capsys.readouterr().err
