"""Learns from calibration traces what usually comes next, and writes it as a draft table.

Layout    Runs of up to `depth` tokens that occur `least` times or more, and the token that follows each
          most often. A run that foresees the same as its own end does, about as surely, is left out.
Contract  Deterministic. Whatever traces are given, the table has at most `states` states: rarer runs go
          first.
Elsewhere the file: runtime/draft_table.py; who calls this: export/.
Source    docs/drafting.md
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.humanref_cot import HumanRefCot
from rexthinker_edge.calibration.workbench.items import item_trace, make_item
from rexthinker_edge.runtime.draft_table import TableArrays
from rexthinker_edge.runtime.errors import DataError, OptionError

WORKBENCH_SEED = 41_000  # a training seed: below 1,000,000
DEPTH, LEAST, STATES = 12, 3, 40_000
SOURCES = "workbench or humanref-cot:DIRECTORY"
SAME_SURENESS = 24  # of 255: a longer run must tell more than this to be kept


@dataclass
class _Level:
    """Runs of one length: where each occurs first, its parent, its suffix, and what follows."""

    parent: NDArray[np.int64]
    token: NDArray[np.int64]
    suffix: NDArray[np.int64]
    following: NDArray[np.int64]  # -1: nothing follows
    sureness: NDArray[np.int64]


@dataclass(frozen=True)
class Learnt:
    """What a table was learnt from, and its size; `sha256` is over the traces' tokens."""

    source: str
    traces: int
    states: int
    sha256: str = ""


def write_table(
    path: Path, source: str, count: int, encode: Callable[[str], list[int]], vocab: int, end_id: int
) -> Learnt:
    """Learn a table from a source of traces and write its file.

    Args:
        source: one of `SOURCES`.
        count: traces to read, at most.
        encode: text to token ids, special strings as plain text.
        end_id: what ends an answer.

    Raises:
        OptionError: `source` is nothing of that kind.
        DataError: its files are missing or hold no readable trace.
    """
    answers = [
        encode(text) + ([end_id] if text.endswith("</answer>") else []) for text in traces_of(source, count)
    ]
    if not answers:
        raise DataError(f"{source}: no readable trace, one or more is needed. Name other data.")
    table = learn_table(answers, vocab)
    path.write_bytes(table.to_bytes())
    read = hashlib.sha256()
    for answer in answers:
        read.update(np.array([*answer, -1], "<i8").tobytes())
    return Learnt(source, len(answers), len(table.token), read.hexdigest())


def traces_of(source: str, count: int) -> Iterator[str]:
    """The assistant's turns of a source, at most `count`; see `write_table`."""
    kind, _, place = source.partition(":")
    if source == "workbench":
        yield from _workbench(count)
    elif kind == "humanref-cot" and place:
        yield from _humanref_cot(Path(place), count)
    else:
        raise OptionError(f"draft traces: {source!r}, needed {SOURCES}. Name the data so.")


def _workbench(count: int) -> Iterator[str]:
    """Items of both levels, two in three of the full one."""
    for index in range(count):
        item = make_item("easy" if index % 3 == 0 else "full", WORKBENCH_SEED, index)
        yield item_trace(item, (item.scene.width, item.scene.height), index)


def _humanref_cot(folder: Path, count: int) -> Iterator[str]:
    """Thoughts drawn evenly over both pairs; the answer behind them is not the table's to know."""
    with HumanRefCot(folder) as dataset:
        drawn = range(0, len(dataset), max(1, len(dataset) // count))[:count]
        for _, record in dataset.records([], drawn):  # an unreadable record teaches nothing
            if record.trace:
                yield f"<think>{record.trace.removeprefix('<think>')}\n</think><answer>"


def learn_table(
    answers: Iterable[Sequence[int]], vocab: int, depth: int = DEPTH, least: int = LEAST, states: int = STATES
) -> TableArrays:
    """Count runs and keep those that tell something.

    Args:
        answers: token ids of whole answers, end token included.
        vocab: number of tokens of the model.
        depth: longest run.
        least: occurrences below which a run is left out; raised until `states` suffice.
    """
    stream = _joined(answers, vocab)
    while True:
        levels = _pruned(_count(stream, vocab, depth, least))
        if sum(len(level.token) for level in levels) <= states:
            return _number(levels, vocab)
        least += max(1, least // 2)


def _joined(answers: Iterable[Sequence[int]], vocab: int) -> NDArray[np.int64]:
    """One row of tokens: each answer after its beginning mark `vocab`, -1 between answers."""
    parts: list[int] = []
    for answer in answers:
        assert all(0 <= token < vocab for token in answer), "a token is outside the vocabulary"
        parts += [vocab, *answer, -1]
    return np.array(parts, np.int64)


def _count(stream: NDArray[np.int64], vocab: int, depth: int, least: int) -> list[_Level]:
    """Runs of length 0, 1, 2 …, level by level: a run can only be frequent where both its ends are."""
    radix, size = vocab + 2, len(stream)
    at = np.zeros(size + 1, np.int64)  # the level's run that begins here, -1 where it is rare or broken
    none = np.zeros(1, np.int64)
    levels = [_Level(none, none, none, *_followers(at[:-1], stream, 1, vocab))]
    for length in range(1, depth + 1):
        if size < length:
            break
        begin = np.arange(size - length + 1)
        last = stream[begin + length - 1]
        whole = (at[begin] >= 0) & (last >= 0) & (at[begin + 1] >= 0 if length > 1 else True)
        # the beginning mark stands only at the beginning of a run
        whole &= (last != vocab) | (length == 1)
        where = begin[whole]
        keys = at[where] * radix + last[whole]
        runs, first, inverse, counts = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        frequent = counts >= least
        renumbered = np.where(frequent, np.cumsum(frequent) - 1, -1)
        if not frequent.any():
            break
        starts = where[first[frequent]]
        suffix = at[starts + 1] if length > 1 else np.zeros(len(starts), np.int64)
        parent = at[starts]
        fresh = np.full(size + 1, -1, np.int64)
        fresh[where] = renumbered[inverse]
        following = stream[np.minimum(where + length, size - 1)]
        kept = fresh[where] >= 0
        best, sure = _followers(fresh[where][kept], following[kept], int(frequent.sum()), vocab)
        levels.append(_Level(parent, runs[frequent] % radix, suffix, best, sure))
        at = fresh
    return levels


def _followers(
    runs: NDArray[np.int64], following: NDArray[np.int64], count: int, vocab: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each run 0 … count - 1 the token that follows it most often, and in how many of 255 cases."""
    total = np.bincount(runs, minlength=count)
    fit = (following >= 0) & (following < vocab)  # neither an end nor a beginning
    values, counts = np.unique(runs[fit] * vocab + following[fit], return_counts=True)
    owner, token = np.divmod(values, vocab)
    order = np.lexsort((token, counts, owner))  # within an owner the most frequent comes last
    best, most = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    best[owner[order]], most[owner[order]] = token[order], counts[order]
    # one unseen case is assumed: few occurrences make no certainty
    return best, 255 * most // (total + 1)


def _pruned(levels: list[_Level]) -> list[_Level]:
    """Leave out, longest first, runs without children that tell no more than their suffix."""
    needed: list[NDArray[np.bool_]] = [np.zeros(len(level.token), bool) for level in levels]
    for length in range(len(levels) - 1, 0, -1):
        level, shorter = levels[length], levels[length - 1]
        same = level.following == shorter.following[level.suffix]
        close = np.abs(level.sureness - shorter.sureness[level.suffix]) <= SAME_SURENESS
        needed[length] |= ~(same & close) & (level.following >= 0)
        needed[length - 1][level.parent[needed[length]]] = True
        needed[length - 1][level.suffix[needed[length]]] = True
    needed[0][:] = True
    kept = [levels[0]]
    for length in range(1, len(levels)):
        level, keep = levels[length], needed[length]
        place = np.cumsum(needed[length - 1]) - 1
        kept.append(
            _Level(
                place[level.parent[keep]], level.token[keep], place[level.suffix[keep]],
                level.following[keep], level.sureness[keep],
            )
        )  # fmt: skip
    return [level for level in kept if len(level.token)]


def _number(levels: list[_Level], vocab: int) -> TableArrays:
    """States by length, parent and token, with the arrays of the file."""
    offsets = np.cumsum([0, *(len(level.token) for level in levels)])
    states = int(offsets[-1])
    token, parent, suffix = (np.zeros(states, np.int64) for _ in range(3))
    following, sureness = np.zeros(states, np.int64), np.zeros(states, np.int64)
    place = [np.zeros(1, np.int64)]
    for length, level in enumerate(levels):
        if length:
            order = np.lexsort((level.token, place[-1][level.parent]))
            place.append(np.empty(len(order), np.int64))
            place[-1][order] = np.arange(len(order))
            part = slice(offsets[length], offsets[length + 1])
            token[part] = level.token[order]
            parent[part] = offsets[length - 1] + place[-2][level.parent[order]]
            suffix[part] = offsets[length - 1] + place[-2][level.suffix[order]]
        else:
            order, part = np.zeros(1, np.int64), slice(0, 1)
        following[part], sureness[part] = level.following[order], level.sureness[order]
    unforeseen = (following < 0) | (following >= vocab)
    following[unforeseen], sureness[unforeseen] = 0, 0
    # a state's children are the states whose parent it is: contiguous, because they stand by parent
    first = 1 + np.searchsorted(parent[1:], np.arange(states), side="left")
    depth = len(levels) - 1
    after = _lead(token, first, suffix, following, states)
    return TableArrays(
        vocab, depth,
        token=token.astype(np.uint32), first_child=first.astype(np.uint32), suffix=suffix.astype(np.uint32),
        next_token=following.astype(np.uint32), next_state=after.astype(np.uint32),
        sureness=sureness.clip(0, 255).astype(np.uint8),
    )  # fmt: skip


def _lead(
    token: NDArray[np.int64], first: NDArray[np.int64], suffix: NDArray[np.int64],
    following: NDArray[np.int64], states: int,
) -> NDArray[np.int64]:  # fmt: skip
    """The state after each state's next token: the child of it, or of its longest suffix that has one."""
    children: list[dict[int, int]] = [{} for _ in range(states)]
    bounds = [*first.tolist(), states]
    tokens, suffixes = token.tolist(), suffix.tolist()
    for state in range(states):
        children[state] = {tokens[child]: child for child in range(bounds[state], bounds[state + 1])}
    after = np.zeros(states, np.int64)
    for state, wanted in enumerate(following.tolist()):
        at = state
        while wanted not in children[at] and at:
            at = suffixes[at]
        after[state] = children[at].get(wanted, 0)
    return after
