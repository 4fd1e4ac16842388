"""Energy and heat while something runs, where the machine tells them.

Contract  Everything is read from files that Linux offers without rights; what is not there is told as absent,
          with the reason, and never estimated. `root` is `/` but in tests.
Elsewhere the machine's other facts: machine.py.
Source    docs/benchmarks.md#energy
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rexthinker_edge.benchmarks.machine import ROOT, number, text

HWMON_SECONDS = 0.1  # between two readings of a power sensor


@dataclass(frozen=True)
class Rail:
    """One thing that tells energy: a counter of microjoules, or a sensor of microwatts."""

    name: str
    counter: Path | None = None
    wraps: int = 0  # where the counter begins again
    power: Path | None = None  # microwatts
    volts: Path | None = None  # millivolts, beside
    amperes: Path | None = None  # milliamperes

    def microwatts(self) -> float | None:
        """What it draws now, where it is a sensor."""
        if self.power is not None:
            return number(self.power)
        assert self.volts is not None
        assert self.amperes is not None
        volts, amperes = number(self.volts), number(self.amperes)
        return None if volts is None or amperes is None else float(volts * amperes)


def rails(root: Path = ROOT) -> list[Rail]:
    """Every rail that can be read: RAPL's packages, then power sensors of the board."""
    found = []
    for zone in sorted((root / "sys/class/powercap").glob("*-rapl:[0-9]*")):
        if zone.name.count(":") == 1 and number(zone / "energy_uj") is not None:
            name, wraps = text(zone / "name").strip() or zone.name, number(zone / "max_energy_range_uj")
            found.append(Rail(name, zone / "energy_uj", wraps or 0))
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        label = text(chip / "name").strip()
        if label.startswith("ina"):
            found += _channels(chip, label)
        elif number(chip / "power1_input") is not None:
            found.append(Rail(label or chip.name, power=chip / "power1_input"))
    return found


def _channels(chip: Path, label: str) -> list[Rail]:
    """A Jetson's INA sensors: a voltage and a current for each channel."""
    found = []
    for current in sorted(chip.glob("curr*_input")):
        channel = current.name.removeprefix("curr").removesuffix("_input")
        voltage = chip / f"in{channel}_input"
        if number(current) is not None and number(voltage) is not None:
            name = text(chip / f"in{channel}_label").strip() or f"{label} {channel}"
            if "sum" not in name.lower():
                found.append(Rail(name, volts=voltage, amperes=current))
    return found


@dataclass
class EnergyMeter:
    """Joules by rail while the block runs; a context manager."""

    root: Path = ROOT
    joules: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def __enter__(self) -> Self:
        self._rails = rails(self.root)
        self._before = {rail.name: number(rail.counter) for rail in self._rails if rail.counter}
        self._done = threading.Event()
        self._began = time.monotonic()
        sensors = [rail for rail in self._rails if rail.counter is None]
        self._watch = threading.Thread(target=self._integrate, args=(sensors,), daemon=True)
        if sensors:
            self._watch.start()
        return self

    def _integrate(self, sensors: list[Rail]) -> None:
        last, ended = self._began, False
        while not ended:
            ended = self._done.wait(HWMON_SECONDS)
            now = time.monotonic()
            for rail in sensors:
                power = rail.microwatts()
                if power is not None:
                    self.joules[rail.name] = self.joules.get(rail.name, 0.0) + power * 1e-6 * (now - last)
            last = now

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._watch.ident is not None:
            self._watch.join()
        self.seconds = time.monotonic() - self._began
        for rail in self._rails:
            before, after = self._before.get(rail.name), number(rail.counter) if rail.counter else None
            if before is not None and after is not None:
                counted = after - before if after >= before else after - before + rail.wraps
                self.joules[rail.name] = counted * 1e-6

    def report(self, expressions: int) -> dict[str, Any]:
        """Plain values: joules and watts by rail and joules an expression, or why there are none."""
        if not self.joules:
            zones = any((self.root / "sys/class/powercap").glob("*-rapl:*"))
            why = "RAPL is there but this user may not read it" if zones else "no RAPL, no power sensor"
            return {"available": False, "why": why}
        return {
            "available": True,
            "seconds": self.seconds,
            "joules": dict(self.joules),
            "watts": {name: joules / self.seconds for name, joules in self.joules.items()},
            "joules_per_expression": {
                name: joules / max(expressions, 1) for name, joules in self.joules.items()
            },
        }


@dataclass(frozen=True)
class Heat:
    """Counters of throttling, clock rates and temperatures at one moment."""

    events: dict[str, int]
    clock_share: float | None  # of the largest clock, the slowest core's
    hottest_c: float | None


def read_heat(root: Path = ROOT) -> Heat:
    """What the kernel counts of throttling, and how warm and fast the cores are."""
    cpus = root / "sys/devices/system/cpu"
    counters = [*cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    counters += (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")  # a Jetson's over-current alarms
    events = {str(path.relative_to(root / "sys")): number(path) for path in sorted(counters)}
    shares = []
    for policy in cpus.glob("cpu[0-9]*/cpufreq"):
        now, most = number(policy / "scaling_cur_freq"), number(policy / "cpuinfo_max_freq")
        if now and most:
            shares.append(now / most)
    zones = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    warm = [value / 1000 for value in map(number, zones) if value is not None]
    told = {name: count for name, count in events.items() if count is not None}
    return Heat(told, min(shares, default=None), max(warm, default=None))


def throttling(before: Heat, after: Heat) -> dict[str, Any]:
    """Whether the machine throttled between two moments; `throttled` is None where nothing tells."""
    new = {
        name: after.events[name] - count
        for name, count in before.events.items()
        if after.events.get(name, count) > count
    }
    return {
        "throttled": bool(new) if before.events else None,
        "events": new,
        "clock_share": after.clock_share,
        "hottest_c": after.hottest_c,
        **({} if before.events else {"why": "no throttle counters here"}),
    }
