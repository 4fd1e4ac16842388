"""The draft table: counted by an oracle, written, read and walked; damaged files are refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rexthinker_edge.calibration.draft_table import learn_table, traces_of, write_table
from rexthinker_edge.runtime.draft_table import MAGIC, Table
from rexthinker_edge.runtime.errors import BundleError, DataError, OptionError

VOCAB = 9


def tokens_of(table, state):
    """The run a state stands for, shortest way."""
    run = []
    while state:
        run.insert(0, table._token[state])
        state = int(np.searchsorted(np.asarray(table._first), state, side="right")) - 1
    return run


def make_answers(seed=0, count=40):
    """Rows with habits: a fixed opening, then runs that often repeat."""
    rng = np.random.default_rng(seed)
    phrases = [[3, 4, 5], [3, 4, 6, 7], [5, 5, 2]]
    drawn = rng.integers(0, 3, (count, 5))
    return [[1, 2, *(token for k in row for token in phrases[k]), 8] for row in drawn]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "draft.bin"
    path.write_bytes(learn_table(make_answers(), VOCAB, depth=4).to_bytes())
    return Table(path, VOCAB)


def counted(answers, run):
    """What follows a run, by the definition; VOCAB begins an answer."""
    following = Counter()
    for answer in answers:
        row = [VOCAB, *answer]
        for at in range(len(row) - len(run) + 1):
            if row[at : at + len(run)] == list(run):
                following[row[at + len(run)] if at + len(run) < len(row) else None] += 1
    return following


def test_every_state_foresees_what_was_counted(table):
    answers = make_answers()
    assert table.states > 10
    for state in range(1, table.states):
        run = tokens_of(table, state)
        following = counted(answers, run)
        total = following.total()
        assert total >= 3
        best = max(count for token, count in following.items() if token is not None)
        tokens, sure = table.walk(state, 1, 1)
        assert following[tokens[0]] == best, run
        assert sure[0] == 255 * best // (total + 1)


def test_steps_lead_to_the_longest_known_end(table):
    runs = {tuple(tokens_of(table, state)): state for state in range(table.states)}
    for answer in make_answers(seed=7, count=5):
        state, row = table.begin(), [VOCAB]
        for token in answer:
            state = table.step(state, token)
            row.append(token)
            longest = next(n for n in range(len(row), -1, -1) if tuple(row[len(row) - n :]) in runs)
            # a run may be left out although a longer one is kept only where its own end says the same
            assert tuple(tokens_of(table, state)) == tuple(row[len(row) - longest :])


def test_a_walk_says_the_opening(table):
    assert table.walk(table.begin(), 3, 1)[0][:2] == [1, 2]
    assert table.walk(table.begin(), 0, 1) == ([], [])
    assert table.walk(0, 5, 256) == ([], [])


def test_a_table_keeps_within_its_states():
    small = learn_table(make_answers(count=200), VOCAB, depth=6, states=12)
    assert 0 < len(small.token) <= 12
    assert learn_table([], VOCAB).to_bytes()[:8] == MAGIC
    assert len(learn_table([[1, 2]], VOCAB).token) == 1  # nothing is frequent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"x" + d[1:], "its first bytes differ"),
        (lambda d: d[:10], "its first bytes differ"),
        (lambda d: d[:-1], "bytes do not hold"),
        (lambda d: d[:8] + (10).to_bytes(4, "little") + d[12:], "made for 10 tokens, the model has 9"),
        (lambda d: d[:20] + b"\1" + d[21:], "bytes do not hold"),
        (lambda d: _with(d, 0, 1, 10), "a token is outside the vocabulary"),
        (lambda d: _with(d, 1, 0, 0), "children are out of order"),
        (lambda d: _with(d, 1, 5, 2**31), "children are out of order"),
        (lambda d: _with(d, 2, 3, 3), "a suffix is no shorter run"),
        (lambda d: _with(d, 3, 2, 9), "a token is outside the vocabulary"),
        (lambda d: _with(d, 4, 2, 2**30), "a state leads outside"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, change, message):
    path = tmp_path / "draft.bin"
    path.write_bytes(change(learn_table(make_answers(), VOCAB, depth=4).to_bytes()))
    with pytest.raises(BundleError, match=message) as caught:
        Table(path, VOCAB)
    assert "Copy or export the bundle again." in str(caught.value)


def _with(data, array, state, value):
    """The file with one number of one array changed."""
    states = int.from_bytes(data[12:16], "little")
    at = 24 + 4 * (array * states + state)
    return data[:at] + value.to_bytes(4, "little") + data[at + 4 :]


def test_sources(tmp_path):
    traces = list(traces_of("workbench", 2))
    assert all(trace.startswith("<think>") and trace.endswith("</answer>") for trace in traces)
    learnt = write_table(tmp_path / "draft.bin", "workbench", 3, lambda t: list(t.encode()), 256, 0)
    assert (learnt.source, learnt.traces) == ("workbench", 3)
    assert Table(tmp_path / "draft.bin", 256).states == learnt.states
    with pytest.raises(OptionError, match=r"draft traces: 'novels', needed workbench or humanref-cot"):
        list(traces_of("novels", 1))
    with pytest.raises(DataError, match=r"humanref_cot\.annotations\.tsv: no such file"):
        list(traces_of(f"humanref-cot:{Path(tmp_path)}", 1))
