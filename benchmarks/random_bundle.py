"""Builds a bundle of a published size from random numbers: to measure a device before downloading weights.

Layout    A blueprint (benchmarks/blueprints/NAME.zip) holds an export's graphs and tells where in the files
          beside them each tensor stands; here those files are filled, in one pass, hashed as they are
          written. Detector and language model have blueprints of their own. The tokenizers are the small
          bundle's: fewer words than the vocabulary has, so a prompt is about as long as the real one.
Contract  Needs nothing but the base install, and 100 MB of memory. The same shape gives the same bytes, so
          the digest, on every machine. Sizes, layers and operators are an export's; answers mean nothing.
          Its detector never finds anything, by its threshold: whoever asks brings boxes.
          Disk and memory are compared with what it takes before anything is written.
Elsewhere making blueprints: make_blueprints.py; what is measured: speed.py.
Source    docs/benchmarks.md#random-bundles
"""

import hashlib
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.bfloat16 import from_float32
from rexthinker_edge.kernels.mrope import rotary_table
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import Bundle, flush, open_bundle, seal, staged
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.errors import BundleError, DeviceError
from rexthinker_edge.runtime.manifest import FORMAT_VERSION, FileEntry, Manifest, ModelCard
from rexthinker_edge.runtime.strict_json import parse, to_dataclass
from rexthinker_edge.runtime.thinker import small_bundle
from rexthinker_edge.runtime.vision import VisionGeometry

BLUEPRINTS = Path(__file__).with_name("blueprints")
# The detector that goes with each language model; None: the small bundle's own.
DETECTORS: dict[str, str | None] = {"7b": "swin-t", "3b": "swin-t", "tiny": None}
ANSWER_TOKENS = 64  # random answers do not end by themselves
NEVER_FOUND = 1.0  # a threshold that no score exceeds
BESIDE_BYTES = 1_500_000_000  # caches and activations beside the weights, docs/full-size.md#running-it
BLOCK_BYTES = (1 << 24) + 3  # odd, so that no two tensors, nor their rows, begin alike
Told = Callable[[int, int], None]  # bytes done, bytes in all


class Kind(StrEnum):
    """What a tensor's numbers are."""

    BYTES = "bytes"  # codes of 4 or 8 bits, all values
    SEVEN_BITS = "seven"  # codes within -63 … 63
    CONSTANT = "constant"  # every byte is `middle`
    SCALES = "scales"  # near `spread`
    VALUES = "values"  # normal around `middle`
    COS = "cos"  # a rotary table of base `spread` with `middle` copies
    SIN = "sin"


@dataclass(frozen=True)
class Spot:
    """One tensor in a file."""

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    offset: int
    spread: float
    middle: float

    @property
    def bytes(self) -> int:
        """Its size."""
        width = {"float32": 4, "bfloat16": 2, "uint8": 1, "int8": 1}[self.dtype]
        return math.prod(self.shape) * width


@dataclass(frozen=True)
class Blueprint:
    """What fills a bundle's files, and what its manifest says of them."""

    files: dict[str, tuple[Spot, ...]]
    quantisation: dict[str, str]
    decoder: DecoderGeometry | None = None
    vision: VisionGeometry | None = None
    detector: DetectorGeometry | None = None
    min_pixels: int = 0
    max_pixels: int = 0

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(spots[-1].offset + spots[-1].bytes for spots in self.files.values())


def read_blueprint(name: str, into: Path | None = None) -> Blueprint:
    """A blueprint, whose graphs are unpacked `into` a directory where one is given."""
    with zipfile.ZipFile(BLUEPRINTS / f"{name}.zip") as archive:
        for member in archive.namelist() if into is not None else []:
            if member.endswith(".onnx"):
                (into / member).write_bytes(archive.read(member))  # type: ignore[operator]
        return to_dataclass(Blueprint, parse(archive.read("blueprint.json").decode("utf-8")))


@contextmanager
def random_bundle(shape: str, keep: Path | None, told: Told = lambda done, total: None) -> Iterator[Bundle]:
    """A bundle of `shape`, which stays at `keep`, or goes when the block ends where that is None.

    Args:
        keep: where it shall stand, or stands from before: a bundle of this shape is used again.
        told: called as bytes are written.

    Raises:
        BundleError: something else stands at `keep`, or the disk is too small.
        DeviceError: the memory is too small to run it.
    """
    check_memory(shape)
    if keep is not None:
        yield kept_bundle(shape, keep.absolute(), told)
        return
    cache = Path.home() / ".cache" / "rexthinker-edge"  # not /tmp, which may be memory
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"random-{shape}-", dir=cache) as place:
        yield kept_bundle(shape, Path(place) / f"random-{shape}", told)


def kept_bundle(shape: str, place: Path, told: Told) -> Bundle:
    """The bundle at `place`, built where there is none; see `random_bundle`."""
    if (place / manifests.MANIFEST).is_file():
        opened = open_bundle(place)
        if opened.manifest.name != bundle_name(shape):
            raise BundleError(
                f"{place.name}: holds the bundle {opened.manifest.name!r}, {bundle_name(shape)!r} or nothing "
                "is needed there. Name another directory."
            )
        return opened
    check_disk(shape, place)
    with staged(place) as partial:
        fill(shape, partial, told)
    return open_bundle(place)


def is_random(manifest: Manifest) -> bool:
    """Whether a bundle was built here: its answers mean nothing."""
    return manifest.model.source == "random numbers"


def bundle_name(shape: str) -> str:
    """What the manifest calls it."""
    return f"random-{shape}"


def bundle_bytes(shape: str) -> int:
    """What a bundle's large files take."""
    return sum(read_blueprint(name).bytes for name in _parts(shape))


def check_memory(shape: str) -> None:
    """DeviceError where the machine has less memory to spare than the bundle needs to run."""
    from rexthinker_edge.commands.machine_checks import available_bytes  # noqa: PLC0415

    needed, available = bundle_bytes(shape) + BESIDE_BYTES, available_bytes()
    if available is not None and available < needed:
        raise DeviceError(
            f"--shape {shape}: {available / 1e9:.1f} GB of memory are free, about {needed / 1e9:.1f} GB are "
            "needed to run it. Close other programs, or measure a smaller shape."
        )


def check_disk(shape: str, place: Path) -> None:
    """BundleError where the disk of `place` has less room than the bundle takes."""
    parent = next(folder for folder in place.parents if folder.exists())
    needed, free = bundle_bytes(shape) * 102 // 100, shutil.disk_usage(parent).free
    if free < needed:
        raise BundleError(
            f"--shape {shape}: {free / 1e9:.1f} GB free in {parent}, {needed / 1e9:.1f} GB are needed. Free "
            "some, or name a directory on another disk with --keep."
        )


def _parts(shape: str) -> list[str]:
    detector = DETECTORS[shape]
    return [shape] if detector is None else [shape, detector]


def fill(shape: str, place: Path, told: Told) -> Manifest:
    """Write every file of a bundle into the empty directory `place`."""
    plans = [read_blueprint(name, place) for name in _parts(shape)]
    small = open_bundle(small_bundle())
    borrowed = [manifests.TOKENIZER, manifests.DETECTOR_TOKENIZER]
    if DETECTORS[shape] is None:
        borrowed += [name for name in small.manifest.files if name.startswith("detector") and "onnx" in name]
    for name in borrowed:
        shutil.copyfile(small.file(name), place / name)
    total, done, known = sum(plan.bytes for plan in plans), 0, dict[str, FileEntry]()
    told(0, total)
    numbers = Numbers(seed=0)
    for plan in plans:
        for name, spots in plan.files.items():

            def so_far(written: int, before: int = done) -> None:
                told(before + written, total)

            known[name] = _write(place / name, spots, numbers, so_far)
            done += known[name].bytes
    return seal(place, _manifest(shape, plans, small.manifest), known)


def _write(path: Path, spots: tuple[Spot, ...], numbers: "Numbers", told: Callable[[int], None]) -> FileEntry:
    """One file of weights, hashed and flushed."""
    digest, place = hashlib.sha256(), 0
    with path.open("wb") as stream:
        for spot in spots:
            for piece in (bytes(spot.offset - place), *numbers.of(spot)):
                digest.update(piece)
                stream.write(piece)
            place = spot.offset + spot.bytes
            told(place)
        assert stream.tell() == place, (path.name, stream.tell(), place)
    flush(path)
    return FileEntry(place, digest.hexdigest())


def _manifest(shape: str, plans: list[Blueprint], small: Manifest) -> Manifest:
    language, detector = plans[0], plans[-1].detector
    assert language.decoder is not None
    assert language.vision is not None
    quantisation = dict(small.quantisation)
    for plan in plans:
        quantisation |= plan.quantisation
    prompt = replace(
        small.prompt, min_pixels=language.min_pixels, max_pixels=language.max_pixels,
        max_new_tokens=ANSWER_TOKENS,
    )  # fmt: skip
    card = ModelCard(bundle_name(shape), "random numbers", f"shape {shape}", "Apache-2.0", "")
    return Manifest(
        format_version=FORMAT_VERSION, name=bundle_name(shape), model=card,
        prompt=prompt, tokens=small.tokens,
        vision=language.vision, decoder=language.decoder,
        detector=replace(detector or small.detector, box_threshold=NEVER_FOUND), files={},
        quantisation=quantisation, calibration=None, targets=("cpu",), golden=(),
    )  # fmt: skip


class Numbers:
    """Random numbers for tensors: a few blocks, read over and over, from another place for each tensor."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._bytes = rng.integers(0, 256, BLOCK_BYTES, np.uint8)
        self._seven = rng.integers(-63, 64, BLOCK_BYTES, np.int8)
        self._normal = rng.standard_normal(BLOCK_BYTES // 4, np.float32)

    def of(self, spot: Spot) -> Iterator[bytes]:
        """The bytes of one tensor, in pieces."""
        count = math.prod(spot.shape)
        if spot.kind in (Kind.COS, Kind.SIN):
            copies = int(spot.middle)
            dim = 2 * spot.shape[1] // copies
            table = rotary_table(spot.spread, dim, spot.shape[0], copies)[spot.kind is Kind.SIN]
            assert table.shape == spot.shape, (table.shape, spot)
            yield table.tobytes()
            return
        block = {Kind.BYTES: self._bytes, Kind.SEVEN_BITS: self._seven}.get(spot.kind, self._normal)
        start = int.from_bytes(hashlib.sha256(spot.name.encode()).digest()[:4], "little") % len(block)
        while count:
            piece = block[start : start + count]
            yield self._told(spot, piece)
            start, count = 0, count - len(piece)

    @staticmethod
    def _told(spot: Spot, piece: NDArray[Any]) -> bytes:
        """Random numbers as this tensor wants them."""
        if spot.kind in (Kind.BYTES, Kind.SEVEN_BITS):
            return piece.tobytes()
        if spot.kind is Kind.CONSTANT:
            return bytes([int(spot.middle)]) * len(piece)
        if spot.kind is Kind.SCALES:
            values = np.float32(spot.spread) * (1 + np.float32(0.05) * np.clip(piece, -3, 3))
        else:
            values = np.float32(spot.middle) + np.float32(spot.spread) * piece
        stored = from_float32(values) if spot.dtype == "bfloat16" else values
        return stored.tobytes()
