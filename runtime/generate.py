"""Decoding: from the prompt's last logits to token ids, several a pass where a draft foresaw them.

Contract  Token for token what decoding without drafts gives, for greedy choice and for sampling with a seed:
          a drafted token counts only where it is what would have been chosen. That needs more than a rule of
          acceptance: ONNX Runtime computes a pass over one token by other kernels than a pass over several,
          and rounds differently (by 0.2 in a logit at int4). So where the decoder's rows are not alike by our
          own operators (`decoder.rows_alike`), every pass here has two rows or more, drafted or not. Such
          passes were bit-identical in every grouping measured (docs/drafting.md), which draft_cost.py checks
          on the device before anything is drafted.
          Stops at an end token, at `max_new_tokens`, or when the deadline comes, inside a pass as well; which
          of them is told.
Elsewhere the passes: decoder.py; what is drafted: draft.py; text from ids: tokens.py.
Source    docs/sources.md#drafting
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import Deadline, DeadlinePassed, monotonic_ms
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.positions import text_positions

Choose = Callable[[NDArray[np.float32]], Iterable[int]]  # (R, vocab) logits in, a token per row, as needed


class Finish(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # an end token
    LENGTH = "length"  # max_new_tokens, or the graph's max_length
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Limits:
    """When to stop. `deadline_ms` is an instant of `monotonic_ms()`, None for no deadline."""

    end_ids: frozenset[int]
    max_new_tokens: int
    deadline_ms: float | None = None


class Drafts(Protocol):
    """What a generation asks of its drafter; draft.Drafter is the one."""

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens that may come next, the likeliest chain; empty when none pays.

        Raises:
            DeadlinePassed: while something was measured.
        """

    def chosen(self, tokens: Sequence[int]) -> None:
        """These tokens were chosen, in order: the drafted ones that held, and one more."""

    def measured(self, tokens: int, ms: float) -> None:
        """A pass over so many tokens took so long, in time of the thread that waited for it."""


class Notes(Protocol):
    """What is told of every pass's choice; confidence.Likelihood is the one."""

    def note(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> None:
        """These tokens were chosen from the first rows of (R, vocab) logits, one a row."""


def greedy(logits: NDArray[np.float32]) -> list[int]:
    """The first largest of each row, as `argmax` in torch and NumPy: (R, vocab) in, R tokens out."""
    chosen: list[int] = logits.argmax(axis=1).tolist()
    return chosen


def sampling(temperature: float, seed: int | None) -> Choose:
    """Draw from softmax(logits / temperature), one number of the seed's stream per token that is kept.

    A drafted token is kept exactly when it is the one drawn. Against a draft that is certain of one token
    this is speculative sampling's rule (accept with p, else draw from the rest), and with a seed the very
    tokens that come without drafting.
    """
    assert temperature > 0, temperature
    rng = np.random.default_rng(seed)

    def choose(logits: NDArray[np.float32]) -> Iterator[int]:
        for row in logits:
            scaled = row.astype(np.float64) / temperature
            reach = np.exp(scaled - scaled.max()).cumsum()
            found = int(np.searchsorted(reach, rng.random() * reach[-1], side="right"))
            yield min(found, len(row) - 1)

    return choose


def held(
    choose: Choose, logits: NDArray[np.float32], drafted: Sequence[int], end_ids: frozenset[int]
) -> list[int]:
    """The tokens that a pass has won: one at least, and no more than one past the drafted ones.

    Args:
        logits: (len(drafted) + 1, vocab); row i follows the first i drafted tokens.

    Returns:
        The drafted tokens while they are what is chosen, then the one chosen instead, or after them; nothing
        behind an end token.
    """
    assert len(logits) == len(drafted) + 1, (logits.shape, len(drafted))
    won: list[int] = []
    for token, guess in zip(choose(logits), [*drafted, None], strict=False):
        won.append(token)
        if token != guess or token in end_ids:
            break
    return won


class Generation:
    """One answer as it is decoded: iterate for text token ids, read the rest afterwards.

    Attributes:
        token_ids: every id chosen so far, the end token included.
        logits: (R, vocab) of the last pass, a row for each token it could choose.
        finish: why it ended; None while it goes on.
        passes: decoder passes that chose a token, the prompt's last pass included.
        drafted: tokens drafted so far.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, logits: NDArray[np.float32], position: int, limits: Limits,
        drafts: Drafts | None = None, choose: Choose = greedy, notes: Notes | None = None,
    ) -> None:  # fmt: skip
        """Go on after a prompt pass.

        Args:
            logits: (1, vocab) float32 of the prompt's last token.
            position: M-RoPE position of the first generated token.
            drafts: foresees tokens; None decodes one by one.
            notes: is told what was chosen from which logits.
        """
        assert logits.shape == (1, decoder.geometry.vocab), logits.shape
        self.decoder, self.cache, self.limits = decoder, cache, limits
        self.drafts, self.choose, self.notes = drafts, choose, notes
        self.deadline = Deadline(limits.deadline_ms)
        self.logits = logits
        self.position = position  # of the next token to be read
        self.token_ids: list[int] = []
        self.finish: Finish | None = None
        self.passes, self.drafted = 1, 0
        self.full = False

    def __iter__(self) -> Iterator[int]:
        """Yield ids up to the end token, which is not yielded; `finish` is set when it returns."""
        drafted: list[int] = []
        while True:
            self.finish = self._limit_reached()
            if self.finish is not None:
                return
            won = held(self.choose, self.logits, drafted, self.limits.end_ids)
            self._keep(len(won) - 1, len(drafted))
            if self.drafts is not None:
                self.drafts.chosen(won)
            if self.notes is not None:
                self.notes.note(self.logits, won)
            for token in won:
                self.token_ids.append(token)
                if token in self.limits.end_ids:
                    self.finish = Finish.STOP
                    return
                yield token
            self.full = self.cache.length >= self.decoder.geometry.max_length
            if self._limit_reached() is None:
                try:
                    drafted = self._draft()
                    self._read(drafted)
                except DeadlinePassed:  # the last pass chose nothing
                    self.finish = Finish.DEADLINE
                    return

    def _limit_reached(self) -> Finish | None:
        """The limit that forbids choosing one more token."""
        if len(self.token_ids) >= self.limits.max_new_tokens or self.full:
            return Finish.LENGTH
        if self.limits.deadline_ms is not None and monotonic_ms() >= self.limits.deadline_ms:
            return Finish.DEADLINE
        return None

    def _keep(self, kept: int, drafted: int) -> None:
        """Forget the rows of drafted tokens that did not hold."""
        self.cache.rewind(self.cache.length - (drafted - kept))
        self.position -= drafted - kept

    def _draft(self) -> list[int]:
        """What may follow the last token, as far as there is room to verify it."""
        room = self.decoder.geometry.max_length - self.cache.length
        most = min(room, self.limits.max_new_tokens - len(self.token_ids)) - 1
        drafted = self.drafts.propose(most) if self.drafts is not None and most > 0 else []
        assert len(drafted) <= max(most, 0), (len(drafted), most)
        return drafted

    def _read(self, drafted: list[int]) -> None:
        """One pass over the last token and a draft behind it; the cache holds all their rows afterwards.

        Where rows are not alike no pass has a single one: without a draft the token is read twice, or, where
        nothing fits behind it, the one before it once more.
        """
        token_ids, padding, again = [self.token_ids[-1], *drafted], 0, 0
        lonely = not drafted and not self.decoder.rows_alike
        if lonely and self.decoder.geometry.max_length - self.cache.length > 1:
            padding = 1
            token_ids += token_ids
        elif lonely and len(self.token_ids) > 1:
            again = 1
            token_ids = [self.token_ids[-2], *token_ids]
            self.cache.rewind(self.cache.length - 1)
        positions = text_positions(self.position - again, len(token_ids))
        begun = time.thread_time()
        logits = self.decoder.run(
            self.decoder.embed(token_ids), positions, self.cache, last_only=False, deadline=self.deadline
        )
        if self.drafts is not None:
            self.drafts.measured(len(token_ids), (time.thread_time() - begun) * 1000.0)
        self.cache.rewind(self.cache.length - padding)
        self.logits = logits[again : len(token_ids) - padding]
        self.position += len(token_ids) - again - padding
        self.passes += 1
        self.drafted += len(drafted)
