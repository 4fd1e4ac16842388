"""What a TensorRT engine belongs to, and whether that is this machine and this bundle.

What      An engine is compiled for one GPU, one driver and one version of TensorRT, out of one graph. Its
          card says so; `differences` compares the card with what is here and names every difference.
Layout    `NAME.tensorrt/` beside the bundle `NAME`: `vision.engine` with `vision.json`, and so on for each
          graph, plus `timing.cache`. Outside the bundle, because an engine is native code for one machine:
          a bundle stays portable, keeps its digest, and brings none along.
Contract  Nothing here imports TensorRT. A card is read strictly: an unknown or missing key is an error.
Elsewhere running an engine: engine.py; building: export/tensorrt.py.
Source    docs/tensorrt.md
"""

import ctypes
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rexthinker_edge.runtime.bundle import Bundle, file_sha256
from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse, to_dataclass

CARD_FORMAT = 1
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputRange:
    """Shapes of one input that one profile serves: smallest, the one tuned for, largest."""

    least: Shape
    usual: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether a shape lies within, axis by axis."""
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )


@dataclass(frozen=True)
class Machine:
    """The parts of a machine that an engine is compiled for."""

    gpu: str
    compute_capability: str  # such as "8.7"
    driver: str
    tensorrt: str


@dataclass(frozen=True)
class EngineCard:
    """Everything `NAME.json` beside an engine says."""

    format_version: int
    graph: str  # the bundle's file it was built from
    source_sha256: str  # see `source_digest`
    engine_sha256: str
    engine_bytes: int
    machine: Machine
    version_compatible: bool  # runs on later minor versions of TensorRT too
    precision: str
    profiles: tuple[dict[str, InputRange], ...]  # input name: its range, one dict per profile


def engines_directory(bundle: Path) -> Path:
    """Where a bundle's engines lie."""
    bundle = bundle.absolute()
    return bundle.with_name(f"{bundle.name}.tensorrt")


def source_digest(opened: Bundle, graph: str) -> str:
    """SHA-256 over names and SHA-256s of a graph and of its external data, from the manifest."""
    files = opened.manifest.files
    parts = [f"{name} {files[name].sha256}" for name in (graph, f"{graph}.data") if name in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_card(path: Path) -> EngineCard:
    """Read a card.

    Raises:
        DeviceError: it is missing, no card, or of another format.
    """
    remedy = "Build the engines again: rexthinker-edge export BUNDLE --target tensorrt."
    try:
        card = to_dataclass(EngineCard, parse(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise DeviceError(
            f"{path.parent.name}/{path.name}: missing, every engine has one. {remedy}"
        ) from error
    except (OSError, UnicodeDecodeError, StrictJsonError) as error:
        raise DeviceError(
            f"{path.parent.name}/{path.name}: {error}, an engine's card is needed. {remedy}"
        ) from error
    if card.format_version != CARD_FORMAT:
        raise DeviceError(
            f"{path.parent.name}/{path.name}: format {card.format_version}, {CARD_FORMAT} is needed. {remedy}"
        )
    return card


def differences(card: EngineCard, here: Machine, source: str) -> list[str]:
    """Why an engine does not belong here, one line per difference; empty when it does.

    Args:
        here: this machine.
        source: `source_digest` of the bundle at hand.
    """
    built = card.machine
    found = [
        f"{what} is {seen!r} here, the engine was built for {wanted!r}"
        for what, seen, wanted in (
            ("GPU", here.gpu, built.gpu),
            ("compute capability", here.compute_capability, built.compute_capability),
            ("driver", here.driver, built.driver),
        )
        if seen != wanted
    ]
    if not _version_fits(here.tensorrt, built.tensorrt, card.version_compatible):
        rule = "the same major version, not older" if card.version_compatible else "the same version"
        found.append(f"TensorRT is {here.tensorrt!r} here, the engine needs {built.tensorrt!r} ({rule})")
    if source != card.source_sha256:
        found.append(
            f"{card.graph} is another one ({source[:12]}…), the engine was built from "
            f"{card.source_sha256[:12]}…"
        )
    return found


def _version_fits(here: str, built: str, compatible: bool) -> bool:
    if not compatible:
        return here == built
    seen, wanted = (tuple(int(part) for part in re.findall(r"\d+", text)) for text in (here, built))
    return seen[:1] == wanted[:1] and seen >= wanted


def check_engine(path: Path, card: EngineCard) -> None:
    """Compare an engine's bytes with its card: it is native code, so it is hashed at every load.

    Raises:
        DeviceError: missing, or not the file that was built.
    """
    remedy = "Build the engines again: rexthinker-edge export BUNDLE --target tensorrt."
    if not path.is_file() or path.is_symlink():
        raise DeviceError(f"{path.parent.name}/{path.name}: no regular file, one is needed. {remedy}")
    if path.stat().st_size != card.engine_bytes or file_sha256(path) != card.engine_sha256:
        raise DeviceError(f"{path.parent.name}/{path.name}: not the file its card describes. {remedy}")


def choose_profile(card: EngineCard, shapes: Mapping[str, Shape]) -> int:
    """The number of the first profile that holds all shapes.

    Raises:
        DeviceError: none does.
    """
    for number, profile in enumerate(card.profiles):
        if profile.keys() == shapes.keys() and all(profile[name].holds(shapes[name]) for name in shapes):
            return number
    shown = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
    raise DeviceError(
        f"{card.graph}: its engine has no profile for {shown}, it was built for other sizes. Build it again "
        "with this version, or use device='cpu'."
    )


def read_gpu(tensorrt_version: str) -> Machine:
    """The first NVIDIA GPU, asked through the CUDA driver library.

    Raises:
        DeviceError: there is no driver or no GPU.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(
            "device 'tensorrt': libcuda.so.1 is not found, an NVIDIA driver is needed. Install it, or use "
            "device='cpu'."
        ) from error
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls: tuple[Callable[[], int], ...] = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device),  # compute capability, major
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        lambda: cuda.cuDriverGetVersion(ctypes.byref(version)),
    )
    for call in calls:
        if (code := call()) != 0:
            raise DeviceError(
                f"device 'tensorrt': the CUDA driver answers error {code}, a working GPU is needed. Check it "
                "with nvidia-smi, or use device='cpu'."
            )
    driver = _driver_version() or f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return Machine(
        name.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}", driver, tensorrt_version
    )


def _driver_version() -> str | None:
    """The driver's own version: of a PC's kernel module, or of a Jetson's board package."""
    for place in ("/sys/module/nvidia/version", "/etc/nv_tegra_release"):
        path = Path(place)
        if path.is_file():
            return path.read_text("utf-8", "replace").splitlines()[0].strip()
    return None
