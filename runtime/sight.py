"""What looking saw, and how an answer about it is told, while it is written and as a result.

Elsewhere looking: looking.py; answering: answering.py; what is told: result.py; verdicts: trace.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.answer import Answer
from rexthinker_edge.runtime.confidence import Sureness
from rexthinker_edge.runtime.image import Picture
from rexthinker_edge.runtime.result import (
    BundleInfo,
    Candidate,
    CandidateVerdict,
    DecidedEvent,
    ImageInfo,
    Milliseconds,
    Result,
    Step,
    TextEvent,
    Tokens,
    with_verdicts,
)
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.trace import THINK_END, Section, Verdict, read_trace


@dataclass(frozen=True)
class Sight:
    """What `look` saw."""

    picture: Picture
    category: str
    candidates: tuple[Candidate, ...]
    hints: NDArray[np.int64]  # (N, 4) candidates in resized pixels
    ms: Milliseconds  # of looking, prefix prefill included
    reused: int = 0  # tokens of the prefix that looking found kept
    late: bool = False  # the deadline of looking came before the candidates were known


class Telling:
    """An answer told as it is written: its text in whole characters, and the decision once."""

    def __init__(self, sight: Sight, tokenizer: TextTokenizer, decide: bool) -> None:
        """`decide`: whether the decision may be told before the result."""
        self._sight, self._stream = sight, tokenizer.stream()
        self._pieces: list[str] = []
        self._undecided = decide

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    def push(self, token_id: int) -> Iterator[TextEvent | DecidedEvent]:
        """What is to be told of one more token."""
        piece = self._stream.push(token_id)
        self._pieces.append(piece)
        if piece:
            yield TextEvent(piece)
        if self._undecided and ">" in piece:
            event = decision(self._sight, self.text)
            if event is not None:
                self._undecided = False
                yield event

    def finish(self) -> Iterator[TextEvent]:
        """What is left when no token follows."""
        piece = self._stream.finish()
        self._pieces.append(piece)
        if piece:
            yield TextEvent(piece)


def told(
    sight: Sight, expression: str, answer: Answer, tokens: Tokens, ms: Milliseconds, text: str, first: bool,
    bundle: BundleInfo, sure: Sureness | None = None,
) -> Result:  # fmt: skip
    """The result of one expression.

    Args:
        text: everything generated.
        first: the scene's first result, which tells what looking took.
        sure: read from the same text; None where nothing was generated.
    """
    seen = sight.picture
    trace = read_trace(text, sight.category, len(sight.candidates)) if sure is None else sure.trace
    return Result(
        image=ImageInfo(seen.path, seen.width, seen.height, seen.sha256),
        category=sight.category,
        expression=expression,
        status=answer.status,
        boxes=[list(sight.candidates[index].box) for index in answer.indices],
        candidates=with_verdicts(sight.candidates, trace.verdicts),
        thought=trace.thought,
        steps=tuple(_step(section, k, sure) for k, section in enumerate(trace.sections)),
        tokens=tokens,
        ms=_summed(ms, sight.ms if first else Milliseconds()),
        bundle=bundle,
        confidence=None if sure is None else sure.answer,
        verdicts=tuple(
            CandidateVerdict(index, verdict, None if sure is None else sure.verdicts[index])
            for index, verdict in enumerate(trace.verdicts)
        ),
        indices=answer.indices,
        text=text,
    )


def _step(section: Section, place: int, sure: Sureness | None) -> Step:
    told = sure.checks[place] if sure is not None else (None,) * len(section.checks)
    given = {check.index: confidence for check, confidence in zip(section.checks, told, strict=True)}
    confidences = tuple(given.get(index) for index in section.mentioned)
    return Step(section.title, section.text, section.mentioned, section.verdicts, confidences)


def decision(sight: Sight, text: str) -> DecidedEvent | None:
    """What the thought so far has decided: something once it is closed and has judged every candidate."""
    if THINK_END not in text:
        return None
    verdicts = read_trace(text, sight.category, len(sight.candidates)).verdicts
    if Verdict.UNKNOWN in verdicts:
        return None
    indices = tuple(index for index, verdict in enumerate(verdicts) if verdict is Verdict.MATCH)
    return DecidedEvent(indices, [list(sight.candidates[index].box) for index in indices])


def _summed(own: Milliseconds, shared: Milliseconds) -> Milliseconds:
    made = Milliseconds(
        image=own.image + shared.image,
        detect=own.detect + shared.detect,
        vision=own.vision + shared.vision,
        prefill=own.prefill + shared.prefill,
        generate=own.generate + shared.generate,
    )
    return replace(made, total=made.image + made.detect + made.vision + made.prefill + made.generate)
