"""Mixed against one after the other: both are what `refer` gives, and a difference is seen."""

import json

from rexthinker_edge.benchmarks import together
from rexthinker_edge.benchmarks.bench_questions import questions
from rexthinker_edge.benchmarks.speed import same_answer
from rexthinker_edge.runtime.thinker import load


def test_both_ways_answer_every_expression():
    thinker, (question,) = load(threads=1), questions(1, together.SIZE)
    for count in (1, 3):
        results, ms = together.answered(thinker, question, count)
        assert [result.expression for result in results] == list(question.expressions)
        assert ms > 0


def test_a_difference_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["together", "--count", "1", "--together", "4"])
    seen = iter([False])
    monkeypatch.setattr(together, "same_answer", lambda *pair: next(seen, same_answer(*pair)))
    assert together.main() == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["identical"], told["answers"]) == (7, 8)
    assert told["one_by_one_ms"] > 0
    assert told["mixed_ms"] > 0
