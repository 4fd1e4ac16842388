"""Mixed or one after the other: whatever is quicker, and never the one for good."""

from rexthinker_edge.runtime.pace import AGAIN, Pace


def choices(mixed_ms: float, single_ms: float, calls: int, first_ms: float = 0.0) -> list[bool]:
    """What is chosen where a token costs so much either way; the very first call costs more."""
    pace, chosen = Pace(), []
    for call in range(calls):
        mixes = pace.mixes(8)
        cost = mixed_ms if mixes else single_ms
        pace.learn(8 if mixes else 1, 100, 100 * (cost + (first_ms if call == 0 else 0)))
        chosen.append(mixes)
    return chosen


def test_both_ways_are_tried_and_the_quicker_is_taken() -> None:
    """Mixed, single, mixed, single; then what pays, and the other one every sixteenth time."""
    later = [True] * (AGAIN - 1) + [False]
    assert choices(1.0, 2.0, 4 + 2 * AGAIN) == [True, False, True, False, *later, *later]
    assert choices(2.0, 1.0, 4 + AGAIN) == [True, False, True, False, *(not c for c in later)]


def test_what_is_likelier_comes_first() -> None:
    """As long as nothing is known: single, mixed, single, mixed, then what was quicker."""
    pace, chosen = Pace(), []
    for _ in range(6):
        chosen.append(pace.mixes(4, likelier=False))
        pace.learn(4 if chosen[-1] else 1, 10, 10.0 if chosen[-1] else 20.0)
    assert chosen == [False, True, False, True, True, True]


def test_a_late_first_answer_is_forgotten() -> None:
    """The first one pays for measuring what passes cost."""
    assert choices(1.0, 2.0, 8, first_ms=50.0)[4:] == [True] * 4


def test_one_number_of_answers_says_nothing_of_another() -> None:
    """One after the other is known by then; two together are not."""
    pace = Pace()
    for count, ms in ((8, 100.0), (1, 50.0), (8, 100.0), (1, 50.0)):
        pace.learn(count, 10, ms)
    assert not pace.mixes(8)
    assert pace.mixes(2)
    assert pace.describe() == {"1": 5.0, "8": 10.0}


def test_answers_without_tokens_teach_nothing() -> None:
    """Such as those whose deadline came first."""
    pace = Pace()
    pace.learn(8, 0, 5.0)
    assert pace.describe() == {}
    assert pace.mixes(8)
