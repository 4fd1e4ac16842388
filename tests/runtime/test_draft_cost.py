"""The costs of passes stand for the machine as it is now, also after it was stalled."""

from types import SimpleNamespace

import numpy as np
import pytest

from rexthinker_edge.runtime import draft_cost
from rexthinker_edge.runtime.draft_cost import GAP, OLD, RELEARN, SLOW_PASS_MS, WIDEST, PassCosts, paying

KINDS, RATES = [0] * (WIDEST - 1), [0.93]


def true_ms(width: int) -> float:
    """A pass as measured on a CPU: 2, 4, 8, 16, 32 tokens in 1, 1.2, 1.7, 2.8, 5 ms."""
    return float(np.interp(width, [2, 4, 8, 16, 32], [1.0, 1.2, 1.7, 2.8, 5.0]))


class Machine:
    """A decoder whose passes cost what they cost here, times a stall, on a clock of its own."""

    def __init__(
        self, scale: float = 1.0, stalls: dict[int, float] | None = None, rows_alike: bool = False
    ) -> None:
        self.geometry, self.rows_alike = SimpleNamespace(vocab=50, max_length=4096), rows_alike
        self.now, self.runs, self.scale, self.stalls = 0.0, 0, scale, stalls or {}

    def pass_ms(self, width: int) -> float:
        self.runs += 1
        return self.scale * true_ms(width) + self.stalls.get(self.runs, 0.0)

    def embed(self, ids: list[int]) -> list[int]:
        return ids

    def run(
        self, embeds: list[int], positions: object, cache: object, last_only: bool, **_: object
    ) -> np.ndarray:
        self.now += self.pass_ms(len(embeds)) / 1000
        return np.array(embeds, np.float32)[:, None]

    def probe(self, costs: PassCosts) -> None:
        costs.probe(self, SimpleNamespace(length=9, rewind=lambda length: None), 9)  # type: ignore[arg-type]

    def decode(self, costs: PassCosts, passes: int) -> int:
        """Draft as the drafter does, a long chain before every pass; returns the last width that paid."""
        for _ in range(passes):
            width = costs.explore(WIDEST) or paid(costs)
            costs.learn(width, self.pass_ms(width))
        return paid(costs)


def paid(costs: PassCosts) -> int:
    return 1 + paying(KINDS, RATES, costs.costs, 0.0)


def test_a_pass_of_one_row_is_measured_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for alike in (True, False):
        made, costs = Machine(rows_alike=alike), PassCosts()
        monkeypatch.setattr(draft_cost, "time", SimpleNamespace(thread_time=lambda made=made: made.now))
        made.probe(costs)
        assert costs.exact
        assert costs.least == (1 if alike else 2)
        assert (1 in costs._seen) == alike
        assert costs.costs[1] == pytest.approx(true_ms(1))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(draft_cost, "time", SimpleNamespace(thread_time=lambda: made.now))
    return made


def calm() -> int:
    """The width that pays on a machine nobody disturbs, by the true costs."""
    return 1 + paying(KINDS, RATES, [true_ms(max(2, width)) for width in range(WIDEST + 1)], 0.0)


def test_undisturbed_costs_are_the_true_ones(machine: Machine) -> None:
    costs = PassCosts()
    machine.probe(costs)
    assert [round(costs.costs[w], 6) for w in (2, 4, 8, 16, 32)] == [1.0, 1.2, 1.7, 2.8, 5.0]
    assert calm() == 10
    assert machine.decode(costs, 1000) == calm()
    assert costs.costs == pytest.approx([true_ms(max(2, width)) for width in range(WIDEST + 1)])


@pytest.mark.parametrize("stalled", range(2, 9))
def test_a_second_lost_in_the_first_measurement_is_made_good(machine: Machine, stalled: int) -> None:
    """The stall ends the measurement, so that it is all that is known of one width."""
    machine.stalls = {stalled: 1000.0}
    costs = PassCosts()
    machine.probe(costs)
    assert costs.exact is True
    assert costs.widest == WIDEST
    assert machine.decode(costs, 10 * GAP) == calm()
    assert costs.costs == pytest.approx([true_ms(max(2, width)) for width in range(WIDEST + 1)])


@pytest.mark.parametrize("passes", [40, 300, 2000])
def test_a_long_stall_is_forgotten(machine: Machine, passes: int) -> None:
    costs, rng = PassCosts(), np.random.default_rng(passes)
    machine.probe(costs)
    machine.decode(costs, 200)
    machine.stalls = {machine.runs + k: float(rng.exponential(80.0)) for k in range(1, passes + 1)}
    machine.decode(costs, passes)
    assert passes < 300 or costs.costs[16] > 2 * true_ms(16)  # a short one changes nothing
    assert machine.decode(costs, 3 * RELEARN + 6 * GAP) == calm()
    assert machine.decode(costs, OLD) == calm()
    assert costs.costs == pytest.approx([true_ms(max(2, width)) for width in range(WIDEST + 1)])


def test_single_stalls_change_nothing(machine: Machine) -> None:
    costs = PassCosts()
    machine.probe(costs)
    machine.stalls = dict.fromkeys(range(50, 4000, 7), 1000.0)
    for _ in range(8):
        assert machine.decode(costs, 400) == calm()


def test_measuring_takes_few_passes(machine: Machine) -> None:
    costs = PassCosts()
    machine.probe(costs)
    tried = 0
    for _ in range(4000):
        width = costs.explore(WIDEST)
        tried += width > 0
        costs.learn(width or 16, machine.pass_ms(width or 16))
    assert 0 < tried <= 4 * (4000 / OLD + 1)  # the four widths that are not used, once each in OLD passes
    assert costs.explore(1) == 0


def test_a_quick_machine_that_looked_slow_is_measured_again(machine: Machine) -> None:
    machine.scale = 1.2 * SLOW_PASS_MS / true_ms(16)
    costs = PassCosts()
    machine.probe(costs)
    assert (costs.widest, costs.wants_probe) == (16, False)
    machine.scale = 1.0
    machine.decode(costs, 10 * GAP)
    assert costs.wants_probe
    machine.probe(costs)
    assert (costs.widest, costs.wants_probe) == (WIDEST, False)
    assert machine.decode(costs, 100) == calm()
