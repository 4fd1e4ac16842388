"""What a measurement ran on, and what of the machine it used: names, memory, energy, heat, page cache.

Contract  Everything is read from files that Linux offers without rights; what is not there is told as absent
          and never guessed. `root` is `/` but in tests.
Elsewhere what is measured: speed.py.
Source    docs/benchmarks.md#energy
"""

import ctypes
import mmap
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ROOT = Path("/")
HWMON_SECONDS = 0.1  # between two readings of a power sensor


def machine_card(root: Path = ROOT) -> dict[str, Any]:
    """Processor, cores, memory, system and versions."""
    return {
        "processor": processor(root),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _meminfo(root, "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "board": _text(root / "proc/device-tree/model").strip("\0\n ") or None,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {
            "rexthinker-edge": metadata.version("rexthinker-edge"),
            "python": platform.python_version(),
            **{name: _version(name) for name in ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers")},
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor(root: Path = ROOT) -> str:
    """The processor's own name."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    found = _text(path).strip()
    return int(found) if found.lstrip("-").isdecimal() else None


def _meminfo(root: Path, name: str) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def begin_peak(root: Path = ROOT) -> bool:
    """Forget the most memory this process held so far; False where the system does not allow it."""
    try:
        (root / "proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def peak_bytes(root: Path = ROOT) -> int:
    """The most memory this process held resident, since `begin_peak` where that worked."""
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def drop_from_cache(paths: Iterable[Path]) -> str | None:
    """Ask the system to forget files that it holds in memory; why it could not, or None.

    Files that another program has mapped stay, and so do pages not yet on the disk.
    """
    if not hasattr(os, "posix_fadvise"):
        return "this system has no posix_fadvise"
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            return f"posix_fadvise: {error.strerror}"
        finally:
            os.close(descriptor)
    return None


def cached_share(paths: Iterable[Path]) -> float | None:
    """Which share of files' pages is in memory; None where the system does not tell.

    Asked of `mincore`, which reads nothing. It tells the truth about files that this user may write.
    """
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None:
        return None
    held = seen = 0
    for path in paths:
        size = path.stat().st_size
        if not size:
            continue
        if not os.access(path, os.W_OK):
            return None
        mapped = np.memmap(path, np.uint8, "r")
        pages: NDArray[np.uint8] = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        place, told = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_void_p(pages.ctypes.data)
        if mincore(place, ctypes.c_size_t(size), told) != 0:
            return None
        held, seen = held + int((pages & 1).sum()), seen + len(pages)
    return held / seen if seen else None


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
            return _number(self.power)
        assert self.volts is not None
        assert self.amperes is not None
        volts, amperes = _number(self.volts), _number(self.amperes)
        return None if volts is None or amperes is None else float(volts * amperes)


def rails(root: Path = ROOT) -> list[Rail]:
    """Every rail that can be read: RAPL's packages, then power sensors of the board."""
    found = []
    for zone in sorted((root / "sys/class/powercap").glob("*-rapl:[0-9]*")):
        if zone.name.count(":") == 1 and _number(zone / "energy_uj") is not None:
            name, wraps = _text(zone / "name").strip() or zone.name, _number(zone / "max_energy_range_uj")
            found.append(Rail(name, zone / "energy_uj", wraps or 0))
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        label = _text(chip / "name").strip()
        if label.startswith("ina"):
            found += _channels(chip, label)
        elif _number(chip / "power1_input") is not None:
            found.append(Rail(label or chip.name, power=chip / "power1_input"))
    return found


def _channels(chip: Path, label: str) -> list[Rail]:
    """A Jetson's INA sensors: a voltage and a current for each channel."""
    found = []
    for current in sorted(chip.glob("curr*_input")):
        number = current.name.removeprefix("curr").removesuffix("_input")
        voltage = chip / f"in{number}_input"
        if _number(current) is not None and _number(voltage) is not None:
            name = _text(chip / f"in{number}_label").strip() or f"{label} {number}"
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
        self._before = {rail.name: _number(rail.counter) for rail in self._rails if rail.counter}
        self._done = threading.Event()
        self._began = time.monotonic()
        sensors = [rail for rail in self._rails if rail.counter is None]
        self._watch = threading.Thread(target=self._integrate, args=(sensors,), daemon=True)
        if sensors:
            self._watch.start()
        return self

    def _integrate(self, sensors: list[Rail]) -> None:
        last, ended = time.monotonic(), False
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
            before, after = self._before.get(rail.name), _number(rail.counter) if rail.counter else None
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
    events = {str(path.relative_to(root / "sys")): _number(path) for path in sorted(counters)}
    shares = []
    for policy in cpus.glob("cpu[0-9]*/cpufreq"):
        now, most = _number(policy / "scaling_cur_freq"), _number(policy / "cpuinfo_max_freq")
        if now and most:
            shares.append(now / most)
    zones = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    warm = [value / 1000 for value in map(_number, zones) if value is not None]
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
