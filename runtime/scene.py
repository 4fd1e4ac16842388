"""One picture looked at once, and any number of expressions about it.

Layout    A KV cache that holds the prefix (system turn, picture, hints) is lent by the prefix tree; an
          expression's suffix and its answer come behind it and are forgotten when it is given back.
Contract  An answer does not depend on what was asked before: a prefix hit equals a cold run.
          A scene answers one call at a time; asked while it answers, it raises.
Elsewhere looking: looking.py; keeping: prefix_tree.py, kept_scene.py; several at once: together.py;
          reading the output: answer.py, trace.py.
Source    docs/sources.md#scene
"""

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rexthinker_edge.runtime.answer import Answer, Status, read_answer
from rexthinker_edge.runtime.bundle import PromptSettings, TokenIds
from rexthinker_edge.runtime.confidence import Likelihood, Sureness, sureness
from rexthinker_edge.runtime.deadline import Deadline, DeadlinePassed
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.draft import Drafter, Drafting, SceneDrafts
from rexthinker_edge.runtime.errors import OptionError, SceneBusyError, TextError
from rexthinker_edge.runtime.generate import Finish, Generation, Limits, now_ms
from rexthinker_edge.runtime.image import Picture
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.manner import Manner
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.prefix_tree import PrefixTree
from rexthinker_edge.runtime.prompt import suffix
from rexthinker_edge.runtime.prompt_path import PromptPath
from rexthinker_edge.runtime.result import (
    Abstention,
    BundleInfo,
    Candidate,
    CandidatesEvent,
    DecidedEvent,
    Event,
    Milliseconds,
    Result,
    ResultEvent,
    TextEvent,
    Tokens,
)
from rexthinker_edge.runtime.risk import RiskCard, threshold
from rexthinker_edge.runtime.sight import Sight, decision, told
from rexthinker_edge.runtime.together import TOGETHER, Question, Written, answer_together
from rexthinker_edge.runtime.tokens import TextTokenizer, check_text

ROOM = 64  # tokens behind the longest answer: an expression's own


@dataclass(frozen=True)
class Language:
    """What turns an expression into an answer; shared by all scenes of a thinker."""

    tokenizer: TextTokenizer
    decoder: Decoder
    prompt: PromptSettings
    tokens: TokenIds
    bundle: BundleInfo
    drafting: Drafting | None = None  # None never drafts
    risk: RiskCard | None = None  # None: no answer can be withheld for its risk


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
class _Asked:
    """One expression, ready to be read."""

    expression: str
    token_ids: list[int]
    manner: Manner = field(default_factory=Manner)
    bar: Bar | None = None  # how sure the answer must be


class Scene:
    """A picture, a category and its candidates, ready for expressions. Made by `Thinker.look`."""

    def __init__(self, language: Language, sight: Sight, tree: PrefixTree, prompt: PromptPath | None) -> None:
        """`prompt` is None when there are no candidates: the model is never asked then."""
        assert (prompt is None) == (not sight.candidates)
        self._language, self._sight = language, sight
        self._tree, self._prompt = tree, prompt
        self._busy = threading.Lock()
        self._told = False  # what looking took, in the first result
        self._drafts: SceneDrafts | None = None  # made when first drafted for

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
        self, expression: str, max_new_tokens: int | None = None, deadline_ms: float | None = None, *,
        drafting: bool | None = None, temperature: float = 0.0, seed: int | None = None,
        max_risk: float | None = None,
    ) -> Result:  # fmt: skip
        """Find what an expression means among the candidates.

        Args:
            expression: such as "the second ball from the left".
            max_new_tokens: limit of generated tokens; the manifest's when None.
            deadline_ms: milliseconds from now after which it ends with status TIMEOUT; none when None.
            drafting: foresee tokens and verify several in one pass, which changes the time and no token;
                None: as `load` was told.
            temperature: 0 gives the likeliest answer; above, tokens are drawn from softmax(logits / it).
            seed: of the drawing.
            max_risk: of the answers given, the share that may be wrong, such as 0.05: an answer less sure
                than the bundle's calibration asks for is withheld, its status UNGROUNDED and `abstention`
                telling what it was. What that promises, and when, is in docs/risk.md.

        Raises:
            TextError: the expression is empty, too long or has control characters.
            OptionError: a limit is not positive, prompt and answer together exceed the bundle's length,
                temperature and seed cannot be honoured, or the bundle cannot hold `max_risk`.
            SceneBusyError: this scene is answering already.
        """
        events = self.stream(
            expression, max_new_tokens, deadline_ms, drafting=drafting, temperature=temperature, seed=seed,
            max_risk=max_risk,
        )  # fmt: skip
        for event in events:
            if isinstance(event, ResultEvent):
                return event.result
        raise AssertionError("a stream ends with its result")

    def refer_many(
        self, expressions: Iterable[str], max_new_tokens: int | None = None, deadline_ms: float | None = None,
        *, max_risk: float | None = None,
    ) -> list[Result]:  # fmt: skip
        """One result per expression, in order; every expression is checked before the first is answered.

        They are decoded together, `TOGETHER` at a time, where the bundle's decoder allows it (bundles of
        earlier versions do not); the results are those of asking one by one, but for the last digits of
        confidences, which are read from rows that round otherwise.

        Args:
            deadline_ms: for each expression, from when its decoding begins.
            max_risk: as in `refer`.
        """
        checked = [check_text("expression", expression) for expression in expressions]
        limit, bar = self._limit(max_new_tokens, deadline_ms), self._bar(max_risk)
        asked = [replace(self._asked(expression, limit), bar=bar) for expression in checked]
        prompt = self._prompt
        if prompt is None or len(asked) < 2 or not self._language.decoder.geometry.branches:
            return [
                self.refer(one.expression, max_new_tokens, deadline_ms, max_risk=max_risk) for one in asked
            ]
        results: list[Result] = []
        with self._answering_alone():
            for start in range(0, len(asked), TOGETHER):
                results += self._together(asked[start : start + TOGETHER], limit, deadline_ms, prompt)
        return results

    def stream(
        self, expression: str, max_new_tokens: int | None = None, deadline_ms: float | None = None, *,
        drafting: bool | None = None, temperature: float = 0.0, seed: int | None = None,
        max_risk: float | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        """As `refer`, told as it happens: the candidates, pieces of text, the decision, the result.

        With `max_risk` no decision is told before the result: it might have to be taken back.
        Arguments are checked at the call; the scene stays busy until the iterator ends or is closed.
        """
        started = now_ms()
        expression = check_text("expression", expression)
        limit = self._limit(max_new_tokens, deadline_ms)
        manner = Manner(drafting, temperature, seed)
        manner.check()
        bar = self._bar(max_risk)
        if bar is not None and temperature:
            raise OptionError(
                f"max_risk: {max_risk:g} at temperature {temperature:g}, but the calibration's answers were "
                "the likeliest ones. Leave one of the two out."
            )
        asked = replace(self._asked(expression, limit), manner=manner, bar=bar)
        until = None if deadline_ms is None else started + deadline_ms
        limits = Limits(frozenset(self._language.tokens.eos), limit, until)
        return self._events(asked, limits)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scene to a file that `Thinker.restore` of the same bundle reads; all of it or nothing.

        Raises:
            SceneError: it cannot be written there.
            SceneBusyError: this scene is answering.
        """
        from rexthinker_edge.runtime.kept_scene import save_scene  # noqa: PLC0415 -- it imports this module

        with self._answering_alone():
            save_scene(self._language, self._sight, self._tree, self._prompt, path)

    @contextmanager
    def _answering_alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise SceneBusyError(
                "scene: asked while it is still answering, it answers one call at a time. "
                "Finish or close the stream first, or look once per thread."
            )
        try:
            yield
        finally:
            self._busy.release()

    def _events(self, asked: _Asked, limits: Limits) -> Iterator[Event]:
        with self._answering_alone():
            yield CandidatesEvent(self.candidates)
            if self._prompt is None:
                status = Status.TIMEOUT if self._sight.late else Status.NO_CANDIDATES
                yield ResultEvent(self._result(asked, Answer(status), Tokens(), Milliseconds()))
                return
            try:
                yield from self._generate(asked, limits, self._prompt)
            except DeadlinePassed:
                yield ResultEvent(self._late(asked))

    def _generate(self, asked: _Asked, limits: Limits, prompt: PromptPath) -> Iterator[Event]:
        language, begun, question = self._language, now_ms(), asked.token_ids
        deadline = Deadline(limits.deadline_ms)
        with self._tree.lend(prompt.segments, limits.max_new_tokens + ROOM, deadline) as lent:
            positions = text_positions(prompt.next_position, len(question))
            embeds = language.decoder.embed(question)
            logits = language.decoder.run(embeds, positions, lent.cache, deadline=deadline)
            prefilled = now_ms()
            after = prompt.next_position + len(question)
            drafts, choose = self._drafter(asked, lent.cache, after), asked.manner.choose()
            notes, decoder = Likelihood(), language.decoder
            generation = Generation(decoder, lent.cache, logits, after, limits, drafts, choose, notes)
            text = yield from self._text_events(generation, decide=asked.bar is None)
            assert generation.finish is not None
            ms = Milliseconds(prefill=prefilled - begun, generate=now_ms() - prefilled)
            ids = tuple(generation.token_ids)
            written = Written(text, generation.finish, ids, generation.passes, ms, notes)
            yield ResultEvent(self._written(asked, written, lent.reused))

    def _drafter(self, asked: _Asked, cache: KVCache, position: int) -> Drafter | None:
        """What foresees the answer, where that is wanted."""
        language, drafting = self._language, self._language.drafting
        if drafting is None or not (drafting.on if asked.manner.drafting is None else asked.manner.drafting):
            return None
        if self._drafts is None:
            self._drafts = drafting.scene(language.tokenizer, self.category, self._sight.hints.tolist())
        return self._drafts.answer(asked.expression, asked.token_ids, language.decoder, cache, position)

    def _text_events(
        self, generation: Generation, decide: bool
    ) -> Generator[TextEvent | DecidedEvent, None, str]:
        """Text as it comes, and the decision once, where it may be told; returns the whole text."""
        stream, pieces, decided = self._language.tokenizer.stream(), list[str](), not decide
        for token in generation:
            pieces.append(stream.push(token))
            if pieces[-1]:
                yield TextEvent(pieces[-1])
            if not decided and ">" in pieces[-1]:
                event = decision(self._sight, "".join(pieces))
                if event is not None:
                    decided = True
                    yield event
        pieces.append(stream.finish())
        if pieces[-1]:
            yield TextEvent(pieces[-1])
        return "".join(pieces)

    def _together(
        self, asked: Sequence[_Asked], limit: int, deadline_ms: float | None, prompt: PromptPath
    ) -> list[Result]:
        begun = now_ms()
        limits = Limits(
            frozenset(self._language.tokens.eos), limit, None if deadline_ms is None else begun + deadline_ms
        )
        room = sum(len(one.token_ids) + limit + 2 for one in asked)
        try:
            with self._tree.lend(prompt.segments, room, Deadline(limits.deadline_ms)) as lent:
                questions = [
                    Question(
                        one.token_ids,
                        prompt.next_position,
                        self._drafter(one, lent.cache, prompt.next_position + len(one.token_ids)),
                    )
                    for one in asked
                ]
                written = answer_together(
                    self._language.decoder, self._language.tokenizer, lent.cache, questions, limits
                )
                return [
                    self._written(one, answer, lent.reused)
                    for one, answer in zip(asked, written, strict=True)
                ]
        except DeadlinePassed:
            return [self._late(one) for one in asked]

    def _written(self, asked: _Asked, written: Written, found: int) -> Result:
        assert self._prompt is not None
        answer = read_answer(written.text, written.finish, self._sight.hints)
        reused = found if self._told else min(found, self._sight.reused)
        length = self._prompt.length + len(asked.token_ids)
        tokens = Tokens(length, reused, len(written.token_ids), written.passes)
        sure = self._sureness(written, answer.status)
        result = self._result(asked, answer, tokens, written.ms, written.text, sure)
        result = replace(result, token_ids=written.token_ids)
        return result if asked.bar is None else asked.bar.held_against(result)

    def _sureness(self, written: Written, status: Status) -> Sureness:
        spoken = written.token_ids[:-1] if written.finish is Finish.STOP else written.token_ids
        count = len(self.candidates)
        return sureness(written.likelihood, self._language.tokenizer, spoken, self.category, count, status)

    def _late(self, asked: _Asked) -> Result:
        assert self._prompt is not None
        tokens = Tokens(self._prompt.length + len(asked.token_ids))
        return self._result(asked, Answer(Status.TIMEOUT), tokens, Milliseconds())

    def _result(
        self, asked: _Asked, answer: Answer, tokens: Tokens, ms: Milliseconds, text: str = "",
        sure: Sureness | None = None,
    ) -> Result:  # fmt: skip
        first, self._told = not self._told, True
        bundle = self._language.bundle
        return told(self._sight, asked.expression, answer, tokens, ms, text, first, bundle, sure)

    def _asked(self, expression: str, limit: int) -> _Asked:
        language = self._language
        token_ids = language.tokenizer.encode_parts(suffix(language.prompt.wording, expression))
        if self._prompt is not None:
            _check_room(self._prompt.length + len(token_ids), limit, language.decoder.geometry.max_length)
        return _Asked(expression, token_ids)

    def _bar(self, max_risk: float | None) -> Bar | None:
        if max_risk is None:
            return None
        language = self._language
        return Bar(max_risk, threshold(language.risk, language.bundle.name, max_risk))

    def _limit(self, max_new_tokens: int | None, deadline_ms: float | None) -> int:
        limit = self._language.prompt.max_new_tokens if max_new_tokens is None else max_new_tokens
        _check_limits(limit, deadline_ms)
        return limit


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


def _check_limits(max_new_tokens: int, deadline_ms: float | None) -> None:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise OptionError(
            f"max_new_tokens: {max_new_tokens!r}, a whole number above 0 is needed. "
            "Leave it out for the default."
        )
    check_deadline(deadline_ms)


def check_deadline(deadline_ms: float | None) -> None:
    """Refuse a deadline that is not above 0.

    Raises:
        OptionError: it is not.
    """
    if deadline_ms is not None and not deadline_ms > 0:
        raise OptionError(
            f"deadline_ms: {deadline_ms!r}, milliseconds above 0 are needed. Leave it out for no deadline."
        )
