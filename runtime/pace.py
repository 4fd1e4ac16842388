"""Which way several expressions are answered sooner: mixed in one cache, or one after the other.

Layout    Milliseconds a token, by how many answers a cache held: 1 is one after the other.
Contract  Both ways give the same answers, so this is a matter of time alone. Each is tried `TRIED` times, the
          likelier one first; then what was quicker is taken, and every `AGAIN`-th time the other one, for
          drafts get better and machines change. What disturbs a machine makes an answer later and never
          sooner, so the least of the last few counts; time is the calling thread's own, as in draft_cost.py.
Elsewhere mixing: together.py; who asks: answering.py; what was measured: docs/scenes.md.
"""

from collections import defaultdict, deque

TRIED = 2
REMEMBERED = 3
AGAIN = 16


class Pace:
    """What was seen; threads may share it, for it holds only measurements.

    Attributes:
        always: the way that is taken whatever was seen, True for mixing; None leaves it to what was seen.
    """

    def __init__(self) -> None:
        self.always: bool | None = None
        self._seen: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._asked = 0

    def mixes(self, count: int, likelier: bool = True) -> bool:
        """Whether `count` expressions, 2 at least, shall be mixed this time.

        Args:
            likelier: whether mixing is, as long as nothing was seen.
        """
        if self.always is not None:
            return self.always
        mixed, single = self._seen[count], self._seen[1]
        if min(len(mixed), len(single)) < TRIED:
            return len(mixed) < TRIED and (
                len(mixed) < len(single) or (likelier and len(mixed) == len(single))
            )
        self._asked += 1
        return (min(mixed) < min(single)) != (self._asked % AGAIN == 0)

    def learn(self, count: int, tokens: int, ms: float) -> None:
        """Answers of so many tokens took `ms`, `count` of them in a cache."""
        if tokens:
            self._seen[count].append(ms / tokens)

    def describe(self) -> dict[str, float]:
        """Milliseconds a token by answers in a cache; plain values."""
        return {str(count): round(min(seen), 3) for count, seen in sorted(self._seen.items()) if seen}
