"""Times every peer's every way of every step, in alternation, and summarises by medians.

Layout    Every peer first does a step that is not counted. A round then asks step by step; within a step the
          memory's rate is read first and then each peer once per way, beginning with another peer every
          round. So what disturbs the machine for a minute disturbs all.
Contract  What failed is recorded with its reason and not asked again; the rest goes on. A way that took
          SLOWER times as long as the same peer's best of that step is timed once: a peer is represented by
          its best way, so more rounds of it would only take time from the others. A ratio is one median over
          another, of the same rounds' steps. A way with "aside" in its detail represents nobody.
Elsewhere processes: host.py; tables: report.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from rexthinker_edge.benchmarks.peers.host import TOO_SLOW, Entry

NO_WAY = "-"
SLOWER = 1.5
BESIDES = 1.3  # a round's time by what is timed in it: prefixes are read again after a prefill
CONTAINS = {"prefill": "second", "one": "second", "eight": "one"}  # what takes longer than what
WARM_UP = ("token", "prefill", "one", "eight")  # the first of these that a peer has, untimed


class Timed(Protocol):
    """What is asked of a host."""

    entry: Entry
    opened: dict[str, Any]

    def time(self, step: str, way: str) -> dict[str, Any]:
        """Seconds of one step, or why not."""


@dataclass(frozen=True)
class Sample:
    """One step, timed once. Seconds are of the whole step; `units` were done in it."""

    peer: str
    step: str
    way: str
    round: int
    wall_s: float
    cpu_s: float
    units: int
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A step that a peer could not do."""

    peer: str
    step: str
    way: str
    error: str


@dataclass(frozen=True)
class Row:
    """One way of one step: medians over rounds, of the whole step (for "token": of one token)."""

    peer: str
    step: str
    way: str
    rounds: int
    wall_s: float
    cpu_s: float
    detail: dict[str, Any]

    def seconds(self, clock: str) -> float:
        """By "wall" or "cpu"."""
        return self.wall_s if clock == "wall" else self.cpu_s


class Alternation:
    """Rounds over opened hosts, and what came of them so far.

    Args:
        hosts: opened; one that could not be opened is refused once per step.
        machine: asked to "read" before every step.
        told: is called with a line per answer.
    """

    def __init__(
        self, hosts: Sequence[Timed], steps: Sequence[str], machine: Timed | None = None,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        self._hosts, self._steps, self._machine, self._told = hosts, steps, machine, told
        self._left: set[tuple[str, str, str]] = set()  # not asked again
        self.samples, self.refusals = list[Sample](), list[Refusal]()
        self.rounds = 0

    def warm_up(self) -> None:
        """Each peer does one step that is not counted; what fails here will fail and be recorded in a
        round."""
        for host in self._hosts:
            ways = host.opened.get("ways", {})
            step = next((step for step in WARM_UP if step in ways), None)
            if step is not None:
                self._told(f"warm-up: {host.entry.name} / {step}: {_said(host.time(step, ways[step][0]))}")

    def round(self) -> None:
        """Every step of every peer once more."""
        for step in self._steps:
            for host, way in self._order(step):
                self._ask(host, "read" if host is self._machine else step, way)
            self._leave_slow(step)
        self.rounds += 1

    def expected_s(self) -> float:
        """About how long the next round takes: what is asked again took so long in the last one."""
        last = [s for s in self.samples if s.round == self.rounds - 1]
        return BESIDES * sum(s.wall_s for s in last if (s.peer, s.step, s.way) not in self._left)

    def _order(self, step: str) -> list[tuple[Timed, str]]:
        first = self.rounds % max(len(self._hosts), 1)
        asked = [] if self._machine is None else [(self._machine, "dot products")]
        for host in [*self._hosts[first:], *self._hosts[:first]]:
            asked += [(host, way) for way in host.opened.get("ways", {}).get(step, [NO_WAY])]
        return asked

    def _ask(self, host: Timed, step: str, way: str) -> None:
        key = (host.entry.name, step, way)
        if key in self._left:
            return
        got = self._too_long(host, step) or (host.time(step, way) if way != NO_WAY else _lacking(host))
        self._told(f"round {self.rounds + 1}: {' / '.join(key)}: {_said(got)}")
        if got["ok"]:
            seconds = (got["wall_s"], got["cpu_s"], got["units"])
            self.samples.append(Sample(*key, self.rounds, *seconds, got.get("detail", {})))
        else:
            self._left.add(key)
            self.refusals.append(Refusal(*key, got["error"]))

    def _too_long(self, host: Timed, step: str) -> dict[str, Any] | None:
        """A refusal where a part of the step has already passed the limit, every way of it."""
        part = CONTAINS.get(step)
        ways = host.opened.get("ways", {}).get(part, [])
        found = [r.error for r in self.refusals if (r.peer, r.step) == (host.entry.name, part)]
        if part is None or not ways or len(found) < len(ways) or not all(TOO_SLOW in e for e in found):
            return None
        return {"ok": False, "error": f"not asked, for {part} is a part of it: {found[0]}"}

    def _leave_slow(self, step: str) -> None:
        """Ways that cannot become their peer's best are not asked again."""
        rows = [row for row in summarise(self.samples) if row.step == step]
        for row in rows:
            quickest = {clock: best(rows, row.peer, step, clock) for clock in ("wall", "cpu")}
            if all(
                found is not None and row.seconds(clock) > SLOWER * found.seconds(clock)
                for clock, found in quickest.items()
            ):
                self._left.add((row.peer, step, row.way))


def measure(
    hosts: Sequence[Timed], steps: Sequence[str], rounds: int, machine: Timed | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[list[Sample], list[Refusal]]:  # fmt: skip
    """So many rounds, without a warm-up; see the module's layout."""
    alternation = Alternation(hosts, steps, machine, told)
    for _ in range(rounds):
        alternation.round()
    return alternation.samples, alternation.refusals


def _said(got: dict[str, Any]) -> str:
    """An answer in a line, so that what an interrupted run has measured is not lost."""
    if not got["ok"]:
        return str(got["error"])
    return f"{got['wall_s']:.4g} s, {got['cpu_s']:.4g} s of processor time, {got['units']} units"


def _lacking(host: Timed) -> dict[str, Any]:
    """Why there is no way of doing a step."""
    return host.opened if not host.opened["ok"] else {"ok": False, "error": "has no such step"}


def summarise(samples: Sequence[Sample]) -> list[Row]:
    """Medians of every way, in the order in which they first came."""
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.peer, sample.step, sample.way), []).append(sample)
    rows = []
    for (peer, step, way), group in groups.items():
        each = [sample.units if step == "token" else 1 for sample in group]
        wall = median(s.wall_s / n for s, n in zip(group, each, strict=True))
        cpu = median(s.cpu_s / n for s, n in zip(group, each, strict=True))
        rows.append(Row(peer, step, way, len(group), wall, cpu, group[-1].detail))
    return rows


def best(rows: Sequence[Row], peer: str, step: str, clock: str) -> Row | None:
    """A peer's quickest way of a step, ways set aside left out; None where it has none."""
    found = [row for row in rows if row.peer == peer and row.step == step and "aside" not in row.detail]
    return min(found, key=lambda row: row.seconds(clock), default=None)


def ratio(rows: Sequence[Row], peer: str, ours: str, step: str, clock: str) -> float | None:
    """How many times as long as `ours` the peer takes, each in its best way; above 1 ours is faster."""
    theirs, mine = best(rows, peer, step, clock), best(rows, ours, step, clock)
    return None if theirs is None or mine is None else theirs.seconds(clock) / mine.seconds(clock)


def read_rate(samples: Sequence[Sample]) -> dict[str, float]:
    """Bytes a second that memory was read at, by clock: medians over all readings of the run.

    By "wall" the best pass of each reading; by "cpu" bytes for a second of processor time, which on a busy
    machine is what one core would have reached. Empty where nothing was read.
    """
    found = [sample for sample in samples if sample.step == "read"]
    if not found:
        return {}
    return {
        "wall": median(sample.detail["bytes_per_s"] for sample in found),
        "cpu": median(sample.units / sample.cpu_s for sample in found),
    }
