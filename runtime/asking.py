"""What is asked: an expression and the terms of its answer, checked before anything runs.

Contract  What cannot be honoured is refused here, by name; an answer that was begun keeps its terms.
Elsewhere who asks: scene.py; who answers: answering.py; drafts and sampling: manner.py; risk: risk.py.
Source    docs/sources.md#scene
"""

import math
from dataclasses import dataclass, replace

from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.errors import OptionError, TextError
from rexthinker_edge.runtime.generate import Limits
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.manner import Manner
from rexthinker_edge.runtime.prompt import suffix
from rexthinker_edge.runtime.prompt_path import PromptPath
from rexthinker_edge.runtime.result import Abstention, Result
from rexthinker_edge.runtime.risk import threshold

ROOM = 64  # tokens behind the longest answer: an expression's own


@dataclass(frozen=True)
class Bar:
    """How sure an answer must be to be given, and for which risk."""

    max_risk: float
    threshold: float

    def held_against(self, result: Result) -> Result:
        """The result, or the same with its answer withheld."""
        sure = result.confidence
        if sure is None or sure > self.threshold:
            return result
        reason = (
            f"the answer's confidence is {sure:.4f}, more than {self.threshold:.4f} is needed "
            f"for a risk of {self.max_risk:g}"
        )
        abstention = Abstention(reason, self.max_risk, self.threshold, result.status, result.boxes)
        return replace(result, status=Status.UNGROUNDED, boxes=[], indices=(), abstention=abstention)


@dataclass(frozen=True)
class Terms:
    """How an answer is wanted; `deadline_ms` counts from when it begins, `bar` None gives every answer."""

    max_new_tokens: int
    deadline_ms: float | None
    manner: Manner
    bar: Bar | None

    def limits(self, language: Language, begun_ms: float) -> Limits:
        """When an answer that begins at this instant of `monotonic_ms()` has to end."""
        until = None if self.deadline_ms is None else begun_ms + self.deadline_ms
        return Limits(frozenset(language.tokens.eos), self.max_new_tokens, until)


@dataclass(frozen=True)
class Asked:
    """One expression, ready to be read."""

    expression: str
    token_ids: list[int]  # what stands behind the prompt's cut
    terms: Terms


def agree(
    language: Language, max_new_tokens: int | None, deadline_ms: float | None, max_risk: float | None,
    manner: Manner,
) -> Terms:  # fmt: skip
    """Check how an answer is wanted; the arguments are those of `Scene.stream`.

    Raises:
        OptionError: a limit is not positive, the manner cannot be honoured, or the bundle cannot hold
            `max_risk`, or not when tokens are drawn.
    """
    limit = language.prompt.max_new_tokens if max_new_tokens is None else max_new_tokens
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise OptionError(
            f"max_new_tokens: {limit!r}, a whole number above 0 is needed. Leave it out for the default."
        )
    check_deadline(deadline_ms)
    manner.check()
    if max_risk is None:
        return Terms(limit, deadline_ms, manner, None)
    bar = Bar(max_risk, threshold(language.risk, language.bundle.name, max_risk))
    if manner.temperature:
        raise OptionError(
            f"max_risk: {max_risk:g} at temperature {manner.temperature:g}, but the calibration's answers "
            "were the likeliest ones. Leave one of the two out."
        )
    return Terms(limit, deadline_ms, manner, bar)


def ask(language: Language, prompt: PromptPath | None, expression: str, terms: Terms) -> Asked:
    """Make tokens of an expression that tokens.check_text has passed.

    Args:
        prompt: what stands before; None when there are no candidates, and the model is never asked.

    Raises:
        TextError, OptionError: prompt and answer together exceed the bundle's length.
    """
    token_ids = language.tokenizer.encode_parts(suffix(language.prompt.wording, expression))
    if prompt is not None:
        most = language.decoder.geometry.max_length
        _check_room(prompt.length + len(token_ids), terms.max_new_tokens, most)
    return Asked(expression, token_ids, terms)


def _check_room(prompt: int, limit: int, most: int) -> None:
    if prompt >= most:
        raise TextError(
            f"expression: it makes a prompt of {prompt:,} tokens, the bundle allows {most:,}. "
            "Shorten it, or give fewer candidate boxes."
        )
    if prompt + limit > most:
        raise OptionError(
            f"max_new_tokens: {limit:,} after a prompt of {prompt:,} tokens, the bundle allows {most:,} "
            f"together. Ask for {most - prompt:,} or fewer, or give fewer candidate boxes."
        )


def check_deadline(deadline_ms: float | None) -> None:
    """Refuse a deadline that is no number of milliseconds above 0.

    Raises:
        OptionError: it is not.
    """
    if deadline_ms is None:
        return
    number = isinstance(deadline_ms, int | float) and not isinstance(deadline_ms, bool)
    if not number or not math.isfinite(deadline_ms) or deadline_ms <= 0:
        raise OptionError(
            f"deadline_ms: {deadline_ms!r}, milliseconds above 0 are needed. Leave it out for no deadline."
        )
