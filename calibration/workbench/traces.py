"""Chains of thought from the truth, in Rex-Thinker's form.

Layout    <think> plan, one `# Step n` section per check, `# Summarize and Re-Check answer`, </think><answer>…
Contract  A line first says what the thing is (read from the picture, the hint or the line above), then the
          verdict, so that each token follows from what precedes it. Later steps speak of survivors only; the
          summary has every candidate. Answer coordinates are the hint's, in the hint's order.
Elsewhere the checks: predicates.py; the parser of this form: runtime/trace.py.
Source    docs/sources.md#trace
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.expressions import Question
from rexthinker_edge.calibration.workbench.predicates import (
    Beside,
    Check,
    Finding,
    Largest,
    Letter,
    Look,
    Rank,
    RareColor,
    Related,
    Side,
    centre,
    relations_of,
)
from rexthinker_edge.calibration.workbench.wording import EXTREMES, ORDINALS, pick, plural, reference_phrase
from rexthinker_edge.calibration.workbench.world import RelationKind, Scene
from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.trace import NO, NOTHING, REFERENCE, SUMMARY, YES

_SIDE_WORD = {
    Side.LEFT: ("left of it", "to the left"),
    Side.RIGHT: ("right of it", "to the right"),
    Side.TOP: ("above it", "higher"),
    Side.BOTTOM: ("below it", "lower"),
}
_OPPOSITE = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT, Side.TOP: Side.BOTTOM, Side.BOTTOM: Side.TOP}
_BEYOND = {Side.LEFT: "further right", Side.RIGHT: "further left", Side.TOP: "lower", Side.BOTTOM: "higher"}
_TOUCH = {
    RelationKind.TOUCHING: "touches",
    RelationKind.INSIDE: "inside",
    RelationKind.ON_TOP_OF: "on top of",
}
_INTRO = (
    "OK, the user needs us to detect {}. To do this, we need to break it down into the following steps:",
    "OK, the user needs us to detect {}. I need to break it down into the following steps:",
    "OK, the user needs us to find {}. Let me break it down into steps:",
    "OK, we have to detect {}. The steps are:",
)


@dataclass
class _Section:
    """One step: its title, a sentence before the lines, and a fact and a verdict per candidate spoken of."""

    title: str
    lead: str = ""
    lines: dict[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pen:
    """What the writer of one trace needs to know, and its manner."""

    scene: Scene
    names: dict[int, str]
    noun: str
    scale: tuple[float, float]
    rng: np.random.Generator
    style: int

    def one(self, *options: str) -> str:
        return pick(self.rng, options)


def write_trace(
    question: Question,
    scene: Scene,
    candidates: Sequence[int],
    boxes_resized: Sequence[Sequence[int]] | NDArray[np.int64],
    rng: np.random.Generator,
    *,
    resized: Size,
) -> str:
    """The assistant's whole turn for a question, from `<think>` to `</answer>`.

    Args:
        candidates: thing indices in hint order; candidate k is called "Ball k+1".
        boxes_resized: (N, 4) integers (x0, y0, x1, y1) of the hint, one row per candidate.
        rng: decides the wording, never the facts.
        resized: (width, height) of the picture the model sees.
    """
    noun = question.category
    names = {index: f"{noun.capitalize()} {k + 1}" for k, index in enumerate(candidates)}
    scale = (resized[0] / scene.width, resized[1] / scene.height)
    pen = _Pen(scene, names, noun, scale, rng, int(rng.integers(3)))
    sections: list[_Section] = []
    left: tuple[int, ...] = tuple(candidates)
    for check, finding in zip(question.checks, question.findings, strict=True):
        if left:
            sections += _sections(pen, check, finding, left, first=not sections)
        else:
            sections.append(
                _Section(_sections(pen, check, finding, left, first=False)[-1].title, f"No {noun} remains.")
            )
        passed = set(finding.passed)
        left = tuple(i for i in left if i in passed)
    assert set(left) == question.answers
    plan = "\n".join(f"- Step {k}: {s.title}" for k, s in enumerate(sections, 1))
    parts = [f"<think>{pen.one(*_INTRO).format(question.expression)}\n{plan}"]
    parts += [_write_section(pen, k, s) for k, s in enumerate(sections, 1)]
    parts.append(_summary(pen, sections, question.answers))
    return "\n\n".join(parts) + "\n</think>" + _answer(question, candidates, boxes_resized)


def _write_section(pen: _Pen, number: int, section: _Section) -> str:
    lines = [f"# Step {number}: {section.title}"]
    if section.lead:
        lines.append(section.lead)
    lines += [f"- {pen.names[i]}: {fact} {mark}" for i, (fact, mark) in section.lines.items()]
    return "\n".join(lines)


def _summary(pen: _Pen, sections: list[_Section], answers: frozenset[int]) -> str:
    """Every candidate once: the last thing said of it, or in another manner only whether it fits."""
    last = {i: fact for section in sections for i, (fact, _) in section.lines.items()}
    lines = [SUMMARY]
    for index, name in pen.names.items():
        fits = index in answers
        reason = last[index]
        if pen.style == 1:
            reason = "fits" if fits else "does not fit"
        lines.append(f"- {name}: {reason} → {YES if fits else NO}")
    return "\n".join(lines)


def _answer(
    question: Question, candidates: Sequence[int], boxes: Sequence[Sequence[int]] | NDArray[np.int64]
) -> str:
    found = [
        {"bbox_2d": [int(v) for v in box], "label": question.expression}
        for index, box in zip(candidates, boxes, strict=True)
        if index in question.answers
    ]
    if not found:
        return f"<answer>{NOTHING}</answer>"
    return f"<answer>json\n{json.dumps(found, ensure_ascii=False)}\n</answer>"


def _list(pen: _Pen, things: tuple[int, ...]) -> str:
    return ", ".join(pen.names[i] for i in things)


def _mark(finding: Finding, index: int) -> str:
    return YES if index in finding.passed else NO


def _sections(  # noqa: PLR0911  one return per kind of check
    pen: _Pen, check: Check, finding: Finding, left: tuple[int, ...], first: bool
) -> list[_Section]:
    """The sections for one check: one, or two when the reference is itself a candidate."""
    those = pen.one(*(("each", "every") if first else ("each remaining", "every remaining"))) + f" {pen.noun}"
    if isinstance(check, Look):
        return [_look(pen, check, finding, left, those)]
    if isinstance(check, Letter):
        title = pen.one(f"Read the letter on {those}.", f"Look for the letter {check.letter}.")
        facts = {
            i: f"letter {pen.scene.things[i].letter}" if pen.scene.things[i].letter else "no letter"
            for i in left
        }
        return [_Section(title, "", {i: (facts[i], _mark(finding, i)) for i in left})]
    if isinstance(check, Rank):
        return [_rank(pen, check, finding, left)]
    if isinstance(check, Largest):
        return [_largest(pen, check, finding, left, those)]
    if isinstance(check, Beside):
        return _beside(pen, check, finding, left, those)
    if isinstance(check, RareColor):
        return [_rare(pen, check, finding, left, those)]
    return [_related(pen, check, finding, left, those)]


def _look(pen: _Pen, check: Look, finding: Finding, left: tuple[int, ...], those: str) -> _Section:
    asked = [
        name
        for name, value in (("size", check.size), ("color", check.colors), ("pattern", check.pattern))
        if value
    ]
    joined = " and ".join(asked)
    title = pen.one(f"Check the {joined} of {those}.", f"Look at the {joined} of {those}.")
    section = _Section(title)
    for i in left:
        thing = pen.scene.things[i]
        shown = {"size": thing.size, "color": thing.color, "pattern": thing.pattern}
        section.lines[i] = (" ".join(shown[name] for name in asked), _mark(finding, i))
    return section


def _rank(pen: _Pen, check: Rank, finding: Finding, left: tuple[int, ...]) -> _Section:
    side = check.side.value
    what = plural(pen.noun)
    section = _Section(pen.one(f"Count the {what} from the {side}.", f"Order the {what} from the {side}."))
    counted = _list(pen, finding.order)
    if check.count == 1:
        section.title = pen.one(
            f"Find the {EXTREMES[check.side]} {pen.noun}.", f"See which {pen.noun} is {EXTREMES[check.side]}."
        )
        section.lead = f"{EXTREMES[check.side].capitalize()}: {counted}."
    else:
        section.lead = f"From the {side}: {counted}."
    if len(finding.order) < check.count:
        section.lead += f" There is no {ORDINALS[check.count - 1]}."
    for i in left:
        fact = _BEYOND[check.side]
        if i in finding.order:
            fact = EXTREMES[check.side] if check.count == 1 else ORDINALS[finding.order.index(i)]
        section.lines[i] = (fact, _mark(finding, i))
    return section


def _largest(pen: _Pen, check: Largest, finding: Finding, left: tuple[int, ...], those: str) -> _Section:
    word, other = ("smallest", "larger") if check.smallest else ("largest", "smaller")
    section = _Section(pen.one(f"Find the {word} {pen.noun}.", f"Compare the sizes of {those}."))
    section.lead = f"{word.capitalize()}: {_list(pen, finding.order)}."
    section.lines = {i: (word if i in finding.order else other, _mark(finding, i)) for i in left}
    return section


def _beside(pen: _Pen, check: Beside, finding: Finding, left: tuple[int, ...], those: str) -> list[_Section]:
    name = reference_phrase(check.reference)
    where = _SIDE_WORD[check.side][0].removesuffix(" it")
    target = check.reference.index
    word = pen.one("0", "1") == "1"
    sections = []
    here = _Section(
        pen.one(f"See which {plural(pen.noun)} are {where} {name}.", f"Compare {those} with {name}.")
    )
    if target in left:
        look = Look((check.reference.color,) if check.reference.color else (), check.reference.pattern)
        found = Finding((target,))
        finder = _look(pen, look, found, left, those)
        finder.title = pen.one(f"Find {name}.", f"Locate {name}.")
        finder.lines[target] = (finder.lines[target][0], REFERENCE)
        sections.append(finder)
        here.lead = f"The reference is {pen.names[target]}."
    else:
        across = check.side in {Side.LEFT, Side.RIGHT}
        at = int(centre(pen.scene.things[target], check.side) * pen.scale[0 if across else 1])
        here.lead = f"{name.capitalize()} is at {'x' if across else 'y'} = {at}."
    for i in left:
        if i == target:
            continue
        side = check.side if i in finding.passed else _OPPOSITE[check.side]
        here.lines[i] = (_SIDE_WORD[side][int(word)], _mark(finding, i))
    return [*sections, here]


def _related(pen: _Pen, check: Related, finding: Finding, left: tuple[int, ...], those: str) -> _Section:
    name = reference_phrase(check.reference)
    section = _Section(pen.one(f"Look for contact with {name}.", f"See how {those} stands to {name}."))
    for i in left:
        section.lines[i] = (_standing(pen, check, i), _mark(finding, i))
    return section


def _standing(pen: _Pen, check: Related, index: int) -> str:
    """The asked relation where the thing has it, else another it has, else that it stands alone."""
    relations = relations_of(pen.scene, index)
    relations.sort(
        key=lambda r: (r != (check.kind, check.reference.index, check.inverse), r[1] != check.reference.index)
    )
    if not relations:
        return "stands alone"
    kind, other, inverse = relations[0]
    thing = pen.scene.things[other]
    name = f"{thing.color} {thing.category}"
    if inverse:
        return f"has the {name} {'inside' if kind is RelationKind.INSIDE else 'on top'}"
    return f"{_TOUCH[kind]} the {name}"


def _rare(pen: _Pen, check: RareColor, finding: Finding, left: tuple[int, ...], those: str) -> _Section:
    section = _Section(pen.one(f"Compare the colors of {those}.", f"Count the colors of {those}."))
    colors = [pen.scene.things[i].color for i in left]
    tally = ", ".join(f"{c} {colors.count(c)}" for c in dict.fromkeys(colors))
    section.lead = f"Colors: {tally}."
    section.lines = {
        i: (f"{c} {colors.count(c)}", _mark(finding, i)) for i, c in zip(left, colors, strict=True)
    }
    return section
