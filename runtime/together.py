"""Several expressions decoded together behind one prefix.

Layout    All answers lie in one cache, mixed: a pass reads the next token of every answer that goes on and
          writes their rows one behind the other. The attention bias hides from each token the rows of the
          other answers, so the prefix is stored and read once. An answer that ends leaves; the rest go on.
          (GroupQueryAttention refuses several rows a batch entry over a past, and a batch would hold the
          prefix once per entry; docs/scenes.md.) Drafted tokens stand behind the one they follow; the rows
          of those that did not hold are hidden from then on. Rows that nobody looks at any longer are taken
          out once there are many, for every token scores them all the same.
Contract  Token for token what asking one by one gives. Where the decoder's rows are alike that is so by
          itself. Elsewhere sums over mixed rows run in another order, so two
          logits that nearly tie may change places: an answer that met such a tie is read again by itself, in
          one pass, and goes on alone from the token where it differs. Where activations are rounded every
          answer is read again, and every token of it compared. Likelihoods are those of the mixed rows, so
          they differ from those of asking one by one in their last digits.
Elsewhere one answer: generate.py; the pass: decoder.py; who asks: answering.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.confidence import Likelihood
from rexthinker_edge.runtime.deadline import Deadline, DeadlinePassed, monotonic_ms
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.generate import Drafts, Finish, Generation, Limits, held
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.result import Milliseconds
from rexthinker_edge.runtime.tokens import TextTokenizer

TOGETHER = 8  # answers in one group: more would mostly read each other's hidden rows
# Two logits closer than this share of the largest may have changed places. Mixed rows moved two against each
# other by 2e-6 of it at most where products are float32 throughout (17,000 tokens of the small model). Where
# they round activations it was 0.042, and 9 of 17,000 tokens changed: there every token is read again.
FLOAT_NEAR_TIE = 1 / 2048
EVERY_TOKEN, NO_TOKEN = float("inf"), -1.0
USELESS = 0.25  # of the rows behind the prefix: as many are taken out
_PREFIX, _DEAD = -1, -2  # owners of rows that all see, and of drafted rows that did not hold


class BesideDrafts(Protocol):
    """What an answer among others asks of its drafter; draft.Drafter is the one."""

    def propose(self, most: int, beside: int) -> list[int]:
        """At most `most` tokens that may come next, when the pass has `beside` rows of other answers."""

    def chosen(self, tokens: Sequence[int]) -> None:
        """These tokens were chosen, in order."""


@dataclass(frozen=True)
class Question:
    """What is read behind the prefix."""

    token_ids: list[int]
    position: int  # of its first token
    drafts: "BesideDrafts | None" = None
    alone: Callable[[], "Drafts | None"] | None = None  # drafts anew, for an answer that goes on alone


@dataclass(frozen=True)
class Written:
    """One answer as the model wrote it."""

    text: str
    finish: Finish
    token_ids: tuple[int, ...]  # end token included
    passes: int
    ms: Milliseconds  # prefill and generate only
    likelihood: Likelihood = field(default_factory=Likelihood)


@dataclass(eq=False)
class _Branch:
    """One answer on its way."""

    owner: int
    question: Question
    token_ids: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)  # which of token_ids were nearly others
    finish: Finish | None = None
    ended_ms: float = 0.0
    passes: int = 0
    likelihood: Likelihood = field(default_factory=Likelihood)

    @property
    def next_position(self) -> int:
        """Of the token to be read next, the last one chosen."""
        return self.question.position + len(self.question.token_ids) + len(self.token_ids) - 1

    def propose(self, limits: Limits, beside: int) -> list[int]:
        """A draft of what comes behind the last token, where it pays."""
        most, drafts = limits.max_new_tokens - len(self.token_ids) - 1, self.question.drafts
        return drafts.propose(most, beside) if drafts is not None and most > 0 else []

    def take(self, seen: "_Seen", drafted: list[int], limits: Limits) -> int:
        """Choose from what len(drafted) + 1 rows say, noting near ties; returns how many were chosen."""
        won = held(lambda _: seen.best, seen.logits, drafted, limits.end_ids)
        begun = len(self.token_ids)
        self.doubtful += [begun + place for place, near in enumerate(seen.near[: len(won)]) if near]
        self.token_ids += won
        if self.question.drafts is not None:
            self.question.drafts.chosen(won)
        self.likelihood.note(seen.logits, won)
        self.passes += 1
        if won[-1] in limits.end_ids:
            self.finish = Finish.STOP
        elif len(self.token_ids) >= limits.max_new_tokens:
            self.finish = Finish.LENGTH
        self.ended_ms = monotonic_ms()
        return len(won)


@dataclass(frozen=True)
class _Seen:
    """Some rows of a pass: (R, vocab) logits, the first largest of each, and whether another is near."""

    logits: NDArray[np.float32]
    best: list[int]
    near: list[bool]

    def part(self, start: int, stop: int) -> "_Seen":
        """Rows [start, stop)."""
        return _Seen(self.logits[start:stop], self.best[start:stop], self.near[start:stop])


def _look(logits: NDArray[np.float32], near_tie: float) -> _Seen:
    """Find each row's largest, and whether the second is within `near_tie` of it."""
    best, rows = logits.argmax(axis=1), np.arange(len(logits))
    tops = logits[rows, best]
    logits[rows, best] = -np.inf
    seconds = logits.max(axis=1)
    logits[rows, best] = tops
    near = tops - seconds <= near_tie * np.abs(tops)
    return _Seen(logits, best.tolist(), near.tolist())


class Together:
    """Answers that grow in one cache."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, questions: Sequence[Question], limits: Limits,
        near_tie: float = EVERY_TOKEN,
    ) -> None:  # fmt: skip
        """Begin behind what the cache holds; read the questions, in as few passes as one question's.

        Args:
            near_tie: share of the largest logit by which a mixed pass may be off.
        """
        self.decoder, self.cache, self.limits, self.near_tie = decoder, cache, limits, near_tie
        self.owners = np.full(cache.length, _PREFIX, np.int32)
        self.branches = [_Branch(owner, question) for owner, question in enumerate(questions)]
        ids = [token for question in questions for token in question.token_ids]
        owners = np.repeat(np.arange(len(questions), dtype=np.int32), [len(q.token_ids) for q in questions])
        positions = [text_positions(q.position, len(q.token_ids)) for q in questions]
        lasts = np.cumsum([len(q.token_ids) for q in questions]) - 1
        seen = _look(self._read(ids, np.concatenate(positions, axis=1), owners, lasts), near_tie)
        for place, branch in enumerate(self.branches):
            branch.take(seen.part(place, place + 1), [], limits)

    def step(self) -> bool:
        """One pass for every answer that goes on; False when none does any longer."""
        going = [branch for branch in self.branches if branch.finish is None]
        try:
            Deadline(self.limits.deadline_ms).check()
            if going:
                self._pass(going)
        except DeadlinePassed:
            for branch in going:
                branch.finish, branch.ended_ms = Finish.DEADLINE, monotonic_ms()
        return any(branch.finish is None for branch in going)

    def _pass(self, going: list[_Branch]) -> None:
        self._tidy(going)
        begun, drafted, rows = self.cache.length, list[list[int]](), len(going)
        for branch in going:
            drafted.append(branch.propose(self.limits, rows - 1))
            rows += len(drafted[-1])
        ids = [[branch.token_ids[-1], *draft] for branch, draft in zip(going, drafted, strict=True)]
        padding = 1 if rows == 1 and not self.decoder.rows_alike else 0  # as in generate.py
        ids[-1] += ids[-1] * padding
        lengths = [len(part) for part in ids]
        positions = [text_positions(b.next_position, n) for b, n in zip(going, lengths, strict=True)]
        owners = np.repeat(np.array([branch.owner for branch in going], np.int32), lengths)
        flat = [token for part in ids for token in part]
        logits = self._read(flat, np.concatenate(positions, axis=1), owners, np.arange(rows))
        seen = _look(logits, self.near_tie)
        self.cache.rewind(begun + rows)
        self.owners = self.owners[: begun + rows]
        start = 0
        for branch, draft in zip(going, drafted, strict=True):
            stop = start + 1 + len(draft)
            won = branch.take(seen.part(start, stop), draft, self.limits)
            self.owners[begun + start + won : begun + stop] = _DEAD
            start = stop

    def _tidy(self, going: list[_Branch]) -> None:
        """Take rows out of the cache that nobody looks at: of answers that ended, of drafts that failed."""
        useful = np.isin(self.owners, [_PREFIX, *(branch.owner for branch in going)])
        useless, behind = np.count_nonzero(~useful), np.count_nonzero(self.owners != _PREFIX)
        if useless > USELESS * behind:
            self.cache.keep_only(np.flatnonzero(useful))
            self.owners = self.owners[useful]

    def _read(
        self, ids: list[int], positions: NDArray[np.int64], owners: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Read tokens of known owners in passes of at most a chunk; logits of `rows`."""
        embeds, logits, deadline = self.decoder.embed(ids), [], Deadline(self.limits.deadline_ms)
        for start in range(0, len(ids), self.decoder.prefill_chunk):
            part = slice(start, min(start + self.decoder.prefill_chunk, len(ids)))
            self.owners = np.concatenate([self.owners, owners[part]])
            seen = (self.owners == _PREFIX) | (self.owners[None] == owners[part, None])
            wanted = rows[(rows >= part.start) & (rows < part.stop)] - part.start
            asked = wanted if len(wanted) else np.zeros(1, np.int64)
            got = self.decoder.run_branches(
                embeds[part], positions[:, part], ~seen, asked, self.cache, deadline
            )
            logits.append(got[: len(wanted)])
        return logits[0] if len(logits) == 1 else np.concatenate(logits)


def answer_together(
    decoder: Decoder, tokenizer: TextTokenizer, cache: KVCache, questions: Sequence[Question], limits: Limits,
    near_tie: float = EVERY_TOKEN,
) -> list[Written]:  # fmt: skip
    """Answer questions about one prefix, each as if it were asked alone.

    Args:
        cache: holds the prefix and nothing else; holds more afterwards.
        near_tie: as of `Together`.

    Raises:
        DeadlinePassed: before the first token; later, answers end with Finish.DEADLINE.
    """
    begun, prefix = monotonic_ms(), cache.length
    together = Together(decoder, cache, questions, limits, near_tie)
    prefilled = monotonic_ms()
    while together.step():
        pass
    written = []
    for branch in together.branches:
        if branch.doubtful and branch.finish is not Finish.DEADLINE:
            cache.rewind(prefix)
            try:
                _settle(decoder, cache, branch, limits)
            except DeadlinePassed:
                branch.finish = Finish.DEADLINE
        assert branch.finish is not None
        ids = branch.token_ids
        spoken = ids[:-1] if branch.finish is Finish.STOP else ids
        ms = Milliseconds(prefill=prefilled - begun, generate=branch.ended_ms - prefilled)
        text = tokenizer.decode(spoken)
        written.append(Written(text, branch.finish, tuple(ids), branch.passes, ms, branch.likelihood))
    return written


def _settle(decoder: Decoder, cache: KVCache, branch: _Branch, limits: Limits) -> None:
    """Read an answer again by itself; where a near tie falls the other way, go on alone from there."""
    question = branch.question
    ids = [*question.token_ids, *branch.token_ids[: branch.doubtful[-1]]]
    first = len(question.token_ids) - 1  # its logits chose token_ids[0]
    prefix = cache.length
    rows = np.array([first + index for index in branch.doubtful])
    positions, deadline = text_positions(question.position, len(ids)), Deadline(limits.deadline_ms)
    logits = decoder.run_rows(decoder.embed(ids), positions, rows, cache, deadline)
    branch.passes += 1
    for index, row in zip(branch.doubtful, logits, strict=True):
        if int(row.argmax()) == branch.token_ids[index]:
            continue
        cache.rewind(prefix + len(question.token_ids) + index)
        left = Limits(limits.end_ids, limits.max_new_tokens - index, limits.deadline_ms)
        after = question.position + len(question.token_ids) + index
        notes, drafts = Likelihood(), None if question.alone is None else question.alone()
        if drafts is not None and index:
            drafts.chosen(branch.token_ids[:index])
        generation = Generation(decoder, cache, row[None], after, left, drafts, notes=notes)
        for _ in generation:
            pass
        branch.token_ids[index:] = generation.token_ids
        branch.likelihood.replace(index, notes)
        branch.finish, branch.passes = generation.finish, branch.passes + generation.passes
        break
    branch.ended_ms = monotonic_ms()
