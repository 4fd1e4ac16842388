"""What a measurement ran on, and what of the machine it got: names, memory, page cache, waiting.

Contract  Everything is read from files that Linux offers without rights; what is not there is told as absent
          and never guessed. `root` is `/` but in tests.
Elsewhere energy and heat: energy.py; what is measured: speed.py.
Source    docs/benchmarks.md
"""

import ctypes
import mmap
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path("/")


def machine_card(root: Path = ROOT) -> dict[str, Any]:
    """Processor, cores, memory, system and versions."""
    return {
        "processor": processor(root),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _meminfo(root, "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "board": text(root / "proc/device-tree/model").strip("\0\n ") or None,
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
    for line in text(root / "proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def text(path: Path) -> str:
    """A file's content; empty where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """A file's one whole number; None where there is none."""
    found = text(path).strip()
    return int(found) if found.lstrip("-").isdecimal() else None


def _meminfo(root: Path, name: str) -> int | None:
    for line in text(root / "proc/meminfo").splitlines():
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
    for line in text(root / "proc/self/status").splitlines():
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
class Taken:
    """Seconds since the machine started; None where the system does not count."""

    all_s: float | None  # of all cores, that somebody took: every program, interrupts, the machine's own host
    own_s: float  # that this process took
    clock_s: float


def read_taken(root: Path = ROOT) -> Taken:
    """Who took the cores so far."""
    times, clock, found = os.times(), time.monotonic(), None
    for line in text(root / "proc/stat").splitlines():
        if line.startswith("cpu "):
            user, nice, system, _idle, _waiting, *more = (int(field) for field in line.split()[1:])
            found = (user + nice + system + sum(more[:3])) / os.sysconf("SC_CLK_TCK")  # irq, softirq, steal
    return Taken(found, times.user + times.system, clock)


def others_share(before: Taken, after: Taken, cores: int | None = None) -> float | None:
    """Which share of all cores' time other programs had, those of the machine's host included."""
    if before.all_s is None or after.all_s is None or after.clock_s <= before.clock_s:
        return None
    others = (after.all_s - before.all_s) - (after.own_s - before.own_s)
    return max(0.0, others / (after.clock_s - before.clock_s) / (cores or os.cpu_count() or 1))


@dataclass(frozen=True)
class Turns:
    """Nanoseconds that this process's threads ran, and that they waited for a core though ready to run."""

    ran: int = 0
    waited: int = 0


def read_turns(root: Path = ROOT) -> Turns:
    """Of all threads there are, since each began; zeros where the system does not count."""
    ran = waited = 0
    for path in (root / "proc/self/task").glob("*/schedstat"):
        told = text(path).split()
        if len(told) == 3:
            ran, waited = ran + int(told[0]), waited + int(told[1])
    return Turns(ran, waited)


def waited_share(before: Turns, after: Turns) -> float | None:
    """Which share of its time a thread that could run had to wait, for others' threads or for our own."""
    ran, waited = after.ran - before.ran, after.waited - before.waited
    return waited / (ran + waited) if ran > 0 and waited >= 0 else None
