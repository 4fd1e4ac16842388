"""Times every peer's every way of every step, in alternation, and summarises by medians.

Layout    A round asks step by step; within a step the memory's rate is read first and then each peer once per
          way, beginning with another peer every round. So what disturbs the machine for a minute disturbs
          all.
Contract  What failed is recorded with its reason and not asked again; the rest goes on. A ratio is one median
          over another, of the same round's steps; a peer is represented by its best way.
Elsewhere processes: host.py; tables: report.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from rexthinker_edge.benchmarks.peers.host import Entry

NO_WAY = "-"


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


def measure(
    hosts: Sequence[Timed], steps: Sequence[str], rounds: int, machine: Timed | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[list[Sample], list[Refusal]]:  # fmt: skip
    """All rounds; see the module's layout.

    Args:
        hosts: opened; one that could not be opened is refused once per step.
        machine: asked to "read" before every step.
        told: is called with a line per answer.
    """
    samples, refusals = list[Sample](), list[Refusal]()
    refused: set[tuple[str, str, str]] = set()
    for number in range(rounds):
        for step in steps:
            asked: list[tuple[Timed, str, str]] = (
                [] if machine is None else [(machine, "read", "dot products")]
            )
            first = number % max(len(hosts), 1)
            for host in [*hosts[first:], *hosts[:first]]:
                ways = host.opened.get("ways", {}).get(step, [NO_WAY])
                asked += [(host, step, way) for way in ways]
            for host, name, way in asked:
                key = (host.entry.name, name, way)
                if key in refused:
                    continue
                got = host.time(name, way) if way != NO_WAY else _lacking(host)
                told(f"round {number + 1}: {' / '.join(key)}: {_said(got)}")
                if got["ok"]:
                    seconds = (got["wall_s"], got["cpu_s"], got["units"])
                    samples.append(Sample(*key, number, *seconds, got.get("detail", {})))
                else:
                    refused.add(key)
                    refusals.append(Refusal(*key, got["error"]))
    return samples, refusals


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
    """A peer's quickest way of a step; None where it has none."""
    found = [row for row in rows if row.peer == peer and row.step == step]
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
