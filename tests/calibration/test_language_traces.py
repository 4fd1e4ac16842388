"""Traces read back line by line: what they say of each candidate, and what they conclude."""

import json
import re

import numpy as np
import pytest

from rexthinker_edge.calibration.workbench.expressions import ask
from rexthinker_edge.calibration.workbench.items import Item, hint_boxes, item_trace, make_item
from rexthinker_edge.calibration.workbench.traces import write_trace
from rexthinker_edge.calibration.workbench.world import COLORS, PATTERNS, Level, Scene, Thing
from rexthinker_edge.runtime.answer import Status, read_answer
from rexthinker_edge.runtime.generate import Finish
from rexthinker_edge.runtime.trace import Verdict, read_trace

RESIZED = (252, 196)
LINE = re.compile(r"- (\w+) (\d+): (.+?) (✅|❌|⚠️)")
SUMMARY = re.compile(r"- (\w+) (\d+): (.+?) → (✅|❌)")
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]


class Trace:
    """One trace taken apart by its structure alone."""

    def __init__(self, text: str) -> None:
        whole = re.fullmatch(r"<think>(.*)\n</think><answer>(.*)</answer>", text, re.S)
        assert whole, text
        head, *parts = whole[1].split("\n\n")
        self.intro, *plan = head.split("\n")
        self.plan = [line.partition(": ")[2] for line in plan]
        assert all(line.startswith(f"- Step {k}: ") for k, line in enumerate(plan, 1)), head
        assert parts[-1].startswith("# Summarize and Re-Check answer\n")
        self.titles, self.leads, self.steps = [], [], []
        for k, part in enumerate(parts[:-1], 1):
            title, *lines = part.split("\n")
            assert title.startswith(f"# Step {k}: "), title
            self.titles.append(title.partition(": ")[2])
            leads = [line for line in lines if not line.startswith("- ")]
            assert len(leads) <= 1
            self.leads.append(leads[0] if leads else "")
            self.steps.append([self.line(LINE, line) for line in lines if line.startswith("- ")])
        self.summary = [self.line(SUMMARY, line) for line in parts[-1].split("\n")[1:]]
        self.answer = whole[2]

    @staticmethod
    def line(pattern: re.Pattern[str], text: str) -> tuple[str, int, str, str]:
        match = pattern.fullmatch(text)
        assert match, text
        return match[1], int(match[2]), match[3], match[4]


@pytest.fixture(scope="module")
def told() -> list[tuple[Item, str, Trace]]:
    items = [make_item(Level.FULL, 1_000_002, i) for i in range(300)]
    items += [make_item(Level.EASY, 1_000_002, i) for i in range(180)]
    texts = [item_trace(item, RESIZED, k) for k, item in enumerate(items)]
    return [(item, text, Trace(text)) for item, text in zip(items, texts, strict=True)]


def test_sections_follow_the_plan(told: list[tuple[Item, str, Trace]]) -> None:
    for item, _, trace in told:
        assert item.question.expression in trace.intro
        assert trace.plan == trace.titles
        assert 1 <= len(trace.plan) <= 3


def test_later_steps_speak_of_survivors_only(told: list[tuple[Item, str, Trace]]) -> None:
    for _, text, trace in told:
        left = {number for _, number, _, _ in trace.summary}
        for lines in trace.steps:
            spoken = [number for _, number, _, _ in lines]
            assert spoken == sorted(set(spoken)), text
            pointed = {number for _, number, _, mark in lines if mark == "⚠️"}
            if pointed:  # a step that only finds the reference rules nobody out
                assert set(spoken) == left, text
                left -= pointed
            else:
                assert set(spoken) == left, text
                left = {number for _, number, _, mark in lines if mark == "✅"}
        assert left == {number for _, number, _, mark in trace.summary if mark == "✅"}, text


def test_summary_and_answer_are_the_truth(told: list[tuple[Item, str, Trace]]) -> None:
    for item, text, trace in told:
        name = item.category.capitalize()
        assert [(n, k) for n, k, _, _ in trace.summary] == [
            (name, k + 1) for k in range(len(item.candidates))
        ]
        yes = [k - 1 for _, k, _, mark in trace.summary if mark == "✅"]
        assert yes == [k for k, index in enumerate(item.candidates) if index in item.question.answers], text
        if not yes:
            assert trace.answer == "There is no such thing in the image."
            continue
        boxes = hint_boxes(item.scene, item.candidates, RESIZED).tolist()
        assert trace.answer.startswith("json\n")
        assert trace.answer.endswith("\n")
        answered = json.loads(trace.answer.removeprefix("json\n"))
        assert answered == [{"bbox_2d": boxes[k], "label": item.question.expression} for k in yes]


def test_facts_are_the_truth(told: list[tuple[Item, str, Trace]]) -> None:
    """Colors, patterns, sizes and letters on a line are those of the candidate, unless of another thing."""
    seen = set()
    for item, text, trace in told:
        for title, lines in zip(trace.titles, trace.steps, strict=True):
            for _, number, fact, _ in lines:
                thing = item.scene.things[item.candidates[number - 1]]
                words = fact.split()
                if "the" in words or title.startswith(("Find the", "See which")):
                    continue
                for kind, value, known in (
                    ("color", thing.color, COLORS),
                    ("pattern", thing.pattern, PATTERNS),
                    ("size", thing.size, ("small", "large")),
                ):
                    named = [word for word in words if word in known]
                    assert named in ([], [value]), text
                    seen.update({kind} if named else ())
                if "letter" in words:
                    assert fact == (f"letter {thing.letter}" if thing.letter else "no letter"), text
                    seen.add("letter")
    assert seen == {"color", "pattern", "size", "letter"}


def test_orders_are_the_truth(told: list[tuple[Item, str, Trace]]) -> None:
    checked = 0
    for item, text, trace in told:
        for lead, lines in zip(trace.leads, trace.steps, strict=True):
            match = re.match(r"From the (left|right|top|bottom): ([^.]*)\.", lead)
            if not match:
                continue
            listed = [int(name.split()[1]) for name in match[2].split(", ")]
            axis = 0 if match[1] in {"left", "right"} else 1
            boxes = [item.scene.things[item.candidates[k - 1]].box for k in listed]
            middles = [box[axis] + box[axis + 2] for box in boxes]
            assert middles == sorted(middles, reverse=match[1] in {"right", "bottom"}), text
            facts = {number: fact for _, number, fact, _ in lines}
            assert [facts[k] for k in listed] == ORDINALS[: len(listed)], text
            checked += 1
    assert checked > 40


def test_reference_positions_are_in_resized_pixels(told: list[tuple[Item, str, Trace]]) -> None:
    checked = 0
    for item, text, trace in told:
        for check in item.question.checks:
            reference = getattr(check, "reference", None)
            match = next(
                (m for m in (re.fullmatch(r"The .* is at ([xy]) = (\d+)\.", s) for s in trace.leads) if m),
                None,
            )
            if reference is None or match is None:
                continue
            axis = "xy".index(match[1])
            box = item.scene.things[reference.index].box
            size = (item.scene.width, item.scene.height)[axis]
            assert int(match[2]) == int((box[axis] + box[axis + 2]) / 2 * RESIZED[axis] / size), text
            checked += 1
    assert checked > 20


def test_wording_varies_and_lines_are_short(told: list[tuple[Item, str, Trace]]) -> None:
    titles = {
        re.sub(r"(ball|box|cone|star|ring|mug)(e?s)?", "_", title) for _, _, t in told for title in t.titles
    }
    assert len(titles) > 80
    assert len({trace.intro.split(" detect ")[0][:40] for _, _, trace in told}) >= 3
    words = [len(fact.split()) for _, _, trace in told for lines in trace.steps for _, _, fact, _ in lines]
    assert max(words) <= 6
    assert np.mean([len(text.split()) for _, text, _ in told]) < 140


def test_the_rng_decides_words_and_not_facts() -> None:
    item = make_item(Level.FULL, 3, 4)
    traces = [Trace(item_trace(item, RESIZED, seed)) for seed in range(12)]
    assert len({trace.intro for trace in traces}) > 1
    assert len({tuple(mark for *_, mark in trace.summary) for trace in traces}) == 1
    assert len({trace.answer for trace in traces}) == 1
    assert item_trace(item, RESIZED, 5) == item_trace(item, RESIZED, 5)


def test_a_trace_is_pinned() -> None:
    """Three balls placed by hand, so that only a change of the language changes this."""
    balls = [
        Thing("ball", "red", "plain", "small", None, (10, 20, 30, 40)),
        Thing("ball", "blue", "plain", "small", None, (90, 60, 110, 80)),
        Thing("ball", "red", "plain", "large", None, (150, 120, 190, 160)),
    ]
    scene = Scene(Level.EASY, 0, 0, 200, 200, tuple(balls), ())
    question = ask(scene, "ball", np.random.default_rng(2), "position")
    assert question is not None
    hint = [[150, 120, 190, 160], [10, 20, 30, 40], [90, 60, 110, 80]]
    text = write_trace(question, scene, (2, 0, 1), hint, np.random.default_rng(0), resized=(200, 200))
    assert text == PINNED


def test_the_runtime_reads_the_same(told: list[tuple[Item, str, Trace]]) -> None:
    """The runtime's own parsers, which know the structure and none of these words."""
    for item, text, trace in told:
        read = read_trace(text, item.category, len(item.candidates))
        assert [section.title.partition(": ")[2] for section in read.sections[:-1]] == trace.titles
        yes = tuple(k for k, index in enumerate(item.candidates) if index in item.question.answers)
        assert tuple(k for k, verdict in enumerate(read.verdicts) if verdict is Verdict.MATCH) == yes
        assert Verdict.UNKNOWN not in read.verdicts
        answer = read_answer(text, Finish.STOP, hint_boxes(item.scene, item.candidates, RESIZED))
        assert answer.status is (Status.FOUND if yes else Status.ABSENT), text
        assert answer.indices == yes, text


PINNED = """\
<think>OK, the user needs us to detect the two leftmost balls. I need to break it down \
into the following steps:
- Step 1: Order the balls from the left.

# Step 1: Order the balls from the left.
From the left: Ball 2, Ball 3.
- Ball 1: further right ❌
- Ball 2: first ✅
- Ball 3: second ✅

# Summarize and Re-Check answer
- Ball 1: further right → ❌
- Ball 2: first → ✅
- Ball 3: second → ✅
</think><answer>json
[{"bbox_2d": [10, 20, 30, 40], "label": "the two leftmost balls"}, \
{"bbox_2d": [90, 60, 110, 80], "label": "the two leftmost balls"}]
</answer>"""
