"""A scene on disk: one file with the picture, its candidates and the computed prefix.

Layout    8 bytes `REXSCENE`, the header's length as little-endian uint32, the header (JSON, schema `Header`),
          the pixels (height, width, 3) uint8, the rows (2 * layers, kv_heads, tokens, head_dim) float32
          little-endian. Nothing before, between or behind. No candidates: no rows.
Contract  Nothing in it is executed, and nothing is believed that can be computed: hints, tokens and keys are
          made anew from picture, category and boxes. What is read is checked first: sizes against the file,
          all three SHA-256, the bundle's digest, every value's range. The rows cannot be checked against the
          picture, so they serve this scene only: looking at the same picture does not find them.
          Written beside its place and renamed into it.
Elsewhere docs/scenes.md describes it; the rows: kv_cache.py; who keeps them: prefix_tree.py.
"""

import hashlib
import json
import math
import os
import stat
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.boxes import check_boxes, to_resized_px
from rexthinker_edge.runtime.errors import BoxError, SceneError, TextError
from rexthinker_edge.runtime.image import MAX_PIXELS, Picture, read_picture
from rexthinker_edge.runtime.kv_cache import Rows
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.prefix_tree import PrefixTree
from rexthinker_edge.runtime.prompt_path import PromptPath
from rexthinker_edge.runtime.qwen_pixels import smart_resize
from rexthinker_edge.runtime.result import BundleInfo, Candidate, Milliseconds
from rexthinker_edge.runtime.sight import Sight
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse, to_dataclass, to_json
from rexthinker_edge.runtime.tokens import check_text

if TYPE_CHECKING:
    from rexthinker_edge.runtime.looking import Looker

MAGIC = b"REXSCENE"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 4_000_000


@dataclass(frozen=True)
class SavedPicture:
    """Of pixels that follow the header."""

    path: str | None
    width: int
    height: int
    sha256: str  # of the pixels' bytes


@dataclass(frozen=True)
class SavedCandidate:
    """One candidate, in pixels of the upright picture."""

    box: tuple[float, float, float, float]
    score: float | None


@dataclass(frozen=True)
class SavedRows:
    """Of rows that follow the pixels."""

    shape: tuple[int, int, int, int]
    sha256: str


@dataclass(frozen=True)
class Header:
    """What stands before the bytes."""

    format_version: int
    bundle: BundleInfo
    picture: SavedPicture
    category: str
    candidates: tuple[SavedCandidate, ...]
    rows: SavedRows
    sha256: str  # of this header with nothing here, as JSON with sorted keys


def save_scene(
    language: Language,
    sight: Sight,
    tree: PrefixTree,
    prompt: PromptPath | None,
    path: str | os.PathLike[str],
) -> None:
    """Write a scene; see `Scene.save`."""
    place = Path(path)
    if sight.late:
        _fail(place, "the deadline cut its looking short, candidates are needed", "Look again, then save.")
    geometry = language.decoder.geometry
    rows = np.zeros((2 * geometry.layers, geometry.kv_heads, 0, geometry.head_dim), np.float32)
    if prompt is not None:
        with tree.lend(prompt.segments, 0) as lent:
            rows = lent.cache.rows(0, prompt.length)
    rows = np.ascontiguousarray(rows, "<f4")
    seen = sight.picture
    header = Header(
        FORMAT_VERSION,
        language.bundle,
        SavedPicture(seen.path, seen.width, seen.height, _sha256(seen.pixels_HWC)),
        sight.category,
        tuple(SavedCandidate(_four(c.box), c.score) for c in sight.candidates),
        SavedRows(_four(rows.shape), _sha256(rows)),
        "",
    )
    header = replace(header, sha256=_own_sha256(header))
    text = json.dumps(to_json(header), ensure_ascii=False, allow_nan=False).encode()
    if len(text) > MAX_HEADER_BYTES:
        _fail(place, f"a header of {len(text):,} bytes, {MAX_HEADER_BYTES:,} are kept", "Keep fewer boxes.")
    _write(place, [MAGIC, len(text).to_bytes(4, "little"), text, seen.pixels_HWC.data, rows.data])


def restore_scene(looker: "Looker", path: Path) -> tuple[Sight, PromptPath | None]:
    """Read a scene; see `Thinker.restore`. Its rows are in the looker's tree then."""
    language = looker.parts.language
    header, picture, rows = _read(path, language)
    candidates = tuple(Candidate(i, list(c.box), c.score) for i, c in enumerate(header.candidates))
    limits = looker.limits
    sides = smart_resize(picture.height, picture.width, limits.min_pixels, limits.max_pixels, limits.factor)
    boxes = np.array([c.box for c in candidates], np.float64).reshape(-1, 4)
    hints = to_resized_px(boxes, picture.size, sides[::-1])
    sight = Sight(picture, header.category, candidates, hints, Milliseconds(), reused=rows.shape[2])
    if not candidates:
        return sight, None
    salt = hashlib.sha256(json.dumps(to_json(header), sort_keys=True).encode()).digest()
    try:
        prompt = looker.path(sight, looker.encoder(picture), salt)
    except BoxError as error:
        _fail(path, f"{error}", "Save the scene again.")
    if prompt.length != rows.shape[2]:
        seen = f"rows of {rows.shape[2]:,} tokens, its prompt has {prompt.length:,}"
        _fail(path, seen, "It was altered: save the scene again.")
    looker.tree.adopt(prompt.segments, rows)
    return sight, prompt


def _read(path: Path, language: Language) -> tuple[Header, Picture, Rows]:
    """Everything in the file, checked."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            _fail(path, "no regular file, one that Scene.save wrote is needed", "Check the path.")
        with path.open("rb") as stream:
            header = _read_header(path, stream, language)
            picture, rows = header.picture, header.rows
            sizes = picture.width * picture.height * 3, math.prod(rows.shape) * 4
            found = status.st_size - stream.tell()
            if found != sum(sizes):
                seen = f"{found:,} bytes behind the header, which announces {sum(sizes):,}"
                _fail(path, seen, "It was cut short or altered: save the scene again.")
            pixels = np.frombuffer(stream.read(sizes[0]), np.uint8)
            values = np.frombuffer(stream.read(sizes[1]), "<f4")
    except OSError as error:
        _fail(path, f"it cannot be read ({error.strerror}), a saved scene is needed", "Check the path.")
    for name, data, told in (("pixels", pixels, picture.sha256), ("rows", values, rows.sha256)):
        if _sha256(data) != told:
            _fail(path, f"the {name} are not those the header names", "It was altered: save it again.")
    if not np.isfinite(values).all():
        _fail(path, "rows that are not finite, numbers are needed", "Do not use this file.")
    read = read_picture(pixels.reshape(picture.height, picture.width, 3))
    whole = Picture(read.pixels_HWC, picture.path, read.sha256, 0.0)
    return header, whole, values.reshape(rows.shape).astype(np.float32, copy=False)


def _read_header(path: Path, stream: BinaryIO, language: Language) -> Header:
    if stream.read(len(MAGIC)) != MAGIC:
        _fail(path, "no saved scene, a file that Scene.save wrote is needed", "Check the path.")
    length = int.from_bytes(stream.read(4), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        seen = f"a header of {length:,} bytes, 1 to {MAX_HEADER_BYTES:,} are allowed"
        _fail(path, seen, "Do not use this file.")
    text = stream.read(length)
    try:
        value = parse(text.decode("utf-8"))
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            seen = f"format version {version!r}, {FORMAT_VERSION} is needed"
            _fail(path, seen, "Save it again with this version.")
        header = to_dataclass(Header, value)
    except (StrictJsonError, UnicodeDecodeError) as error:
        _fail(path, f"{error}", "It was altered: save the scene again.")
    _check_header(path, header, language)
    return header


def _check_header(path: Path, header: Header, language: Language) -> None:
    if header.bundle != language.bundle:
        ours, theirs = (f"{b.name!r} ({b.digest[:12]}…)" for b in (language.bundle, header.bundle))
        _fail(path, f"made by bundle {theirs}, this is {ours}", "Load that bundle, or look again.")
    picture, geometry = header.picture, language.decoder.geometry
    if min(picture.width, picture.height) < 1 or picture.width * picture.height > MAX_PIXELS:
        seen = f"a picture of {picture.width} x {picture.height} px, at most {MAX_PIXELS:,} pixels are read"
        _fail(path, seen, "Do not use this file.")
    tokens = header.rows.shape[2]
    if header.rows.shape != (2 * geometry.layers, geometry.kv_heads, tokens, geometry.head_dim) or not (
        0 < tokens < geometry.max_length if header.candidates else tokens == 0
    ):
        _fail(path, f"rows of shape {header.rows.shape}, which this bundle has not", "Do not use this file.")
    try:
        if check_text("category", header.category) != header.category:
            _fail(path, "a category with outer spaces", "Do not use this file.")
        check_boxes([c.box for c in header.candidates], (picture.width, picture.height))
    except (TextError, BoxError) as error:
        _fail(path, f"{error}".removesuffix("."), "It was altered: save the scene again.")
    if not all(c.score is None or 0 <= c.score <= 1 for c in header.candidates):
        _fail(path, "a score outside 0 to 1", "It was altered: save the scene again.")
    if header.sha256 != _own_sha256(header):
        _fail(path, "its header is not the one that was written", "It was altered: save the scene again.")


def _write(place: Path, parts: list[Any]) -> None:
    """Write beside the place, flush, and rename."""
    partial = None
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.absolute().parent)
        with os.fdopen(descriptor, "wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        Path(partial).replace(place)
        partial = None
    except OSError as error:
        _fail(place, f"it cannot be written ({error.strerror}), a file is needed", "Choose another place.")
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _sha256(array: NDArray[Any]) -> str:
    assert array.dtype.itemsize == 1 or sys.byteorder == "little" or array.dtype.byteorder == "<"
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _own_sha256(header: Header) -> str:
    own = to_json(replace(header, sha256=""))
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _four(values: Any) -> Any:
    one, two, three, four = values
    return one, two, three, four


def _fail(path: Path, seen: str, remedy: str) -> NoReturn:
    raise SceneError(f"{path}: {seen}. {remedy}")
