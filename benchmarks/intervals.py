"""How sure a figure is: bootstrap intervals over items, exact McNemar.

Contract  95 % intervals by the percentile method over `RESAMPLES` resamples of whole items, seeded: the same
          items give the same interval. One item, or items that agree, give an interval without width: it
          speaks of the sample's spread and cannot see what the sample has not.
Elsewhere the figures: figures.py, comparison.py.
Source    docs/sources.md#intervals
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
SEED = 20_260
_BATCH = 200


def bootstrap(rows: ArrayLike) -> NDArray[np.float64]:
    """95 % intervals of the column means.

    Args:
        rows: (n, c), one row per item, n at least 1.

    Returns:
        (2, c): low and high.
    """
    values = np.asarray(rows, np.float64)
    assert values.ndim == 2, values.shape
    assert len(values), "no items"
    rng, count = np.random.default_rng(SEED), len(values)
    means = []
    for _ in range(0, RESAMPLES, _BATCH):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=_BATCH)
        means.append(drawn @ values / count)
    return np.asarray(np.percentile(np.concatenate(means), [2.5, 97.5], axis=0))


Figure = dict[str, float | int | None]


def share(flags: Sequence[bool]) -> Figure:
    """A share of items with its interval; None where there are no items."""
    return mean([float(flag) for flag in flags])


def mean(values: Sequence[float]) -> Figure:
    """The mean over items with its interval; None where there are no items."""
    if not values:
        return {"value": None, "low": None, "high": None, "count": 0}
    low, high = bootstrap(np.asarray(values, np.float64)[:, None])[:, 0]
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "count": len(values)}


def ratio(hits: Sequence[int], counts: Sequence[int]) -> Figure:
    """A share of things that come several to an item, with its interval over items.

    Args:
        hits, counts: of each item, how many of its things; 1 or more in `counts` altogether.

    Returns:
        count: of the things.
    """
    whole = np.array([hits, counts], np.float64)
    rng, items, drawn = np.random.default_rng(SEED), whole.shape[1], []
    for _ in range(0, RESAMPLES, _BATCH):
        times = rng.multinomial(items, np.full(items, 1 / items), size=_BATCH)
        drawn.append(times @ whole.T)
    sums = np.concatenate(drawn)
    sums = sums[sums[:, 1] > 0]  # a resample may hold none of them
    low, high = np.percentile(sums[:, 0] / sums[:, 1], [2.5, 97.5])
    value = float(whole[0].sum() / whole[1].sum())
    return {"value": value, "low": float(low), "high": float(high), "count": int(whole[1].sum())}


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of as many items right in one of two alone, were both equally often right."""
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1.0, 2 * tail / 2**n))
