"""One picture looked at once, and any number of expressions about it.

Layout    The KV cache holds the prefix (system turn, picture, hints); an expression's suffix and its answer
          come behind it and are forgotten by the next `rewind`.
Contract  An answer does not depend on what was asked before: a prefix hit equals a cold run.
          A scene answers one expression at a time; asked while it answers, it raises.
Elsewhere looking: thinker.py; reading the output: answer.py, trace.py.
Source    docs/sources.md#scene
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.answer import Answer, Status, read_answer
from rexthinker_edge.runtime.bundle import PromptSettings, TokenIds
from rexthinker_edge.runtime.decoder import Decoder, KVCache
from rexthinker_edge.runtime.errors import OptionError, SceneBusyError, TextError
from rexthinker_edge.runtime.generate import Generation, Limits, now_ms
from rexthinker_edge.runtime.image import Picture
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.prompt import suffix
from rexthinker_edge.runtime.result import (
    BundleInfo,
    Candidate,
    CandidatesEvent,
    Event,
    ImageInfo,
    Milliseconds,
    Result,
    ResultEvent,
    Step,
    TextEvent,
    Tokens,
    with_verdicts,
)
from rexthinker_edge.runtime.tokens import TextTokenizer, check_text
from rexthinker_edge.runtime.trace import read_trace


@dataclass(frozen=True)
class Language:
    """What turns an expression into an answer; shared by all scenes of a thinker."""

    tokenizer: TextTokenizer
    decoder: Decoder
    prompt: PromptSettings
    tokens: TokenIds
    bundle: BundleInfo


@dataclass(frozen=True)
class Sight:
    """What `look` saw."""

    picture: Picture
    category: str
    candidates: tuple[Candidate, ...]
    hints: NDArray[np.int64]  # (N, 4) candidates in resized pixels
    ms: Milliseconds  # of looking, prefix prefill included


@dataclass(frozen=True)
class Prefix:
    """The kept KV cache: its tokens, and the position of the next one."""

    cache: KVCache
    length: int
    next_position: int


class Scene:
    """A picture, a category and its candidates, ready for expressions. Made by `Thinker.look`."""

    def __init__(self, language: Language, sight: Sight, prefix: Prefix | None) -> None:
        """`prefix` is None when there are no candidates: the model is never asked then."""
        assert (prefix is None) == (not sight.candidates)
        self._language, self._sight, self._prefix = language, sight, prefix
        self._busy = threading.Lock()
        self._asked = False

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What was proposed, not yet judged."""
        return self._sight.candidates

    @property
    def category(self) -> str:
        """What was looked for."""
        return self._sight.category

    @property
    def picture(self) -> Picture:
        """The picture, upright."""
        return self._sight.picture

    def refer(
        self, expression: str, max_new_tokens: int | None = None, deadline_ms: float | None = None
    ) -> Result:
        """Find what an expression means among the candidates.

        Args:
            expression: such as "the second ball from the left".
            max_new_tokens: limit of generated tokens; the manifest's when None.
            deadline_ms: milliseconds from now after which it ends with status TIMEOUT; none when None.

        Raises:
            TextError: the expression is empty, too long or has control characters.
            OptionError: a limit is not positive, or prompt and answer together exceed the bundle's length.
            SceneBusyError: this scene is answering already.
        """
        for event in self.stream(expression, max_new_tokens, deadline_ms):
            if isinstance(event, ResultEvent):
                return event.result
        raise AssertionError("a stream ends with its result")

    def refer_many(
        self, expressions: Iterable[str], max_new_tokens: int | None = None, deadline_ms: float | None = None
    ) -> list[Result]:
        """One result per expression, in order; every expression is checked before the first is answered.

        Args:
            deadline_ms: for each expression by itself.
        """
        checked = [check_text("expression", expression) for expression in expressions]
        return [self.refer(expression, max_new_tokens, deadline_ms) for expression in checked]

    def stream(
        self, expression: str, max_new_tokens: int | None = None, deadline_ms: float | None = None
    ) -> Iterator[Event]:
        """As `refer`, told as it happens: the candidates, pieces of text, the result.

        Arguments are checked at the call; the scene stays busy until the iterator ends or is closed.
        """
        started = now_ms()
        expression = check_text("expression", expression)
        limit = self._language.prompt.max_new_tokens if max_new_tokens is None else max_new_tokens
        _check_limits(limit, deadline_ms)
        question = self._language.tokenizer.encode_parts(suffix(self._language.prompt.wording, expression))
        self._check_room(len(question), limit)
        until = None if deadline_ms is None else started + deadline_ms
        limits = Limits(frozenset(self._language.tokens.eos), limit, until)
        return self._answering(expression, question, limits)

    def _answering(self, expression: str, question: list[int], limits: Limits) -> Iterator[Event]:
        if not self._busy.acquire(blocking=False):
            raise SceneBusyError(
                "scene: asked while it is still answering, it holds one KV cache. "
                "Finish or close the stream first, or look once per thread."
            )
        try:
            yield CandidatesEvent(self.candidates)
            if self._prefix is None:
                yield ResultEvent(
                    self._result(expression, Answer(Status.NO_CANDIDATES), Tokens(), Milliseconds())
                )
            else:
                yield from self._generate(expression, question, limits, self._prefix)
        finally:
            self._busy.release()

    def _generate(
        self, expression: str, question: list[int], limits: Limits, prefix: Prefix
    ) -> Iterator[Event]:
        language, begun = self._language, now_ms()
        prefix.cache.rewind(prefix.length)
        positions = text_positions(prefix.next_position, len(question))
        logits = language.decoder.run(language.decoder.embed(question), positions, prefix.cache)
        prefilled = now_ms()
        after = prefix.next_position + len(question)
        generation = Generation(language.decoder, prefix.cache, logits, after, limits)
        stream, pieces = language.tokenizer.stream(), list[str]()
        for token in generation:
            pieces.append(stream.push(token))
            if pieces[-1]:
                yield TextEvent(pieces[-1])
        pieces.append(stream.finish())
        if pieces[-1]:
            yield TextEvent(pieces[-1])
        assert generation.finish is not None
        text = "".join(pieces)
        answer = read_answer(text, generation.finish, self._sight.hints)
        length = prefix.length + len(question)
        reused = prefix.length if self._asked else 0
        tokens = Tokens(length, reused, len(generation.token_ids), generation.passes)
        ms = Milliseconds(prefill=prefilled - begun, generate=now_ms() - prefilled)
        result = self._result(expression, answer, tokens, ms, text)
        yield ResultEvent(replace(result, token_ids=tuple(generation.token_ids)))

    def _result(
        self, expression: str, answer: Answer, tokens: Tokens, ms: Milliseconds, text: str = ""
    ) -> Result:
        sight, seen = self._sight, self._sight.picture
        trace = read_trace(text, sight.category, len(sight.candidates))
        steps = tuple(Step(s.title, s.text, s.mentioned, s.verdicts) for s in trace.sections)
        result = Result(
            image=ImageInfo(seen.path, seen.width, seen.height, seen.sha256),
            category=sight.category,
            expression=expression,
            status=answer.status,
            boxes=[list(sight.candidates[index].box) for index in answer.indices],
            candidates=with_verdicts(sight.candidates, trace.verdicts),
            thought=trace.thought,
            steps=steps,
            tokens=tokens,
            ms=_summed(ms, Milliseconds() if self._asked else sight.ms),
            bundle=self._language.bundle,
            indices=answer.indices,
            text=text,
        )
        self._asked = True
        return result

    def _check_room(self, question: int, limit: int) -> None:
        if self._prefix is None:
            return
        prompt, most = self._prefix.length + question, self._language.decoder.geometry.max_length
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


def _check_limits(max_new_tokens: int, deadline_ms: float | None) -> None:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise OptionError(
            f"max_new_tokens: {max_new_tokens!r}, a whole number above 0 is needed. "
            "Leave it out for the default."
        )
    if deadline_ms is not None and not deadline_ms > 0:
        raise OptionError(
            f"deadline_ms: {deadline_ms!r}, milliseconds above 0 are needed. Leave it out for no deadline."
        )


def _summed(own: Milliseconds, shared: Milliseconds) -> Milliseconds:
    made = Milliseconds(
        image=own.image + shared.image,
        detect=own.detect + shared.detect,
        vision=own.vision + shared.vision,
        prefill=own.prefill + shared.prefill,
        generate=own.generate + shared.generate,
    )
    return replace(made, total=made.image + made.detect + made.vision + made.prefill + made.generate)
