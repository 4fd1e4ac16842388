"""Answers to expressions about one picture: question read behind the kept prefix, answer written, judged.

Layout    A KV cache that holds the prefix (system turn, picture, hints) is lent by the prefix tree; an
          expression's suffix and its answer come behind it and are forgotten when it is given back.
Contract  An answer does not depend on what was asked before: a prefix hit equals a cold run.
          One call at a time; asked while it answers, it raises.
Elsewhere what is asked: asking.py; keeping: prefix_tree.py; one answer's tokens: generate.py; several at
          once: together.py; reading the output: answer.py, trace.py, confidence.py; telling it: sight.py.
Source    docs/sources.md#scene
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

from rexthinker_edge.runtime.answer import Answer, Status, read_answer
from rexthinker_edge.runtime.asking import ROOM, Asked
from rexthinker_edge.runtime.confidence import Likelihood, Sureness, sureness
from rexthinker_edge.runtime.deadline import Deadline, DeadlinePassed, monotonic_ms
from rexthinker_edge.runtime.draft import Drafter, SceneDrafts
from rexthinker_edge.runtime.errors import SceneBusyError
from rexthinker_edge.runtime.generate import Finish, Generation, Limits
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.prefix_tree import PrefixTree
from rexthinker_edge.runtime.prompt_path import PromptPath
from rexthinker_edge.runtime.result import CandidatesEvent, Event, Milliseconds, Result, ResultEvent, Tokens
from rexthinker_edge.runtime.sight import Sight, Telling, told
from rexthinker_edge.runtime.together import EVERY_TOKEN, TOGETHER, Question, Written, answer_together


class Answerer:
    """What a scene asks; see the module's contract."""

    def __init__(self, language: Language, sight: Sight, tree: PrefixTree, prompt: PromptPath | None) -> None:
        """`prompt` is None when there are no candidates: the model is never asked then."""
        assert (prompt is None) == (not sight.candidates)
        self._language, self._sight = language, sight
        self._tree, self._prompt = tree, prompt
        self._busy = threading.Lock()
        self._told = False  # what looking took, in the first result
        self._drafts: SceneDrafts | None = None  # made when first drafted for

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing else is answered meanwhile.

        Raises:
            SceneBusyError: something is.
        """
        if not self._busy.acquire(blocking=False):
            raise SceneBusyError(
                "scene: asked while it is still answering, it answers one call at a time. "
                "Finish or close the stream first, or look once per thread."
            )
        try:
            yield
        finally:
            self._busy.release()

    def events(self, asked: Asked, limits: Limits, alone: bool = False) -> Iterator[Event]:
        """The candidates, pieces of text, the decision, the result; busy until it ends or is closed.

        Args:
            alone: the caller has seen to it that nothing else is answered.
        """
        with nullcontext() if alone else self.alone():
            yield CandidatesEvent(self._sight.candidates)
            prompt = self._prompt
            if prompt is None:
                status = Status.TIMEOUT if self._sight.late else Status.NO_CANDIDATES
                yield ResultEvent(self._result(asked, Answer(status), Tokens(), Milliseconds()))
                return
            try:
                yield from self._answer(asked, limits, prompt)
            except DeadlinePassed:
                yield ResultEvent(self._late(asked, prompt))

    def together(self, asked: Sequence[Asked], limits: Limits) -> list[Result]:
        """A result each, `TOGETHER` at a time: in one cache where the graph branches and that is quicker."""
        results: list[Result] = []
        pace, prompt, drafting = self._language.pace, self._prompt, self._language.drafting
        # What is mixed and then read again whole is seldom sooner there than drafts alone (docs/scenes.md).
        likelier = self._language.near_tie != EVERY_TOKEN or drafting is None or not drafting.on
        if not self._language.decoder.geometry.branches:
            prompt = None  # nothing to mix behind
        with self.alone():
            for start in range(0, len(asked), TOGETHER):
                group, begun = asked[start : start + TOGETHER], time.thread_time()
                if prompt is not None and len(group) > 1 and pace.mixes(len(group), likelier):
                    count, made = len(group), self._group(group, limits, prompt)
                else:
                    count, made = 1, [self._one(one, limits) for one in group]
                written = sum(result.tokens.generated for result in made)
                pace.learn(count, written, (time.thread_time() - begun) * 1000)
                results += made
        return results

    def _one(self, asked: Asked, limits: Limits) -> Result:
        *_, last = self.events(asked, limits, alone=True)
        assert isinstance(last, ResultEvent)
        return last.result

    def _answer(self, asked: Asked, limits: Limits, prompt: PromptPath) -> Iterator[Event]:
        """One answer: its events, the result last."""
        decoder, begun, question = self._language.decoder, monotonic_ms(), asked.token_ids
        deadline = Deadline(limits.deadline_ms)
        with self._tree.lend(prompt.segments, limits.max_new_tokens + ROOM, deadline) as lent:
            positions = text_positions(prompt.next_position, len(question))
            logits = decoder.run(decoder.embed(question), positions, lent.cache, deadline=deadline)
            prefilled = monotonic_ms()
            after = prompt.next_position + len(question)
            drafts, choose = self._drafter(asked, lent.cache, after, deadline), asked.terms.manner.choose()
            notes = Likelihood()
            generation = Generation(decoder, lent.cache, logits, after, limits, drafts, choose, notes)
            telling = Telling(self._sight, self._language.tokenizer, decide=asked.terms.bar is None)
            for token in generation:
                yield from telling.push(token)
            yield from telling.finish()
            assert generation.finish is not None
            ms = Milliseconds(prefill=prefilled - begun, generate=monotonic_ms() - prefilled)
            ids = tuple(generation.token_ids)
            written = Written(telling.text, generation.finish, ids, generation.passes, ms, notes)
            yield ResultEvent(self._written(asked, written, lent.reused, prompt))

    def _group(self, asked: Sequence[Asked], limits: Limits, prompt: PromptPath) -> list[Result]:
        """A few answers decoded in one cache."""
        language = self._language
        deadline = Deadline(limits.deadline_ms)
        room = sum(len(one.token_ids) + limits.max_new_tokens + 2 for one in asked)
        try:
            with self._tree.lend(prompt.segments, room, deadline) as lent:
                questions = []
                for one in asked:
                    after = prompt.next_position + len(one.token_ids)
                    draft = partial(self._drafter, one, lent.cache, after, deadline)
                    questions.append(Question(one.token_ids, prompt.next_position, draft(), draft))
                written = answer_together(
                    language.decoder, language.tokenizer, lent.cache, questions, limits, language.near_tie
                )
                return [
                    self._written(one, answer, lent.reused, prompt)
                    for one, answer in zip(asked, written, strict=True)
                ]
        except DeadlinePassed:
            return [self._late(one, prompt) for one in asked]

    def _drafter(self, asked: Asked, cache: KVCache, position: int, deadline: Deadline) -> Drafter | None:
        """What foresees the answer, where that is wanted."""
        language, drafting, wanted = self._language, self._language.drafting, asked.terms.manner.drafting
        if drafting is None or not (drafting.on if wanted is None else wanted):
            return None
        if self._drafts is None:
            sight = self._sight
            self._drafts = drafting.scene(language.tokenizer, sight.category, sight.hints.tolist())
        spoken, ids = asked.expression, asked.token_ids
        return self._drafts.answer(spoken, ids, language.decoder, cache, position, deadline)

    def _written(self, asked: Asked, written: Written, found: int, prompt: PromptPath) -> Result:
        """The result of what the model wrote, withheld where it does not pass its bar."""
        answer = read_answer(written.text, written.finish, self._sight.hints)
        reused = found if self._told else min(found, self._sight.reused)
        length = prompt.length + len(asked.token_ids)
        tokens = Tokens(length, reused, len(written.token_ids), written.passes)
        sure = self._sureness(written, answer.status)
        result = self._result(asked, answer, tokens, written.ms, written.text, sure)
        passes = tuple(written.likelihood.passes)
        result = replace(result, token_ids=written.token_ids, pass_tokens=passes)
        return result if asked.terms.bar is None else asked.terms.bar.held_against(result)

    def _sureness(self, written: Written, status: Status) -> Sureness:
        spoken = written.token_ids[:-1] if written.finish is Finish.STOP else written.token_ids
        sight, tokenizer = self._sight, self._language.tokenizer
        return sureness(written.likelihood, tokenizer, spoken, sight.category, len(sight.candidates), status)

    def _late(self, asked: Asked, prompt: PromptPath) -> Result:
        tokens = Tokens(prompt.length + len(asked.token_ids))
        return self._result(asked, Answer(Status.TIMEOUT), tokens, Milliseconds())

    def _result(
        self, asked: Asked, answer: Answer, tokens: Tokens, ms: Milliseconds, text: str = "",
        sure: Sureness | None = None,
    ) -> Result:  # fmt: skip
        first, self._told = not self._told, True
        bundle = self._language.bundle
        return told(self._sight, asked.expression, answer, tokens, ms, text, first, bundle, sure)
