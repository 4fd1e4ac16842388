"""The part of `doctor` that is about the machine: Python, packages, providers, memory, disk, camera.

Contract  A check is a value; whatever goes wrong while it is made becomes a failed one.
Elsewhere printing them: doctor.py.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
LEAST_DISK_BYTES = 200 * 2**20  # results, pictures, a log
DISTRIBUTION = "rexthinker-edge"
ACCELERATORS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


@dataclass(frozen=True)
class Check:
    """One line of the report; `remedy` is empty unless it failed."""

    name: str
    status: str  # ok, failed or skipped
    seen: str
    remedy: str = ""


def attempt(name: str, check: Callable[[], Check], remedy: str) -> Check:
    """Make a check; an error on the way is a failed one with `remedy`."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a doctor tells what is broken, whatever it is
        told = " ".join(str(error).split())[:400] or type(error).__name__
        return Check(name, "failed", told, remedy)


def machine_checks(bundle: Path) -> Iterator[Check]:
    """Everything that can be told without opening the bundle, which lies at `bundle`."""
    yield attempt("python", check_python, "Install Python 3.11 to 3.13.")
    for name, lowest in requirements():
        yield attempt(name, partial(check_package, name, lowest), f"Install it: pip install -U {name}.")
    yield attempt("providers", check_providers, "Install onnxruntime again.")
    yield attempt("memory", lambda: check_memory(bundle), "Read /proc/meminfo yourself.")
    yield attempt("disk", lambda: check_disk(bundle), "Free some space there.")
    yield attempt("camera", lambda: check_camera(Path("/dev")), "Check the camera's cable.")


def check_python() -> Check:
    """The interpreter's version."""
    seen = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        newer = sys.version_info[:2] > NEWEST_PYTHON
        return Check("python", "ok", seen + (", newer than any tested (3.13)" if newer else ""))
    return Check("python", "failed", f"{seen}, 3.11 or newer is needed", "Install Python 3.11 to 3.13.")


def requirements() -> list[tuple[str, str]]:
    """Names and lowest versions of the packages that the base install asks for, from its own metadata."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", line.partition(";")[0].strip())
        if match and "extra" not in line:
            found.append((match[1], match[2]))
    return found


def check_package(name: str, lowest: str) -> Check:
    """One package: installed, and not older than `lowest`."""
    for installed in (name, f"{name}-gpu") if name == "onnxruntime" else (name,):
        try:
            version = metadata.version(installed)
        except metadata.PackageNotFoundError:
            continue
        seen = f"{version}, {lowest} or newer is needed"
        if numbers(version) < numbers(lowest):
            return Check(name, "failed", seen, f"Install it: pip install -U '{installed}>={lowest}'.")
        return Check(name, "ok", version if installed == name else f"{version} ({installed})")
    return Check(name, "failed", "not installed", f"Install it: pip install '{name}>={lowest}'.")


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_providers() -> Check:
    """What ONNX Runtime can run on."""
    import onnxruntime as ort  # noqa: PLC0415

    found = ort.get_available_providers()
    if "CPUExecutionProvider" not in found:
        remedy = "Install it again: pip install --force-reinstall onnxruntime."
        return Check("providers", "failed", f"{', '.join(found)}; the CPU's is missing", remedy)
    fast = [name.removesuffix("ExecutionProvider") for name in ACCELERATORS if name in found]
    return Check(
        "providers", "ok", f"CPU{''.join(f', {name}' for name in fast)} of ONNX Runtime {ort.__version__}"
    )


def available_bytes() -> int | None:
    """Memory that may still be used, from /proc/meminfo; None where there is none."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def check_memory(bundle: Path) -> Check:
    """Whether the bundle's files fit beside what runs already."""
    available = available_bytes()
    if available is None:
        return Check("memory", "skipped", "this system does not say")
    size = sum(item.stat().st_size for item in bundle.iterdir()) if bundle.is_dir() else 0
    seen = f"{available / 1e9:.1f} GB available, the bundle holds {size / 1e9:.2f} GB"
    if available > size:
        return Check("memory", "ok", seen)
    return Check(
        "memory", "failed", seen, "Close other programs, or ask `rexthinker-edge plan` for a smaller model."
    )


def check_disk(bundle: Path) -> Check:
    """Room where the bundle lies and where temporary files go, and whether the latter can be written."""
    places = {"temporary files": Path(tempfile.gettempdir())}
    if bundle.is_dir():
        places["the bundle"] = bundle
    free = {what: shutil.disk_usage(place).free for what, place in places.items()}
    seen = ", ".join(f"{room / 1e9:.1f} GB free for {what}" for what, room in free.items())
    if min(free.values()) < LEAST_DISK_BYTES:
        return Check("disk", "failed", seen, f"Free {LEAST_DISK_BYTES / 2**20:.0f} MiB there.")
    with tempfile.TemporaryFile() as stream:
        stream.write(b"doctor")
    return Check("disk", "ok", seen)


def check_camera(devices: Path) -> Check:
    """Whether there is a camera that may be read."""
    found = sorted(devices.glob("video[0-9]*"))
    if not found:
        return Check("camera", "skipped", f"no {devices}/video*; only a camera's pictures need one")
    closed = [path.name for path in found if not os.access(path, os.R_OK | os.W_OK)]
    if len(closed) == len(found):
        remedy = "Join the group that may: sudo usermod -aG video $USER, then log in again."
        return Check("camera", "failed", f"{', '.join(closed)}: this user may not read", remedy)
    return Check("camera", "ok", ", ".join(path.name for path in found if path.name not in closed))
