"""What a device made of a bundle for itself: graphs optimised and weights packed once, mapped afterwards.

Why       ONNX Runtime optimises a graph and packs its weights into the processor's order at every opening.
          The outcome can be written down: then it is mapped from the page cache and shared, instead of
          filling memory of each process's own.
Layout    `~/.cache/rexthinker-edge/prepared/NAME-DIGEST/`: a graph with its data for each graph of the
          bundle, and `card.json`. Safe to delete; the bundle is only read.
Contract  A prepared graph answers bit for bit as the bundle's. It belongs to one bundle, one processor and
          one version of ONNX Runtime; where any differs it is not used, `differences` names what, and
          `prepare` makes it again. Written beside its place and renamed into it.
          A decoder whose products are ours needs none of it and is left out.
Elsewhere the verb: package/commands/prepare.py; who opens it: parts.py; what it wins: docs/full-size.md.
Source    docs/full-size.md#prepare
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from rexthinker_edge.kernels.native_operators import trouble
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import ALWAYS_HASHED_BYTES, Bundle, file_sha256, flush
from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.manifest import FileEntry
from rexthinker_edge.runtime.native_graph import native_graph
from rexthinker_edge.runtime.opening import REFUSALS, refusal, session_options
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse, to_dataclass, to_json

CARD, CARD_FORMAT = "card.json", 2
MAX_CARD_BYTES = 100_000
GRAPHS = (manifests.DETECTOR, manifests.DETECTOR_TEXT, manifests.VISION, manifests.DECODER)
# Of these the packed weights are written too. The detector's are not: ONNX Runtime 1.31.1 crashes (SIGSEGV)
# when it runs what it has written of them (docs/negative-results.md).
PACKED = (manifests.VISION, manifests.DECODER)
SMALL_BYTES = 1024  # weights below stay inside the graph
GROWTH = 3.0  # what is written, at most, per byte of the bundle's: packed weights stand beside plain ones


@dataclass(frozen=True)
class Machine:
    """What packed weights belong to."""

    processor: str
    system: str
    onnxruntime: str
    products: str  # whose 4- and 8-bit products run: ours need no packing


@dataclass(frozen=True)
class Card:
    """Everything `card.json` says."""

    format_version: int
    digest: str  # of the bundle
    machine: Machine
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Prepared:
    """The prepared graphs of a bundle on this machine.

    Attributes:
        directory: where they are, or would be.
        differences: why they are not used; empty when they are.
    """

    directory: Path
    differences: tuple[str, ...]

    def graph(self, name: str) -> Path | None:
        """The path of a prepared graph; None where there is none to use."""
        path = self.directory / name
        return path if not self.differences and path.is_file() else None


def this_machine() -> Machine:
    """The machine at hand."""
    products = "ONNX Runtime's" if trouble() else "ours"
    return Machine(_processor(), f"{platform.system()} {platform.machine()}", ort.__version__, products)


def default_root() -> Path:
    """Where prepared bundles lie unless told otherwise."""
    return Path.home() / ".cache" / "rexthinker-edge" / "prepared"


def directory_of(opened: Bundle, root: Path | None = None) -> Path:
    """The place of a bundle's prepared graphs."""
    return (root or default_root()) / f"{opened.path.name}-{opened.digest[:16]}"


def find(opened: Bundle, root: Path | None = None) -> Prepared | None:
    """What was prepared of a bundle; None where nothing was."""
    directory = directory_of(opened, root)
    if not (directory / CARD).is_file():
        return None
    return Prepared(directory, tuple(_differences(directory, opened)))


def prepare(
    opened: Bundle, root: Path | None = None, told: Callable[[str], None] = lambda _: None
) -> Prepared:
    """Optimise and pack every graph of a bundle, replacing what was prepared of it before.

    Args:
        told: is called with the name of each graph before it is worked on.

    Raises:
        DeviceError: there is no room for it, or what was written does not run or answers otherwise.
        BundleError: ONNX Runtime cannot open a graph.
    """
    directory = directory_of(opened, root)
    names = [name for name in GRAPHS if name in opened.manifest.files and _gains(opened, name)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    _check_room(opened, names, directory.parent)
    aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory.parent))
    try:
        partial = directory_of(opened, aside)
        partial.mkdir()
        for name in names:
            told(name)
            _pack(opened.file(name), partial / name, name in PACKED)
        files = {item.name: _entry(item) for item in sorted(partial.iterdir())}
        card = Card(CARD_FORMAT, opened.digest, this_machine(), files)
        (partial / CARD).write_text(json.dumps(to_json(card), indent=1) + "\n", encoding="utf-8")
        flush(partial / CARD)
        told("a question, to see that it answers as before")
        _compare(opened, aside)
        remove(opened, root)
        partial.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Prepared(directory, ())


def remove(opened: Bundle, root: Path | None = None) -> bool:
    """Delete what was prepared of a bundle; whether there was anything."""
    directory = directory_of(opened, root)
    if not directory.is_dir():
        return False
    shutil.rmtree(directory)
    return True


def plain_options(threads: int) -> ort.SessionOptions:
    """Options for a graph that is optimised already."""
    options = session_options(threads)
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _gains(opened: Bundle, name: str) -> bool:
    """Whether a graph has anything to pack: our products read the bundle's own weights."""
    return name != manifests.DECODER or native_graph(opened.file(name)) is None


def _compare(opened: Bundle, aside: Path) -> None:
    """Ask the bundle and what was made of it the same, each in a process of its own: one may crash."""
    answers = [_answer(opened, root) for root in (None, aside)]
    if answers[0] != answers[1]:
        raise DeviceError(
            f"{opened.path.name}: what ONNX Runtime {ort.__version__} wrote of its graphs gives "
            f"{answers[1][:100]}, not {answers[0][:100]}. Nothing was kept: go on without, a bundle runs "
            "unprepared too."
        )


def _answer(opened: Bundle, root: Path | None) -> str:
    asked = [sys.executable, "-m", "rexthinker_edge.runtime.prepared_check", str(opened.path)]
    done = subprocess.run(
        [*asked, *([] if root is None else [str(root)])], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else f"exit code {done.returncode}"


def _pack(source: Path, target: Path, packed: bool) -> None:
    options = session_options(1)
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    entries = {
        "session.optimized_model_external_initializers_file_name": f"{target.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(SMALL_BYTES),
        "session.save_external_prepacked_constant_initializers": str(int(packed)),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except REFUSALS as error:
        raise refusal(source, error) from error


def _entry(path: Path) -> FileEntry:
    flush(path)
    return FileEntry(path.stat().st_size, file_sha256(path))


def _check_room(opened: Bundle, names: list[str], place: Path) -> None:
    known = opened.manifest.files
    used = [part for name in names for part in (name, f"{name}.data") if part in known]
    needed = int(GROWTH * sum(known[name].bytes for name in used))
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DeviceError(
            f"{place}: {free:,} bytes free, up to {needed:,} are needed for what is prepared of "
            f"{opened.path.name}. Free some, or go on without: a bundle runs unprepared too."
        )


def _differences(directory: Path, opened: Bundle) -> list[str]:
    try:
        if (directory / CARD).stat().st_size > MAX_CARD_BYTES:
            raise StrictJsonError(f"more than {MAX_CARD_BYTES:,} bytes")
        card = to_dataclass(Card, parse((directory / CARD).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, StrictJsonError) as error:
        return [f"{CARD} cannot be read ({error})"]
    here, found = this_machine(), list[str]()
    if card.format_version != CARD_FORMAT:
        found.append(f"format {card.format_version}, {CARD_FORMAT} is needed")
    if card.digest != opened.digest:
        found.append("made of another bundle")
    for what, made, now in (
        ("processor", card.machine.processor, here.processor),
        ("system", card.machine.system, here.system),
        ("ONNX Runtime", card.machine.onnxruntime, here.onnxruntime),
        ("4-bit products that are", card.machine.products, here.products),
    ):
        if made != now:
            found.append(f"made for {what} {made}, here is {now}")
    return found or _damaged(directory, card)


def _damaged(directory: Path, card: Card) -> list[str]:
    for name, entry in card.files.items():
        path = directory / name
        if os.path.basename(name) != name or not path.is_file() or path.stat().st_size != entry.bytes:
            return [f"{name} is not as it was written"]
        if entry.bytes <= ALWAYS_HASHED_BYTES and file_sha256(path) != entry.sha256:
            return [f"{name} is not as it was written"]
    return []


def _processor() -> str:
    """The processor's name and what it can do, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or platform.machine()
    told = dict[str, str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    flags = told.get("flags", told.get("Features", "")).split()
    kinds = [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "asimd", "sve", "i8mm", "bf16"))]
    name = told.get("model name", told.get("CPU part", platform.machine()))
    return f"{name} ({' '.join(sorted(kinds))})"
