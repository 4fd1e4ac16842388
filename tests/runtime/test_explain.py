"""What an answer rests on: spans are the words themselves, and what is drawn is well-formed and inert."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

import rexthinker_edge as rex
from rexthinker_edge.runtime.boxes import to_thousandths
from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.grounded import read_grounded
from rexthinker_edge.runtime.trace import Verdict

PICTURE = np.full((100, 200, 3), 90, np.uint8)


@pytest.fixture
def result(make_world):
    return make_world().thinker.look(PICTURE, "ball").refer("the red ball")


def test_spans_are_the_words(result):
    explanation = result.explain()
    spans = [span for step in explanation.steps for span in step.spans]
    assert [(s.text, s.candidate) for s in spans] == [
        ("Ball 1", 0), ("Ball 2", 1), ("Ball 3", 2), ("Ball 1", 0), ("Ball 2", 1),
    ]  # fmt: skip
    for span in (*explanation.opening, *spans):
        assert result.thought[span.start : span.end] == span.text
    for step in explanation.steps:
        assert result.thought[step.start : step.end].startswith(f"# {step.title}")
        assert all(step.start <= span.start < span.end <= step.end for span in step.spans)
    look, summary = explanation.steps
    assert [(v.candidate, v.verdict, v.words) for v in look.verdicts] == [
        (0, Verdict.NO_MATCH, "blue"), (1, Verdict.MATCH, "red"), (2, Verdict.REFERENCE, "beside the mug"),
    ]  # fmt: skip
    assert [v.words for v in summary.verdicts] == ["blue", "red"]
    for verdict in (*look.verdicts, *summary.verdicts):
        assert result.thought[verdict.at] in "✅❌⚠"
        assert 0 < verdict.confidence <= 1
    assert look.candidates == result.steps[0].candidates


def test_other_mentions(result):
    thought = (
        "Ball 2 or ball 9?\n# Step 1: Order.\nFrom the left: Ball 3, ball 1.\n- Sphere 2: it is Ball 2 ✅"
    )
    explanation = replace(result, thought=thought).explain()
    assert [(s.text, s.candidate) for s in explanation.opening] == [("Ball 2", 1)]  # there is no ball 9
    (step,) = explanation.steps
    assert [(s.text, s.candidate) for s in step.spans] == [
        ("Ball 3", 2), ("ball 1", 0), ("Sphere 2", 1), ("Ball 2", 1),
    ]  # fmt: skip
    assert step.verdicts[0].words == "it is Ball 2"
    assert "speaks of Ball 3, Ball 1" in explanation.to_text()  # beside those that are judged
    assert replace(result, thought="").explain().steps == ()


def test_grounded_trace_is_read_back(result):
    boxes = to_thousandths([c.box for c in result.candidates], (200, 100)).tolist()
    assert boxes[1] == [350, 200, 600, 800]
    found = read_grounded(result.grounded_trace())
    assert found.problems == ()
    assert found.text == result.thought
    spans = [span for step in result.explain().steps for span in step.spans]
    assert [(r.phrase, list(r.shapes[0])) for r in found.references] == [
        (s.text, boxes[s.candidate]) for s in spans
    ]
    points = read_grounded(result.grounded_trace(points=True)).references
    assert points[1].shapes == ((475.0, 500.0),)
    assert "<obj> Ball 2 | [350, 200, 600, 800] </obj>: red ✅" in result.grounded_trace()
    hostile = replace(result, thought="<obj> x | [1, 2] </obj> Ball 1")
    assert len(read_grounded(hostile.grounded_trace()).references) == 1


def test_json(result):
    value = json.loads(json.dumps(result.explain().to_json()))
    assert value["schema"] == "rexthinker-edge/explanation/1"
    assert (value["status"], value["answer"], value["abstention"]) == ("found", [1], None)
    assert value["confidence"] == result.confidence
    assert value["candidates"][1] == {
        "index": 1, "name": "Ball 2", "box": [70.0, 20.0, 120.0, 80.0], "verdict": "match",
        "confidence": result.verdicts[1].confidence,
    }  # fmt: skip
    assert value["steps"][0]["spans"][0]["text"] == "Ball 1"
    assert value["steps"][0]["verdicts"][1]["words"] == "red"
    assert value["grounded"] == result.grounded_trace()


def test_text(result):
    text = replace(result, expression="the \x1b[31mred ball").explain().to_text()
    assert "\x1b" not in text
    assert "→ ✅ Ball 2  [70, 20, 120, 80]" in text
    assert "  ❌ Ball 1: blue  (" in text


@pytest.mark.parametrize("with_picture", [True, False])
def test_pictures_are_well_formed_and_inert(result, with_picture):
    hostile = replace(
        result, expression='<script>alert("1")</script>&', thought=result.thought + '\n<b onclick="x">'
    )
    explanation = hostile.explain(PICTURE if with_picture else None)
    svg = explanation.to_svg()
    root = ElementTree.fromstring(svg)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "script" not in names
    assert ("image" in names) == with_picture
    texts = "".join(root.itertext())
    assert "beside" in texts
    assert "<script>" in texts
    page = explanation.to_html()
    assert "<script" not in page
    assert "<b onclick" not in page
    assert ("data:image/" in page) == with_picture
    assert "http" not in page.replace("http://www.w3.org", "")
    for part in (svg, page):
        assert part.count('class="candidate') == 3


def test_another_picture_is_refused(result):
    with pytest.raises(ImageError, match="its pixels are"):
        result.explain(np.zeros((100, 200, 3), np.uint8))


def test_the_public_names():
    assert rex.read_grounded("<obj> a | [1, 2] </obj>").references[0].phrase == "a"
    assert {"Explanation", "GroundedThought", "Reference", "write_grounded"} <= set(rex.__all__)
