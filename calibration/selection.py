"""Chooses calibration samples: few, spread over domains, numbers of candidates and lengths.

Contract  The same pool and seed give the same choice, in the same order, whatever order the pool stands in.
          Domains are served in turn; within one, numbers of candidates; within those, lengths. A cell that
          has run out is passed over.
Elsewhere where the pool comes from: sources.py; what becomes of it: samples.py.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rexthinker_edge.runtime.errors import DataError

CANDIDATE_BOUNDS = (1, 3, 6, 10)  # cells: 1, 2-3, 4-6, 7-10, more
LENGTH_CELLS = 3  # shortest, middle and longest third of the pool


@dataclass(frozen=True)
class Traits:
    """What the choice looks at: `length` in characters of trace and expression; ids are unique."""

    id: str
    domain: str
    candidates: int
    length: int


def choose(pool: Sequence[Traits], count: int, seed: int) -> list[Traits]:
    """`count` of the pool, spread as the module's contract says.

    Raises:
        DataError: the pool is smaller than `count`, or an id stands in it twice.
    """
    if len({traits.id for traits in pool}) != len(pool):
        raise DataError("calibration: an id stands twice in the data, ids must differ. Remove the copy.")
    if len(pool) < count or count < 1:
        raise DataError(
            f"calibration: {count} samples asked of {len(pool)} readable ones, needed 1 to {len(pool)}. "
            "Ask for fewer or give more data."
        )
    lengths = sorted(traits.length for traits in pool)
    cuts = [lengths[len(lengths) * k // LENGTH_CELLS] for k in range(1, LENGTH_CELLS)]

    def cell(traits: Traits) -> tuple[str, int, int]:
        crowd = sum(traits.candidates > bound for bound in CANDIDATE_BOUNDS)
        return traits.domain, crowd, sum(traits.length >= cut for cut in cuts)

    waiting: dict[tuple[str, int, int], list[Traits]] = {}
    for traits in sorted(pool, key=lambda traits: _draw(seed, traits.id), reverse=True):
        waiting.setdefault(cell(traits), []).append(traits)
    served: Counter[tuple[object, ...]] = Counter()
    chosen = []
    for _ in range(count):
        best = min(waiting, key=lambda c: (served[c[:1]], served[c[:2]], served[c], _draw(seed, str(c)), c))
        chosen.append(waiting[best].pop())
        if not waiting[best]:
            del waiting[best]
        served.update([best[:1], best[:2], best])
    return chosen


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
