"""What an answer rests on: which words of the thought speak of which candidates, and with which verdicts.

Layout    `Explanation` ties a result's thought to its candidates, step by step: spans of characters of
          `result.thought`, counted from 0; verdicts with the place of their mark and how sure of it the
          model was. It is told as text, JSON (`rexthinker-edge/explanation/1`), SVG or one HTML page.
Contract  A span is where a candidate is named, so its box is what the words are about; words that name none
          are tied to none. Everything is read from the thought, nothing is inferred.
Elsewhere reading thoughts: trace.py; the `<obj>` form: grounded.py; drawing: evidence_page.py.
Source    docs/evidence.md
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.boxes import to_thousandths
from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.evidence import Evidence, plain
from rexthinker_edge.runtime.grounded import Reference, write_grounded
from rexthinker_edge.runtime.image import Source, read_picture
from rexthinker_edge.runtime.result import BoxRow, Result
from rexthinker_edge.runtime.strict_json import to_json
from rexthinker_edge.runtime.trace import MARKS, Mention, Section, Verdict, mentions, read_trace

SCHEMA = "rexthinker-edge/explanation/1"


@dataclass(frozen=True)
class Span:
    """Words that name a candidate: characters [start, end) of the thought."""

    start: int
    end: int
    text: str
    candidate: int


@dataclass(frozen=True)
class StepVerdict:
    """What one step says of one candidate.

    Attributes:
        words: what the step gives as the reason, "" where it gives none.
        at: of the mark, in characters of the thought; None without one.
        confidence: that this mark came and no other, from 0 to 1; None without one.
    """

    candidate: int
    verdict: Verdict
    words: str
    at: int | None
    confidence: float | None


@dataclass(frozen=True)
class StepEvidence:
    """One step and what it speaks of. `start` and `end` are characters of the thought, heading included."""

    title: str
    start: int
    end: int
    candidates: tuple[int, ...]
    spans: tuple[Span, ...]
    verdicts: tuple[StepVerdict, ...]


@dataclass(frozen=True)
class Explanation:
    """A result's thought, tied to its candidates.

    Attributes:
        opening: spans before the first step.
        pixels_HWC: the picture, where it was given.
    """

    result: Result
    opening: tuple[Span, ...]
    steps: tuple[StepEvidence, ...]
    pixels_HWC: NDArray[np.uint8] | None = None

    def to_text(self) -> str:
        """For a terminal; no control character of the model's is in it."""
        return "\n".join(plain(line) for line in self._lines()) + "\n"

    def to_json(self) -> dict[str, Any]:
        """One JSON object of schema `rexthinker-edge/explanation/1`."""
        result = self.result
        told = {verdict.candidate: verdict for verdict in result.verdicts}
        return {
            "schema": SCHEMA,
            "image": to_json(result.image),
            "category": result.category,
            "expression": result.expression,
            "status": result.status.value,
            "confidence": result.confidence,
            "abstention": to_json(result.abstention),
            "answer": list(result.indices),
            "candidates": [
                {
                    "index": one.index,
                    "name": name(result.category, one.index),
                    "box": one.box,
                    "verdict": one.verdict.value,
                    "confidence": told[one.index].confidence if one.index in told else None,
                }
                for one in result.candidates
            ],
            "thought": result.thought,
            "opening": to_json(self.opening),
            "steps": to_json(self.steps),
            "grounded": grounded_trace(result),
        }

    def to_svg(self) -> str:
        """One picture: candidates on the left, the thought with its marks on the right."""
        from rexthinker_edge.runtime.evidence_svg import svg  # noqa: PLC0415 -- drawn where asked for

        return svg(self.evidence())

    def to_html(self) -> str:
        """One page without scripts: what is pointed at lights what belongs to it."""
        from rexthinker_edge.runtime.evidence_page import page  # noqa: PLC0415

        return page(self.result.expression, [self.evidence()])

    def evidence(self) -> Evidence:
        """What the pictures show."""
        result = self.result
        notes = [("status", result.status.value), ("category", result.category)]
        if result.confidence is not None:
            notes.append(("confidence", f"{result.confidence:.3f}"))
        if result.abstention is not None:
            notes.append(("withheld", f"{result.abstention.status.value}: {result.abstention.reason}"))
        return Evidence(
            title=result.expression,
            category=result.category,
            pixels_HWC=self.pixels_HWC,
            boxes=tuple((c.box[0], c.box[1], c.box[2], c.box[3]) for c in result.candidates),
            answers=frozenset(result.indices),
            thought=result.thought,
            notes=tuple(notes),
            size_px=(result.image.width, result.image.height),
            confidences=tuple(verdict.confidence for verdict in result.verdicts),
        )

    def _lines(self) -> Iterator[str]:
        result = self.result
        sure = "" if result.confidence is None else f", confidence {result.confidence:.3f}"
        yield f"{result.status.value}{sure}: {result.expression}"
        if result.abstention is not None:
            yield f"withheld ({result.abstention.status.value}): {result.abstention.reason}"
        for one in result.candidates:
            arrow = "→" if one.index in result.indices else " "
            yield f"{arrow} {MARKS[one.verdict]} {name(result.category, one.index)}  {_shown(one.box)}"
        for step in self.steps:
            yield ""
            yield f"# {step.title}"
            for verdict in step.verdicts:
                certain = "" if verdict.confidence is None else f"  ({verdict.confidence:.3f})"
                who, mark = name(result.category, verdict.candidate), MARKS[verdict.verdict]
                yield f"  {mark} {who}: {verdict.words}{certain}"
            judged = {verdict.candidate for verdict in step.verdicts}
            spoken_of = [*step.candidates, *(span.candidate for span in step.spans)]
            if others := dict.fromkeys(k for k in spoken_of if k not in judged):
                yield "  speaks of " + ", ".join(name(result.category, k) for k in others)


def explain(result: Result, picture: Source | None = None) -> Explanation:
    """Tie a result's thought to its candidates; see `Result.explain`."""
    pixels = None
    if picture is not None:
        seen = read_picture(picture)
        if seen.sha256 != result.image.sha256:
            raise ImageError(
                f"picture: its pixels are {seen.sha256[:12]}…, the result's picture has "
                f"{result.image.sha256[:12]}…. Give the picture that was asked about, or none."
            )
        pixels = seen.pixels_HWC
    category, count, thought = result.category, len(result.candidates), result.thought
    sections = read_trace(thought, category, count).sections
    named = mentions(thought, category, count)
    steps = tuple(_step(result, section, k, named) for k, section in enumerate(sections))
    begun = sections[0].start if sections else len(thought)
    return Explanation(result, _spans(thought, named, 0, begun), steps, pixels)


def grounded_trace(result: Result, points: bool = False) -> str:
    """A result's thought with each named candidate as a reference; see `Result.grounded_trace`."""
    size = (result.image.width, result.image.height)
    boxes = to_thousandths(np.array([c.box for c in result.candidates]).reshape(-1, 4), size)
    pieces, done = list[str | Reference](), 0
    for mention in mentions(result.thought, result.category, len(result.candidates)):
        x0, y0, x1, y1 = boxes[mention.index].tolist()
        shape = ((x0 + x1) // 2, (y0 + y1) // 2) if points else (x0, y0, x1, y1)
        words = result.thought[mention.start : mention.end]
        pieces += [result.thought[done : mention.start], Reference(words, (shape,))]
        done = mention.end
    return write_grounded([*pieces, result.thought[done:]])


def name(category: str, index: int) -> str:
    """ "Ball 3" for candidate 2, as the thought says it."""
    return f"{category[:1].upper()}{category[1:]} {index + 1}"


def _step(result: Result, section: Section, place: int, named: list[Mention]) -> StepEvidence:
    thought = result.thought
    spans = _spans(thought, named, section.start, section.end)
    known = result.steps[place] if place < len(result.steps) else None
    sure = {} if known is None else dict(zip(known.candidates, known.confidences, strict=False))
    verdicts = tuple(
        StepVerdict(
            check.index, check.verdict, _words(thought, spans, check.index, check.at), check.at,
            sure.get(check.index),
        )
        for check in section.checks
    )  # fmt: skip
    return StepEvidence(section.title, section.start, section.end, section.mentioned, spans, verdicts)


def _spans(thought: str, named: list[Mention], start: int, end: int) -> tuple[Span, ...]:
    inside = (mention for mention in named if start <= mention.start and mention.end <= end)
    return tuple(Span(m.start, m.end, thought[m.start : m.end], m.index) for m in inside)


def _words(thought: str, spans: tuple[Span, ...], index: int, at: int | None) -> str:
    """What stands between a candidate's name and its mark."""
    before = [span.end for span in spans if span.candidate == index and at is not None and span.end <= at]
    if not before or at is None:
        return ""
    line = thought[: before[-1]].count("\n")
    first = next((e for e in before if thought[:e].count("\n") == line), before[-1])
    return " ".join(thought[first:at].strip(" :*→-\t").split())


def _shown(box: BoxRow) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
