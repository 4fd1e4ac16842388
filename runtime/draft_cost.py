"""What a pass costs by its number of tokens, how often a kind of guess holds, and how much to draft.

Layout    `PassCosts` measures passes of 2, 4, 8 … tokens once, on the device and behind the first prompt
          that is answered, and goes on learning; between measured widths the cost is a straight line.
          A disturbed machine makes passes longer and never shorter, so a width costs what the cheaper of its
          measurements say, and never more than a wider pass was seen to cost. What is old, contradicted, or
          from before the machine changed its pace is measured again, by one pass in `GAP` at most.
          `Acceptance` counts, for each kind of guess, how often it held.
Contract  The first measurement also reads one row of tokens in two groupings and compares all logits bit for
          bit. Unless they are equal nothing is drafted, because output could differ: `exact` is False.
          Time is the calling thread's own: ONNX Runtime works or spins in it, and what other programs take
          from a busy machine does not make a pass look dear.
Elsewhere what is guessed: draft.py and its sources; the passes themselves: generate.py.
Source    docs/drafting.md
"""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.positions import text_positions

WIDEST = 32  # tokens of one pass
SLOW_PASS_MS = 250.0  # where 16 tokens take longer, wider passes are neither measured nor used
PROBE_ROUNDS, PROBE_MS = 4, 300.0  # of the first measurement, without a deadline; whichever comes first
MEASURED = (1, 2, 4, 8, 16, WIDEST)  # widths that are measured whether or not they are used
REMEMBERED = 15  # measurements of a width that count
RELEARN = 16  # passes between two fits
OLD = 400  # passes after which a measurement gives way to a younger one
GAP = 20  # passes between two that only measure
PACE = 2.0  # a width whose cost changed this much tells that the machine did
DOUBT, SURE = 1.25, 4  # what is this much dearer than other widths allow, by fewer measurements, is doubted


class PassCosts:
    """Milliseconds of a pass by its number of tokens.

    Attributes:
        exact: whether passes of different width give the same logits here; None before it was looked at.
        least, widest: tokens a pass may have.
    """

    def __init__(self) -> None:
        self.exact: bool | None = None
        self.least, self.widest = 2, WIDEST
        self.costs: list[float] = []  # by number of tokens, 0 to widest
        self._seen: dict[int, deque[tuple[int, float]]] = {}  # by width: number of the pass, milliseconds
        self._raw: dict[int, float] = {}  # each width's own cost at the last fit
        self._passes = self._explored = 0
        self._changed = 0  # the pass before which the machine had another pace

    @property
    def wants_probe(self) -> bool:
        """Whether nothing was measured yet, or only narrow passes that turned out to be quick."""
        if self.exact and self.widest < WIDEST:
            return self.costs[self.widest] < SLOW_PASS_MS / 2
        return self.exact is None

    def probe(self, decoder: Decoder, cache: KVCache, position: int, deadline: Deadline = NEVER) -> None:
        """Measure and compare, behind what the cache holds; the cache is left as it was.

        Does nothing where the cache has no room for it. Passes of 32 tokens are left out where 16 took too
        long twice: once may have been the machine.

        Args:
            position: M-RoPE position of the next token.

        Raises:
            DeadlinePassed: before it was done; it has to be done again.
        """
        length = cache.length
        if decoder.geometry.max_length - length < WIDEST:
            return

        def read(*groups: int) -> NDArray[np.float32]:
            return self._grouping(decoder, cache, position, groups, deadline)

        begun = time.thread_time()
        self.least = 1 if decoder.rows_alike else 2
        read(self.least)  # the first pass of a width pays for its buffers
        self._seen.clear()
        ends = [2] if self.least == 2 else [1, 1]
        first, widest, groups = read(16), 16, [2, 4, 8, *ends]
        if self._least(16) >= SLOW_PASS_MS:
            read(16)
        if self._least(16) < SLOW_PASS_MS:
            first, widest, groups = read(32), WIDEST, [2, 4, 8, 16, *ends]
        for _ in range(PROBE_ROUNDS if deadline.until_ms is None else 1):
            exact = bool(np.array_equal(first, read(*groups)))
            if not exact or (time.thread_time() - begun) * 1000 > PROBE_MS:
                break
            read(widest)
        self.exact, self.widest = exact, widest
        self._fit()

    def _grouping(
        self, decoder: Decoder, cache: KVCache, position: int, groups: Sequence[int], deadline: Deadline
    ) -> NDArray[np.float32]:
        """Logits (sum(groups), vocab) of a fixed row of tokens, read in these groups."""
        length, at, rows = cache.length, 0, []
        token_ids = [(7 * i * i + 13 * i + 5) % decoder.geometry.vocab for i in range(sum(groups))]
        try:
            for width in groups:
                embeds = decoder.embed(token_ids[at : at + width])
                positions = text_positions(position + at, width)
                begun = time.thread_time()
                rows.append(decoder.run(embeds, positions, cache, last_only=False, deadline=deadline))
                self.learn(width, (time.thread_time() - begun) * 1000)
                at += width
        finally:
            cache.rewind(length)
        return np.concatenate(rows)

    def learn(self, tokens: int, ms: float) -> None:
        """A pass over `tokens` took `ms`."""
        self._passes += 1
        self._seen.setdefault(tokens, deque(maxlen=REMEMBERED)).append((self._passes, ms))
        if self.costs and self._passes % RELEARN == 0:
            self._fit()

    def explore(self, most: int) -> int:
        """The width that the next pass shall have to measure it, at most `most`; 0 where none needs it."""
        if self._passes < self._explored + GAP:
            return 0
        self._explored = self._passes
        doubtful = [w for w in MEASURED if self.least <= w <= min(most, self.widest) and self._is_doubtful(w)]
        return min(doubtful, key=lambda w: self._seen[w][-1][0] if w in self._seen else 0, default=0)

    def _is_doubtful(self, width: int) -> bool:
        """Whether what is known of a width is old, or it was cheaper in a wider pass, or in several."""
        if not self._is_young(width):
            return True
        if sum(number > self._since for number, _ in self._seen[width]) >= SURE:
            return False
        young = [w for w in self._raw if w != width and self._is_young(w)]
        most = min((self._raw[w] * max(1.0, width / w) for w in young), default=float("inf"))
        return self._raw.get(width, 0.0) > DOUBT * most

    def _is_young(self, width: int) -> bool:
        return width in self._seen and self._seen[width][-1][0] > self._since

    @property
    def _since(self) -> int:
        """The pass behind which a measurement is young."""
        return max(self._passes - OLD, self._changed)

    def _fit(self) -> None:
        """Costs of every width: straight lines between what the measured ones cost at most."""
        raw = {w: self._cost(w) for w in self._seen if self.least <= w <= self.widest}
        for width in self._raw.keys() & raw.keys():
            just = self._seen[width][-1][0] > self._passes - RELEARN
            if just and not 1 / PACE < raw[width] / self._raw[width] < PACE:
                self._changed = self._passes - RELEARN
        self._raw = raw
        known = sorted(w for w in raw if w in MEASURED or self._is_young(w))
        values = np.minimum.accumulate([raw[w] for w in reversed(known)])[::-1]
        self.costs = np.interp(np.arange(self.widest + 1), known, values).tolist()

    def _cost(self, width: int) -> float:
        """The lower quartile of a width's young measurements, or of all where none is young."""
        young = [ms for number, ms in self._seen[width] if number > self._since]
        counted = sorted(young or [ms for _, ms in self._seen[width]])
        return counted[len(counted) // 4]

    def _least(self, width: int) -> float:
        return min(ms for _, ms in self._seen[width])


class Acceptance:
    """How likely a guess of each kind is to hold, learnt as it goes and never certain."""

    WEIGHT = 8.0  # guesses that the first belief counts for
    MEMORY = 400.0  # guesses after which old ones fade

    def __init__(self, beliefs: Sequence[float]) -> None:
        """`beliefs[kind]`: the share expected to hold before anything was seen."""
        self.rates = [float(b) for b in beliefs]
        self._counts = [self.WEIGHT] * len(self.rates)

    def learn(self, kind: int, holds: bool) -> None:
        """A guess of this kind did hold, or did not."""
        count = self._counts[kind] = min(self._counts[kind] + 1.0, self.MEMORY)
        self.rates[kind] += ((0.995 if holds else 0.005) - self.rates[kind]) / count

    def expected(self, kinds: Sequence[int]) -> float:
        """How many guesses of a chain are expected to hold; a chain ends at the first that does not."""
        total, reach = 0.0, 1.0
        for kind in kinds:
            reach *= self.rates[kind]
            total += reach
            if reach < 0.03:
                break
        return total


def paying(
    kinds: Sequence[int], rates: Sequence[float], costs: Sequence[float], extra_ms: float, beside: int = 0
) -> int:
    """How many guesses of a chain to verify in one pass: the number that wins most tokens per time.

    Args:
        kinds: the kind of each guess, in order.
        rates: share of each kind that holds.
        costs: milliseconds of a pass by its number of tokens; the token before the chain is one of them.
        extra_ms: what a pass costs beside itself.
        beside: rows that other answers have in the pass, each taken to win a token.
    """
    best, most = (1.0 + beside) / (costs[1 + beside] + extra_ms), 0
    tokens, reach = 1.0 + beside, 1.0
    for count, kind in enumerate(kinds[: len(costs) - 2 - beside], 1):
        reach *= rates[kind]
        tokens += reach
        rate = tokens / (costs[count + 1 + beside] + extra_ms)
        if rate > best:
            best, most = rate, count
        if reach < 0.03:
            break
    return most
