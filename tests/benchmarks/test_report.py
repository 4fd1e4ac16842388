"""The report: its figures by hand, its page as a browser reads it, nothing from elsewhere or unescaped."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rexthinker_edge.benchmarks import report_charts as charts
from rexthinker_edge.benchmarks.comparison import Subjected
from rexthinker_edge.benchmarks.distributions import (
    answer_pairs,
    coverage,
    reliability,
    tokens_per_pass,
    verdict_groups,
)
from rexthinker_edge.benchmarks.gate import Gate
from rexthinker_edge.benchmarks.intervals import ratio, share
from rexthinker_edge.benchmarks.report import ENDINGS, check_ending, compared, write_report
from rexthinker_edge.benchmarks.report_alone import alone
from rexthinker_edge.benchmarks.report_gallery import gallery
from rexthinker_edge.benchmarks.report_setting import questions_digest
from rexthinker_edge.benchmarks.report_svg import Axis, spread_labels, ticks
from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.benchmarks.subjects import BundleSubject, verdict_confidences
from rexthinker_edge.benchmarks.trials import Trial
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.thinker import load

from .conftest import BOXES, Listed, item, record

HOSTILE = '<script>alert("x")</script>\x1b[31m & ```` | "'
TEXT = "<think># Step 1\n- Ball 1: red ✅\n- Ball 2: blue ❌</think><answer>json\n[]</answer>"
VOID = ("meta", "br")


def items(confident: bool = False) -> list[Item]:
    """Eight answerable and two rejections, right; with confidences where asked."""
    made = [replace(item(k), text=TEXT) for k in range(8)] + [item(8, ()), item(9, ())]
    if not confident:
        return made
    return [
        replace(one, confidence=0.5 + one.number / 20, verdict_confidences=(0.9, 0.8, None)) for one in made
    ]


def flipped(**fields: object) -> list[Item]:
    """Two flips in ten."""
    made = items()
    made[0] = replace(made[0], indices=(1,), boxes=(BOXES[1],), token_ids=(1, 9, 3), **fields)
    made[9] = item(9, (), status="malformed", text=HOSTILE)
    return made


@pytest.fixture
def scenes() -> Listed:
    return Listed([record(k) for k in range(8)] + [record(8, ()), record(9, ())])


def made(scenes: Listed, second: list[Item] | None = None, name: str = "int4", **details: object) -> dict:
    first = Subjected("fp32", {"kind": "bundle", "digest": "d" * 64}, {"decoder_bits": 16.0}, items(), 2**28)
    other = Subjected(name, {}, dict(details), flipped() if second is None else second)
    return compared([first, other], scenes, Trial("listed:all", None, range(10)), Gate(0.5, 0.02), [])


class Reader(HTMLParser):
    """Tags that do not close, ids, and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open += [] if tag in VOID else [tag]
        self.look(attrs)

    def look(self, attrs: list) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "action", "data", "srcset"):
                self.links.append(value)
            assert not name.startswith("on"), f"a script hides in {name}"

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.look(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def page_of(path: Path, report: dict, scenes: Listed) -> str:
    write_report(path / "r.html", report, scenes)
    return (path / "r.html").read_text(encoding="utf-8")


def test_the_page_holds_everything_itself(scenes: Listed, tmp_path: Path) -> None:
    text = page_of(tmp_path, made(scenes), scenes)
    read = Reader(text)
    assert read.open == []
    assert [name for name, count in Counter(read.ids).items() if count > 1] == []
    assert all(link.startswith(("#", "data:image/")) for link in read.links), read.links
    assert {link[1:] for link in read.links if link.startswith("#")} <= set(read.ids)
    for foreign in ("<script", "http:", "https:", "url(", "@import", "<link", "<iframe"):
        assert foreign not in text, foreign
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_every_chart_speaks_to_those_who_cannot_see_it(scenes: Listed, tmp_path: Path) -> None:
    text = page_of(tmp_path, made(scenes, items(confident=True), decoder_bits=5.0), scenes)
    drawn = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    names = set()
    for chart in drawn:
        root = ElementTree.fromstring(chart)
        names.add(root[0].get("id"))
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"
        assert (root[0].tag, root[1].tag) == ("title", "desc")
        assert root[0].text
        assert root[1].text
        width, height = map(float, root.get("viewBox").split()[2:])
        for one in root.iter("text"):
            assert -2 <= float(one.get("x")) <= width, one.text
            assert 0 <= float(one.get("y")) <= height, one.text
    assert names == {
        "latency-t", "bits-t", "legend-t", "domains-t", "differences-t", "waterfall-t", "passes-t",
        "reliability-verdicts-1-t", "reliability-answers-1-t", "coverage-t",
    }  # fmt: skip


def overlapping(chart: str) -> list[tuple[str, str]]:
    """Pairs of texts of a chart that lie over each other; upright ones are left out."""
    placed = []
    for one in ElementTree.fromstring(chart).iter("text"):
        if one.get("transform") is None:
            wide = 6.6 * len(one.text)  # a little below the mean advance: what overlaps here does anywhere
            shift = {"start": 0.0, "middle": wide / 2, "end": wide}[one.get("text-anchor")]
            left, base = float(one.get("x")) - shift, float(one.get("y"))
            placed.append((left, base - 9, left + wide, base + 2, one.text))
    return [
        (a[4], b[4])
        for k, a in enumerate(placed)
        for b in placed[k + 1 :]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


def test_no_label_covers_another(scenes: Listed, tmp_path: Path) -> None:
    names = ("fp32", "int8", "int4 rounded", "int4 GPTQ with a name that is far too long to be shown")
    runs = [
        Subjected(name, {}, {"decoder_bits": 4.0 + k}, items(confident=True) if k else items())
        for k, name in enumerate(names)
    ]
    report = compared(runs, scenes, Trial("listed:all", None, range(10)), Gate(0.5), [])
    text = page_of(tmp_path, report, scenes)
    drawn = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    assert len(drawn) == 14
    assert [pair for chart in drawn for pair in overlapping(chart)] == []
    assert overlapping(
        drawn[0].replace("</svg>", '<text x="0" y="9" text-anchor="start">a</text>' * 2 + "</svg>")
    )


def test_what_was_not_recorded_is_said(scenes: Listed, tmp_path: Path) -> None:
    report = made(scenes)
    assert page_of(tmp_path, report, scenes).count("Not recorded: these subjects tell no confidence.") == 3
    own = report | {"asked": report["asked"] | {"boxes": "detector"}}
    assert page_of(tmp_path, own, scenes).count("Not judged: the candidates are each subject's own") == 3
    write_report(tmp_path / "r.md", report, scenes)
    assert "Not recorded: these subjects tell no confidence." in (tmp_path / "r.md").read_text()


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    scenes = Listed([replace(record(k), category="ball<b>") for k in range(10)])
    second = [replace(one, referring=HOSTILE, text=f"<think>{HOSTILE}</think>") for one in flipped()]
    first = [replace(one, referring=HOSTILE, domain="<i>" if k else HOSTILE) for k, one in enumerate(items())]
    subjects = [Subjected(HOSTILE, {"kind": HOSTILE}, {}, first), Subjected(HOSTILE, {}, {}, second)]
    trial = Trial("listed:all", None, range(10))
    report = compared(subjects, scenes, trial, Gate(max_flips=0.0), [])
    text = page_of(tmp_path, report, scenes)
    assert "<script" not in text
    assert "\x1b" not in text
    assert Reader(text).open == []
    for chart in re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL):
        ElementTree.fromstring(chart)


def test_the_three_forms_say_the_same(scenes: Listed, tmp_path: Path) -> None:
    report = made(scenes)
    for ending in ENDINGS:
        write_report(tmp_path / f"r{ending}", report, scenes)
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["report"] == "rexthinker-edge/report/1"
    assert told["schema"] == "rexthinker-edge/comparison/1"
    assert told == json.loads(json.dumps(report))
    moved = [replace(one, answers=(BOXES[2],)) if one.number == 3 else one for one in items()]
    assert told["questions"] == questions_digest(list(reversed(items()))) != questions_digest(moved)
    page, text = ((tmp_path / f"r{ending}").read_text() for ending in (".html", ".md"))
    for both in ("int4: 20.00 % of the answers flipped, 2 % are allowed", "-12.50 (", "dddddddddddddddd",
                 "McNemar, exact: p = 0.5", "256.0 MiB", told["questions"][:16]):  # fmt: skip
        assert both in page, both
        assert both in text, both


def test_what_the_page_draws_stands_in_markdown(scenes: Listed, tmp_path: Path) -> None:
    second = items(confident=True)
    second[0] = replace(second[0], indices=(1,), boxes=(BOXES[1],), pass_tokens=(1, 6))
    write_report(tmp_path / "r.md", made(scenes, second), scenes)
    lines = (tmp_path / "r.md").read_text(encoding="utf-8").splitlines()
    beginnings = (
        "| attribute (8) | 100.0 (100.0 to 100.0) | 87.5 (62.5 to 100.0) |",
        "| rejection (2), said to be absent | 100.0 % (100.0 to 100.0) |",
        "| status timeout | 0 | 0 |",
        "| passes that gave … tokens | 1 | 2 | 3 | 4 | 5–6 |",
        "| fp32 | 100.0 % | – | – | – | – |",
        "| int4 | 96.6 % | 0.0 % | 0.0 % | 0.0 % | 3.4 % |",
        "| answers right, by confidence | int4 |",
        "| 0.5 to 0.6 | 50.0 % (0.0 to 100.0) of 2 |",  # of 0.5 and 0.55, the first is wrong
        "| 75 % | 0.0 % (of 80 %) |",
        "| 100 % | 10.0 % (of 100 %) |",
    )
    for begun in beginnings:
        assert any(line.startswith(begun) for line in lines), begun


def test_flips_share_their_picture_and_keep_their_thoughts(scenes: Listed, tmp_path: Path) -> None:
    report = made(scenes)
    ((name, flips),) = gallery(report, scenes)
    assert (name, [flip.heading for flip in flips]) == ("int4", ["1", "nothing"])
    assert [sorted(side.answers) for side in flips[0].sides] == [[0], [1]]
    assert flips[0].told == "item 0, attribute; the truth: ball 1; the two part at token 1"
    text = page_of(tmp_path, report, scenes)
    assert text.count("data:image/png") == 1  # all of these pictures are one
    assert text.count('<use href="#picture-0"/>') == 3
    assert "Ball 2: blue" in text
    scenes.listed[0] = None
    assert [flip.heading for flip in gallery(report, scenes)[0][1]] == ["nothing"]


def test_a_large_picture_is_reduced_with_its_boxes(scenes: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    big = np.zeros((400, 1120, 3), np.uint8)
    monkeypatch.setattr(Listed, "picture", lambda self, number, record: big)
    side = gallery(made(scenes), scenes)[0][1][0].sides[0]
    assert side.pixels_HWC.shape == (200, 560, 3)
    assert side.boxes == tuple(tuple(v / 2 for v in box) for box in BOXES)


def test_refused_files(scenes: Listed, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a report ending in \.pdf, one of \.html, \.md, \.json"):
        check_ending(tmp_path / "r.pdf")
    with pytest.raises(OptionError, match="its directory does not exist"):
        check_ending(tmp_path / "no" / "r.html")
    (tmp_path / "d.html").mkdir()
    with pytest.raises(OptionError, match="a directory of that name"):
        write_report(tmp_path / "d.html", made(scenes), scenes)


def test_reliability_by_hand() -> None:
    told = reliability([[(0.95, True), (0.95, False), (0.12, False)], [], [(1.0, True)]])
    assert [(b["low"], b["count"], b["right"]["value"]) for b in told["bins"]] == [
        (0.1, 1, 0.0),
        (0.9, 3, 2 / 3),
    ]
    # one at 0.12 off by 0.12, three at 0.9667 on average of which two thirds are right
    assert told["error"] == pytest.approx((0.12 + 3 * (2.9 / 3 - 2 / 3)) / 4)
    assert told["bins"][1]["right"]["low"] == 0.5  # items are drawn again, not verdicts: the first has both
    assert reliability([[]]) == {"count": 0, "error": None, "bins": []}


def test_a_ratio_over_items() -> None:
    rng = np.random.default_rng(3)
    flags = rng.random(60) < 0.7
    assert ratio(flags.astype(int).tolist(), [1] * 60) == share(flags.tolist())  # one to an item: a share
    alike, mixed = ratio([0, 8] * 30, [8] * 60), ratio([4] * 60, [8] * 60)
    assert alike["value"] == mixed["value"] == 0.5
    assert mixed["low"] == mixed["high"] == 0.5  # every item is half right
    assert alike["high"] - alike["low"] == pytest.approx(2 * 1.96 * 0.5 / 60**0.5, rel=0.15)
    assert ratio([0, 1], [0, 1])["value"] == 1


def test_pairs_of_confidence_and_truth() -> None:
    known = replace(item(0), confidence=0.7, verdict_confidences=(0.9, 0.8, None))
    wrong = replace(known, verdicts=("no_match", "match", "unknown"), indices=(1,))
    assert verdict_groups([known, wrong]) == [[(0.9, True), (0.8, True)], [(0.9, False), (0.8, False)]]
    assert answer_pairs([known, wrong, item(1)]) == [(0.7, True), (0.7, False)]
    assert answer_pairs([replace(known, status="malformed"), replace(known, truth=None)]) == []
    reference = replace(known, verdicts=("reference", "match", "unknown"))
    assert verdict_groups([reference, replace(known, truth=None)]) == [[(0.8, False)], []]
    absent = replace(item(2, ()), confidence=0.6, verdict_confidences=(0.5, None, None))
    assert answer_pairs([absent]) == [(0.6, True)]
    told = {"candidates": [0, 1], "verdicts": [{"candidate": 1, "verdict": "match", "confidence": 0.5}]}
    assert verdict_confidences(told) == (None, 0.5)
    assert verdict_confidences({"candidates": [0, 1]}) == ()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40)
)
def test_coverage_against_its_definition(pairs: list[tuple[float, bool]]) -> None:
    for point in coverage(pairs):
        kept = [right for confidence, right in pairs if confidence >= point["threshold"]]
        assert point["coverage"] == len(kept) / len(pairs)
        assert point["error"] == pytest.approx(1 - sum(kept) / len(kept))
    assert coverage(pairs)[-1]["coverage"] == 1


def test_a_long_curve_is_thinned_and_ends_where_it_did() -> None:
    rng = np.random.default_rng(0)
    points = coverage([(float(c), bool(c > 0.3)) for c in rng.random(500)])
    assert len(points) == 50
    assert (points[0]["error"], points[-1]["coverage"]) == (0, 1)


def test_tokens_per_pass_by_hand() -> None:
    def asked(*passes: int) -> Item:
        return replace(
            item(0), tokens={"generated": sum(passes), "passes": len(passes)}, pass_tokens=tuple(passes)
        )

    told = tokens_per_pass([asked(1, 1, 3), asked(6, 5, 1, 4), replace(item(0), tokens={}, pass_tokens=())])
    assert told["mean"] == 21 / 7
    assert [(b["low"], b["high"], b["passes"], b["tokens"]) for b in told["bins"]] == [
        (1, 1, 3, 3), (2, 2, 0, 0), (3, 3, 1, 3), (4, 4, 1, 4), (5, 6, 2, 11)
    ]  # fmt: skip
    assert tokens_per_pass([asked(1, 40)])["bins"][-1] == {"low": 33, "high": None, "passes": 1, "tokens": 40}
    assert tokens_per_pass([]) == {"mean": None, "bins": []}


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (-1.2, 0.3, [-1.5, -1, -0.5, 0, 0.5]), (0.06, 0.06001, None)],
)
def test_ticks_are_round_and_cover(low: float, high: float, wanted: list[float] | None) -> None:
    found = ticks(low, high)
    assert wanted is None or found == wanted
    assert found[0] <= low
    assert found[-1] >= high
    axis = Axis([low, high], (100.0, 0.0))
    assert 0 <= axis(high) < axis(low) <= 100


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_keep_apart(wanted: list[float]) -> None:
    placed = spread_labels(wanted, 20, 0, 300)
    ordered = sorted(placed)
    assert all(b - a >= 20 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[-1] <= 300
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    assert [placed[k] for k in order] == ordered


def test_points_of_the_plots(scenes: Listed) -> None:
    subjects = made(scenes, decoder_bits=5.0)["subjects"]
    assert [(p.name, p.x, p.y) for p in charts.accuracy_points(subjects, "bits")] == [
        ("fp32", 16.0, 100.0),
        ("int4", 5.0, 87.5),
    ]
    assert [p.x for p in charts.accuracy_points(subjects, "latency")] == [7.0, 7.0]
    assert charts.accuracy_points(made(scenes)["subjects"], "bits")[0].name == "fp32"
    assert charts.scatter("x", [], "t", "x") == ""


def test_bits_of_the_small_bundle() -> None:
    subject = BundleSubject(load(threads=1))
    stored = subject.details["quantisation"]["decoder.onnx"]
    # norms and biases are float32 and weigh little beside the matrices
    low = 32 if "bfloat16" not in stored and stored.startswith("fp32") else 16 if "bfloat16" in stored else 4
    assert low <= subject.details["decoder_bits"] < low * 1.1 + 2 * (low == 4)


def test_one_subject_alone(scenes: Listed, tmp_path: Path) -> None:
    """A page and Markdown of one run: its own figures, what it got wrong, and nothing of a comparison."""
    subject = Subjected("a | <b>", {"kind": "bundle", "digest": "d" * 64}, {}, flipped(), None)
    report = alone(subject, scenes, Trial("listed:all", None, range(10)), [])
    pair = compared([subject, subject], scenes, Trial("listed:all", None, range(10)), Gate(), [])
    assert report["subjects"] == pair["subjects"][:1]
    assert [(item["number"], item["density_f1_mean"]) for item in report["wrong"]] == [(0, 0.0), (9, None)]
    text = page_of(tmp_path, report, scenes)
    read = Reader(text)
    assert read.open == []
    assert [name for name, count in Counter(read.ids).items() if count > 1] == []
    assert text.count('<div class="flip">') == 2
    assert "<title>a | &lt;b&gt;</title>" in text
    assert "<script" not in text
    for of_pairs in ("What was compared", "McNemar", "Difference to the reference", "flipped"):
        assert of_pairs not in text
    write_report(tmp_path / "r.md", report, scenes)
    lines = (tmp_path / "r.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# a | <b>"
    assert [line for line in lines if line.startswith("## ")] == [
        "## What was asked", "## By domain", "## What the metric hides", "## Wrong answers",
        "## Where the time goes", "## Confidence",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("### ")] == [
        f"### Item {k}: {flipped()[k].referring}" for k in (0, 9)
    ]
    right = alone(replace(subject, items=items()), scenes, Trial("listed:all", None, range(10)), [])
    assert "None to be drawn." in page_of(tmp_path, right, scenes)
    own = alone(subject, scenes, Trial("listed:all", None, range(10), boxes="detector"), [])
    assert '<div class="flip">' not in page_of(tmp_path, own, scenes)  # its candidates are not the record's
