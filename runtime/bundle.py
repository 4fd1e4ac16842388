"""A bundle: one flat directory that is complete in itself and safe to load.

Layout    `manifest.json` (format 1, at most 1 MB) and exactly the regular files it lists, by plain name.
          No sub-directories, no links; nothing else is read.
Contract  `open_bundle` refuses an unknown key, a missing or extra file, a wrong size, a newer format and any
          name that could leave the directory; it checks the SHA-256 of files up to 1 MB, or of all.
          A bundle is filled beside its place and renamed into it: a crash leaves the old one or the new one.
Elsewhere what is in the graphs: vision.py, decoder.py, detector.py; who writes it: export/.
Source    docs/bundle.md
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.manifest_limits import unfit_number
from rexthinker_edge.runtime.prompt import Wording
from rexthinker_edge.runtime.quality import QualityCard, card_of_report, unfit_quality
from rexthinker_edge.runtime.risk import RiskCard, unfit_card
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse, to_dataclass, to_json
from rexthinker_edge.runtime.vision import VisionGeometry

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1_000_000
ALWAYS_HASHED_BYTES = 1_000_000

DETECTOR, VISION, DECODER = "detector.onnx", "vision.onnx", "decoder.onnx"
DETECTOR_TEXT = "detector-text.onnx"  # of every bundle whose detector has tables
EMBEDDINGS = "embeddings.bin"
DRAFT = "draft.bin"  # optional: what usually comes next
TOKENIZER, DETECTOR_TOKENIZER = "tokenizer.json", "detector-tokenizer.json"
REQUIRED = (DETECTOR, VISION, DECODER, EMBEDDINGS, TOKENIZER, DETECTOR_TOKENIZER)

MEASURED: dict[str, Any] = {"risk": None, "quality": []}  # cards about a bundle, and what stands without

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelCard:
    """Whose weights these are; licence and notice travel with every derivative."""

    name: str
    source: str
    revision: str
    licence: str
    notice: str


@dataclass(frozen=True)
class PromptSettings:
    """The words and the picture sizes the model was trained with."""

    system: str
    wording: Wording
    min_pixels: int
    max_pixels: int
    max_new_tokens: int


@dataclass(frozen=True)
class TokenIds:
    """Token ids the runtime has to know."""

    image_pad: int
    eos: tuple[int, ...]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CalibrationCard:
    """Where the calibration data came from."""

    source: str
    items: int
    seed: int
    ids: tuple[str, ...] = ()  # the samples chosen, in order
    sha256: str = ""  # over what they hold: words, boxes, traces and pixels
    tokens: int = 0
    traces: int = 0  # samples that carry the assistant's turn
    domains: dict[str, int] = field(default_factory=dict)
    left_out: int = 0  # records looked at that could not be used


@dataclass(frozen=True)
class DraftCard:
    """What the draft table was learnt from; `sha256` is over the traces' tokens."""

    source: str
    traces: int
    states: int
    sha256: str = ""


@dataclass(frozen=True)
class Golden:
    """One self-test: a picture of the bundle, a question, and what an intact machine answers."""

    picture: str  # file name in the bundle
    category: str
    expression: str
    candidates: tuple[
        tuple[float, float, float, float], ...
    ]  # original_px, given, so the detector is not asked
    detected: tuple[tuple[float, float, float, float], ...]  # original_px, what the detector finds
    token_ids: tuple[int, ...]  # what greedy decoding generates, end token included
    status: str
    boxes: tuple[tuple[float, float, float, float], ...]  # original_px, the answer


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says."""

    format_version: int
    name: str
    model: ModelCard
    prompt: PromptSettings
    tokens: TokenIds
    vision: VisionGeometry
    decoder: DecoderGeometry
    detector: DetectorGeometry
    files: dict[str, FileEntry]
    quantisation: dict[str, str]  # graph name: recipe, such as "fp32" or "int4 round-to-nearest, block 128"
    calibration: CalibrationCard | None
    targets: tuple[str, ...]
    golden: tuple[Golden, ...]
    drafts: DraftCard | None = None  # of draft.bin; None also where an older version wrote it
    quality: tuple[QualityCard, ...] = ()  # what it was seen to reach, where that was measured
    risk: RiskCard | None = None  # how sure answers must be for a stated risk, where that was measured


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    manifest: Manifest
    digest: str  # SHA-256 of the manifest's canonical JSON, which holds the SHA-256 of every file

    def file(self, name: str) -> Path:
        """The path of one listed file."""
        assert name in self.manifest.files, name
        return self.path / name


def open_bundle(directory: str | os.PathLike[str], hashes: bool = False) -> Bundle:
    """Check a bundle and read its manifest.

    Args:
        directory: the bundle.
        hashes: read every file and compare its SHA-256, not only the small ones.

    Raises:
        BundleError: anything differs from what docs/bundle.md demands.
    """
    path = Path(directory)
    value = _read_manifest(path)
    try:
        manifest = to_dataclass(Manifest, value)
    except StrictJsonError as error:
        _fail(
            path / MANIFEST, f"{error}", "It was edited or made by another version: export the bundle again."
        )
    _check_manifest(manifest, path)
    _check_risk(manifest, value, path)
    _check_quality(manifest, value, path)
    _check_directory(manifest, path)
    for name, entry in manifest.files.items():
        _check_file(path / name, entry, hashes)
    return Bundle(path, manifest, _digest(value))


@contextmanager
def staged(target: str | os.PathLike[str], overwrite: bool = False, keep: bool = False) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block ends well.

    Args:
        target: where the bundle is to stand.
        overwrite: replace a bundle that stands there. Anything that is no bundle is never replaced.
        keep: leave the partial directory after a failure, to go on from it.

    Yields:
        The partial directory, `.NAME.partial` beside the target. Call `seal` on it before the block ends.

    Raises:
        BundleError: the target exists and may not be replaced.
    """
    target = Path(target).absolute()
    check_target(target, overwrite)
    partial = target.with_name(f".{target.name}.partial")
    if not keep:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        open_bundle(partial)
        _into_place(partial, target)
    finally:
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)


def check_target(target: Path, overwrite: bool) -> None:
    """BundleError where `target` exists and may not be replaced; a half-done replacement is undone first."""
    old = target.with_name(f".{target.name}.old")
    if not target.exists() and (old / MANIFEST).is_file():
        old.rename(target)  # the machine stopped between the two renames that replace a bundle
    if target.exists() and not (overwrite and ((target / MANIFEST).is_file() or not any(target.iterdir()))):
        _fail(
            target,
            "exists already, a new place is needed",
            "Name another directory, or allow overwriting a bundle.",
        )


def seal(directory: Path, manifest: Manifest, known: Mapping[str, FileEntry] | None = None) -> Manifest:
    """Write `manifest.json` for the files that stand in a directory, and flush them all to disk.

    Args:
        known: entries of files that are hashed and flushed already: 5 GB need not be read twice.

    Returns:
        The manifest with `files` filled in.
    """
    entries = dict[str, FileEntry]()
    for item in sorted(directory.iterdir()):
        if item.name != MANIFEST:
            entry = known.get(item.name) if known else None
            if entry is None or entry.bytes != item.stat().st_size:
                entry = FileEntry(item.stat().st_size, file_sha256(item))
                flush(item)
            entries[item.name] = entry
    sealed = replace(manifest, files=entries)
    _check_manifest(sealed, directory)
    text = json.dumps(to_json(sealed), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    flush(directory / MANIFEST)
    return sealed


def riskless_digest(directory: Path) -> str:
    """The digest of a bundle but for what was measured of it: what cards are bound to."""
    return _riskless(_read_manifest(directory))


def write_risk(directory: Path, card: RiskCard | None) -> Bundle:
    """Put a risk card into a bundle's manifest, or take it out; nothing else changes but the digest.

    The manifest is written beside the bundle and renamed into it: a crash leaves the old or the new one.

    Raises:
        BundleError: it is no sound bundle, or the card belongs to another.
    """
    opened = open_bundle(directory)
    value = _read_manifest(opened.path)
    # Only this key is touched: the rest stays as it was written, and so does what the card is bound to.
    value.pop("risk", None)
    if card is not None:
        if (problem := unfit_card(card, _riskless(value))) is not None:
            _fail(opened.path / MANIFEST, problem, "Calibrate this bundle: evaluate --calibrate-risk.")
        value["risk"] = to_json(card)
    return _rewrite(opened.path, value)


def write_quality(directory: Path, reports: Iterable[Mapping[str, Any]]) -> Bundle:
    """Put what was measured of a bundle into its manifest; nothing else changes but the digest.

    Args:
        reports: of `evaluate --report`, parsed; each takes the place of an earlier one of the same dataset
            and candidates.

    Raises:
        BundleError: it is no sound bundle.
        OptionError: a report is none, or of another bundle.
    """
    opened = open_bundle(directory)
    value = _read_manifest(opened.path)
    cards = {(card.dataset, card.boxes): card for card in opened.manifest.quality}
    for report in reports:
        card = card_of_report(report, _digests(value), _riskless(value))
        cards[card.dataset, card.boxes] = card
    value["quality"] = [to_json(cards[key]) for key in sorted(cards)]
    return _rewrite(opened.path, value)


def _rewrite(directory: Path, value: dict[str, Any]) -> Bundle:
    """Give a bundle another manifest, written beside it and renamed into it."""
    place = directory.absolute()
    partial = place.with_name(f".{place.name}.{MANIFEST}.partial")
    partial.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    flush(partial)
    partial.replace(place / MANIFEST)
    flush(place)
    return open_bundle(place)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.is_dir():
        _fail(
            path,
            "no such directory, a bundle is needed",
            "Check the path, or make one with `rexthinker-edge export`.",
        )
    if not file.is_file() or file.is_symlink():
        _fail(file, "missing, a bundle has one", "Name the bundle's own directory, or copy it again.")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        size = f"{file.stat().st_size:,} bytes, at most {MAX_MANIFEST_BYTES:,} are allowed"
        _fail(file, size, "This is no manifest: copy the bundle again.")
    try:
        value = parse(file.read_text(encoding="utf-8"))
    except (StrictJsonError, UnicodeDecodeError) as error:
        _fail(file, f"{error}", "It was altered: copy the bundle again.")
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        newer = f"format version {version}, this program reads up to {FORMAT_VERSION}"
        _fail(file, newer, "Update it: pip install -U rexthinker-edge.")
    if version != FORMAT_VERSION:
        _fail(file, f"format version {version!r}, {FORMAT_VERSION} is needed", "Export the bundle again.")
    assert isinstance(value, dict)
    return value


def _check_manifest(manifest: Manifest, path: Path) -> None:
    file = path / MANIFEST
    for name, entry in manifest.files.items():
        if not _PLAIN_NAME.fullmatch(name) or _DEVICE_NAME.fullmatch(name) or name.endswith("."):
            _fail(
                file,
                f"file name {name!r}, a plain name inside the bundle is needed",
                "Do not use this bundle.",
            )
        if name.lower() == MANIFEST or entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            _fail(file, f"the entry of {name} is not a size and a SHA-256", "Export the bundle again.")
    if len({name.lower() for name in manifest.files}) != len(manifest.files):
        _fail(file, "two file names differ only in case", "Export the bundle again.")
    pictures = [golden.picture for golden in manifest.golden]
    text = [] if manifest.detector.tables is None else [DETECTOR_TEXT]
    for name in [*REQUIRED, *text, *pictures]:
        if name not in manifest.files:
            _fail(file, f"lists no file {name}, every bundle has one", "Export the bundle again.")
    prompt = manifest.prompt
    if not 0 < prompt.min_pixels <= prompt.max_pixels or prompt.max_new_tokens < 1:
        _fail(file, "pixel or token limits are not positive and in order", "Export the bundle again.")
    if not manifest.tokens.eos:
        _fail(file, "tokens.eos is empty, one end token or more is needed", "Export the bundle again.")
    _check_numbers(manifest, file)


def _check_quality(manifest: Manifest, value: dict[str, Any], path: Path) -> None:
    if (problem := unfit_quality(manifest.quality, _riskless(value))) is not None:
        _fail(path / MANIFEST, problem, "Measure this bundle again, or remove the key quality.")


def _check_risk(manifest: Manifest, value: dict[str, Any], path: Path) -> None:
    if manifest.risk is None:
        return
    if (problem := unfit_card(manifest.risk, _riskless(value))) is not None:
        remedy = "Calibrate this bundle again, or remove the key risk: without it max_risk is refused."
        _fail(path / MANIFEST, problem, remedy)


def _check_numbers(manifest: Manifest, file: Path) -> None:
    parts = {"prompt": manifest.prompt, "vision": manifest.vision, "decoder": manifest.decoder}
    for where, part in (*parts.items(), ("detector", manifest.detector)):
        if (problem := unfit_number(part, where)) is not None:
            _fail(file, problem, "It was edited: copy or export the bundle again.")
    for token in (manifest.tokens.image_pad, *manifest.tokens.eos):
        if not 0 <= token < manifest.decoder.vocab:
            seen = f"token {token} with a vocabulary of {manifest.decoder.vocab:,}"
            _fail(file, seen, "It was edited: copy or export the bundle again.")


def _check_directory(manifest: Manifest, path: Path) -> None:
    present = {item.name for item in path.iterdir()} - {MANIFEST}
    for name in sorted(set(manifest.files) - present):
        _fail(path / name, "missing, the manifest lists it", "Copy the bundle again.")
    for name in sorted(present - set(manifest.files)):
        _fail(path / name, "not in the manifest, nothing else may stand in a bundle", "Move it elsewhere.")


def _check_file(file: Path, entry: FileEntry, hashes: bool) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        _fail(
            file,
            "a link, directory or device, a regular file is needed",
            "Copy the bundle with its files, not links.",
        )
    if status.st_size != entry.bytes:
        seen = f"{status.st_size:,} bytes, the manifest says {entry.bytes:,}"
        _fail(file, seen, "The copy was cut short or altered: copy the bundle again.")
    if (hashes or entry.bytes <= ALWAYS_HASHED_BYTES) and (seen := file_sha256(file)) != entry.sha256:
        seen = f"SHA-256 {seen[:12]}…, the manifest says {entry.sha256[:12]}…"
        _fail(file, seen, "The file was altered: copy the bundle again.")


def _digest(value: dict[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _riskless(value: dict[str, Any]) -> str:
    return _digest({key: item for key, item in value.items() if key not in MEASURED})


def _digests(value: dict[str, Any]) -> list[str]:
    """Every digest the bundle has or had: with its cards, without one of them or any, in old form and new."""
    bare = {key: item for key, item in value.items() if key not in MEASURED}
    forms = [
        [{}, {key: empty}, *([{key: value[key]}] if key in value else [])] for key, empty in MEASURED.items()
    ]
    return [_digest(bare | first | second) for first in forms[0] for second in forms[1]]


def _into_place(partial: Path, target: Path) -> None:
    flush(partial)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        partial.rename(target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Bring a file or a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fail(thing: Path, seen: str, remedy: str) -> NoReturn:
    raise BundleError(f"{thing.parent.name}/{thing.name}: {seen}. {remedy}")
