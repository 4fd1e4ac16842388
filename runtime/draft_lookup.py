"""Drafts by looking up what followed the same tokens before: in the prompt, in this answer, in its siblings.

Layout    An `Index` remembers, for each run of 2, 3, 4 and 6 tokens, where it stood last. One index serves a
          scene: its prompt and the answers given on it; a `Lookup` is one answer that reads and extends it.
Contract  Bounded: when `MOST_RUNS` are reached the older half is forgotten.
Elsewhere the choice among drafts: draft.py.
Source    docs/drafting.md
"""

from collections.abc import Sequence

LENGTHS = (6, 4, 3, 2)  # of the runs, tried in this order
MOST_RUNS = 60_000

# The kinds of guess, within this source: the length of the run that was found, and whether the guess is the
# first behind it or a later one.
KINDS = 2 * len(LENGTHS)
BELIEFS = (0.9, 0.95, 0.8, 0.95, 0.65, 0.9, 0.4, 0.85)

_Place = tuple[list[int], int]  # a row of tokens, and where in it the next one stands


class Index:
    """Where runs of tokens stood last."""

    def __init__(self) -> None:
        self._young: dict[tuple[int, ...], _Place] = {}
        self._old: dict[tuple[int, ...], _Place] = {}

    def add(self, row: list[int]) -> None:
        """Remember the runs that end in the row's last token; what comes to stand behind it follows them."""
        end = len(row)
        for length in LENGTHS:
            if end >= length:
                self._young[tuple(row[-length:])] = (row, end)
        if len(self._young) > MOST_RUNS:
            self._old, self._young = self._young, {}

    def add_all(self, tokens: Sequence[int]) -> None:
        """Remember a whole text."""
        row: list[int] = []
        for token in tokens:
            row.append(token)
            self.add(row)

    def find(self, key: tuple[int, ...]) -> _Place | None:
        """Where a run stood last, and something stands behind it."""
        return self._young.get(key) or self._old.get(key)


class Lookup:
    """One answer, drafted from what was said before."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._row: list[int] = []

    def push(self, token: int) -> None:
        """One more token of the answer is known."""
        # Found before it is added, for afterwards the run's last place is the answer's own end.
        self._row.append(token)
        self._places = self._find()
        self._index.add(self._row)

    def _find(self) -> tuple[int, _Place] | None:
        for rank, length in enumerate(LENGTHS):
            if len(self._row) >= length:
                place = self._index.find(tuple(self._row[-length:]))
                if place is not None and len(place[0]) > place[1]:
                    return rank, place
        return None

    def propose(self, most: int) -> tuple[list[int], list[int]]:
        """What followed the longest known run, and the kind of each guess."""
        found = self._places if self._row else None
        if found is None:
            return [], []
        rank, (row, place) = found
        tokens = row[place : place + most]
        return tokens, [2 * rank, *[2 * rank + 1] * (len(tokens) - 1)]
