"""How fast a bundle answers here: stage by stage, first and second expression, several together.

Layout    Each picture: detector alone, vision tower alone; then `look` and the first expression, as a caller
          waits for them; the second expression, with drafting and again without; and on some pictures k
          expressions together, each time on a scene that has answered nothing.
Contract  Times are wall clock around the calls. The first picture only warms up. Nothing is asked with a
          draft that has seen its own answer. Drafted answers must be those without drafts, answers given
          together those given alone, token for token: `identical` says whether they were.
Elsewhere the questions: bench_questions.py; ceilings: ceilings.py, work.py; the report: bench.py.
Source    docs/benchmarks.md
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rexthinker_edge.benchmarks.bench_questions import Question, padded_boxes
from rexthinker_edge.runtime.boxes import Boxes
from rexthinker_edge.runtime.deadline import monotonic_ms
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, VisionInput, qwen_pixels
from rexthinker_edge.runtime.result import Result, ResultEvent, TextEvent
from rexthinker_edge.runtime.scene import Scene
from rexthinker_edge.runtime.thinker import Thinker

TOGETHER = (1, 2, 4, 8)
TOGETHER_PICTURES = 5
MOST_CANDIDATES = 20  # a detector that proposes more has not understood the category


@dataclass(frozen=True)
class Asked:
    """One expression as the caller saw it, in milliseconds from the call."""

    ttft_ms: float
    total_ms: float
    result: Result

    @property
    def pass_ms(self) -> float:
        """One pass of the decoder; the first token came out of the prompt's."""
        return self.result.ms.generate / max(self.result.tokens.passes - 1, 1)


@dataclass(frozen=True)
class Group:
    """k expressions answered together."""

    ms: float
    results: list[Result]


@dataclass
class Measured:
    """Everything that was seen, a value a picture."""

    detect_ms: list[float] = field(default_factory=list)
    vision_ms: list[float] = field(default_factory=list)
    first: list[Asked] = field(default_factory=list)
    second: list[Asked] = field(default_factory=list)
    plain: list[Asked] = field(default_factory=list)  # the second expression without drafting
    together: dict[int, list[Group]] = field(default_factory=dict)  # the quicker way of the two
    mixed: dict[int, int] = field(default_factory=dict)  # pictures on which mixing was that way
    ways_alike: bool = True  # both ways gave the same answers
    alone: list[list[Result]] = field(default_factory=list)  # one by one, what was asked together
    given_boxes: int = 0  # pictures whose candidates did not come from the detector
    expressions: int = 0  # asked in all, those of the first picture too

    @property
    def drafting_identical(self) -> bool:
        """Whether drafts changed no token."""
        pairs = zip(self.second, self.plain, strict=True)
        return all(same_answer(a.result, b.result) for a, b in pairs)

    @property
    def together_identical(self) -> bool:
        """Whether every answer given together is the one given alone."""
        return (
            self.ways_alike
            and bool(self.alone)
            and all(
                len(group.results) == count
                and all(same_answer(*pair) for pair in zip(group.results, alone[:count], strict=True))
                for count, groups in self.together.items()
                for group, alone in zip(groups, self.alone, strict=True)
            )
        )

    @property
    def statuses(self) -> dict[str, int]:
        """How often each status came, over all answers that were timed."""
        seen = [asked.result for asked in (*self.first, *self.second)]
        seen += [result for groups in self.together.values() for group in groups for result in group.results]
        return dict(sorted(Counter(result.status.value for result in seen).items()))


def same_answer(one: Result, other: Result) -> bool:
    """Whether two results are the same real answer to the same expression, token for token."""
    return (
        one.expression == other.expression
        and len(one.token_ids) > 0
        and one.token_ids == other.token_ids
        and one.status is other.status
        and one.boxes == other.boxes
    )


@dataclass(frozen=True)
class Bench:
    """A loaded bundle under measurement.

    Attributes:
        tokens: most tokens of an answer; None: the bundle's own limit.
        bring_boxes: never ask the detector for candidates, it has no meaning.
    """

    thinker: Thinker
    limits: PixelLimits
    tokens: int | None = None
    bring_boxes: bool = False

    def run(self, asked: Sequence[Question], told: Callable[[int], None]) -> Measured:
        """Ask every question; the first one only warms up. `told` hears how many are done."""
        warm, seen = Measured(), Measured()
        self._picture(asked[0], warm, together=True)
        seen.expressions = warm.expressions
        told(1)
        for number, question in enumerate(asked[1:]):
            self._picture(question, seen, together=number < TOGETHER_PICTURES)
            told(number + 2)
        return seen

    def vision_input(self, question: Question) -> VisionInput:
        """The picture as the vision tower takes it."""
        return qwen_pixels(question.pixels_HWC, self.limits)

    def _picture(self, question: Question, seen: Measured, together: bool) -> None:
        parts = self.thinker._parts
        began = monotonic_ms()
        found, _ = parts.detector.detect(question.pixels_HWC, question.category)
        detect_ms = monotonic_ms() - began
        pixels = self.vision_input(question)
        began = monotonic_ms()
        parts.vision.encode(pixels)
        seen.vision_ms.append(monotonic_ms() - began)
        seen.detect_ms.append(detect_ms)
        given = self._given(question, len(found))
        first_spoken, second_spoken = question.expressions[:2]
        began = monotonic_ms()
        scene = self.thinker.look(question.pixels_HWC, question.category, boxes=given)
        waited = 0.0 if given is None else detect_ms
        seen.given_boxes += given is not None
        seen.first.append(self._ask(scene, first_spoken, began - waited))
        seen.second.append(self._ask(scene, second_spoken, monotonic_ms()))
        seen.plain.append(self._ask(scene, second_spoken, monotonic_ms(), drafting=False))
        seen.expressions += 3
        if together:
            self._together(question, scene, seen)

    def _given(self, question: Question, found: int) -> Boxes | None:
        """Candidates to bring; None where the detector's own serve."""
        height, width = question.pixels_HWC.shape[:2]
        if self.bring_boxes:
            return padded_boxes(question.boxes, (width, height))
        return None if 1 <= found <= MOST_CANDIDATES else question.boxes

    def _ask(self, scene: Scene, expression: str, began: float, drafting: bool | None = None) -> Asked:
        """Answer one expression; the first token counts when its text, or the end, is there."""
        first = None
        for event in scene.stream(expression, self.tokens, drafting=drafting):
            if isinstance(event, (TextEvent, ResultEvent)) and first is None:
                first = monotonic_ms() - began
            if isinstance(event, ResultEvent):
                result = event.result
        assert first is not None, "a stream ends with its result"
        assert result.tokens.passes > 0, "the scene has candidates"
        return Asked(first, monotonic_ms() - began, result)

    def _together(self, question: Question, scene: Scene, seen: Measured) -> None:
        boxes = np.array([candidate.box for candidate in scene.candidates], np.float64)
        language = self.thinker._parts.language
        for count in TOGETHER:
            ways = (False, True) if count > 1 and language.decoder.geometry.branches else (False,)
            made = [self._group(question, boxes, count, mixed) for mixed in ways]
            best = min(made, key=lambda group: group.ms)
            seen.together.setdefault(count, []).append(best)
            seen.mixed[count] = seen.mixed.get(count, 0) + (len(made) == 2 and best is made[1])
            seen.ways_alike &= all(map(same_answer, made[0].results, made[-1].results))
            seen.expressions += count * len(made)
        spoken = question.expressions[: max(TOGETHER)]
        seen.alone.append([scene.refer(words, self.tokens) for words in spoken])
        seen.expressions += len(spoken)

    def _group(self, question: Question, boxes: Boxes, count: int, mixed: bool) -> Group:
        """The first `count` expressions on a scene that has answered nothing, mixed or one by one."""
        pace = self.thinker._parts.language.pace
        fresh = self.thinker.look(question.pixels_HWC, question.category, boxes=boxes)
        pace.always, began = mixed, monotonic_ms()
        results = fresh.refer_many(question.expressions[:count], self.tokens)
        pace.always = None
        return Group(monotonic_ms() - began, results)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"p50_ms": float(np.percentile(values, 50)), "p95_ms": late(values)}


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return float(np.median(values))


def late(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return float(np.percentile(values, 95))


def times(asked: Sequence[Asked], of: Callable[[Sequence[float]], float] = median) -> dict[str, float]:
    """The median, or another figure, of the first token and of the whole."""
    return {name: of([getattr(one, name) for one in asked]) for name in ("ttft_ms", "total_ms")}


def late_times(seen: Measured) -> dict[str, dict[str, float]]:
    """95th percentiles of what `bench` tells medians of."""
    asked = {"first": seen.first, "second": seen.second, "undrafted": seen.plain}
    together = {str(k): late([group.ms for group in groups]) for k, groups in seen.together.items()}
    return {name: times(ones, late) for name, ones in asked.items()} | {"together": together}


def tokens_per_pass(asked: Sequence[Asked]) -> float:
    """Over all answers."""
    return sum(one.result.tokens.generated for one in asked) / sum(one.result.tokens.passes for one in asked)


def stage_times(seen: Measured) -> dict[str, dict[str, Any]]:
    """What each stage took; a token is a pass of an answer without drafts."""
    return {
        "detect": spread(seen.detect_ms),
        "vision": spread(seen.vision_ms),
        "prefill": spread([one.result.ms.prefill for one in seen.first]),
        "token": spread([one.pass_ms for one in seen.plain]),
    }
