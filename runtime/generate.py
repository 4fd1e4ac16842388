"""Greedy decoding: from the prompt's last logits to token ids, one pass a token.

Contract  Output depends on the logits only: the first largest wins, as `argmax` in torch and NumPy.
          Stops at an end token, at `max_new_tokens`, or when the deadline has passed; which of them is told.
Elsewhere the passes: decoder.py; text from ids: tokens.py.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.decoder import Decoder, KVCache
from rexthinker_edge.runtime.positions import text_positions


class Finish(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # an end token
    LENGTH = "length"  # max_new_tokens, or the graph's max_length
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Limits:
    """When to stop. `deadline_ms` is an instant of `now_ms()`, None for no deadline."""

    end_ids: frozenset[int]
    max_new_tokens: int
    deadline_ms: float | None = None


def now_ms() -> float:
    """Milliseconds of the monotonic clock that deadlines are measured on."""
    return time.monotonic() * 1000.0


class Generation:
    """One answer as it is decoded: iterate for text token ids, read the rest afterwards.

    Attributes:
        token_ids: every id chosen so far, the end token included.
        finish: why it ended; None while it goes on.
        passes: decoder passes that chose a token, the prompt's last pass included.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, logits: NDArray[np.float32], position: int, limits: Limits
    ) -> None:
        """Go on after a prompt pass.

        Args:
            logits: (1, vocab) float32 of the prompt's last token.
            position: M-RoPE position of the first generated token.
        """
        assert logits.shape == (1, decoder.geometry.vocab), logits.shape
        self.decoder, self.cache, self.limits = decoder, cache, limits
        self.logits = logits
        self.position = position
        self.token_ids: list[int] = []
        self.finish: Finish | None = None
        self.passes = 1
        self.full = False

    def __iter__(self) -> Iterator[int]:
        """Yield ids up to the end token, which is not yielded; `finish` is set when it returns."""
        while True:
            self.finish = self._limit_reached()
            if self.finish is not None:
                return
            token = int(self.logits[0].argmax())
            self.token_ids.append(token)
            if token in self.limits.end_ids:
                self.finish = Finish.STOP
                return
            yield token
            self._advance(token)

    def _limit_reached(self) -> Finish | None:
        """The limit that forbids choosing one more token."""
        if len(self.token_ids) >= self.limits.max_new_tokens or self.full:
            return Finish.LENGTH
        if self.limits.deadline_ms is not None and now_ms() >= self.limits.deadline_ms:
            return Finish.DEADLINE
        return None

    def _advance(self, token: int) -> None:
        """One pass over the token just chosen, unless nothing may be chosen from it."""
        self.full = self.cache.length >= self.decoder.geometry.max_length
        if self._limit_reached() is not None:
            return
        self.logits = self.decoder.run(
            self.decoder.embed([token]), text_positions(self.position, 1), self.cache
        )
        self.position += 1
        self.passes += 1
