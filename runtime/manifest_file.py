"""`manifest.json` read, checked and named by its digest, before anything else of a bundle is believed.

Contract  At most 1 MB of strict JSON of format 1. No file name leaves the directory, no number asks for more
          than any model needs, and a card of what was measured belongs to this very bundle.
          A digest is over canonical JSON; those of cards leave out the cards, so that adding one keeps them.
Elsewhere what it says: manifest.py; the numbers' limits: manifest_limits.py; the files: bundle.py.
Source    docs/bundle.md
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NoReturn

from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.manifest import DETECTOR_TEXT, FORMAT_VERSION, MANIFEST, REQUIRED, Manifest
from rexthinker_edge.runtime.manifest_limits import unfit_number
from rexthinker_edge.runtime.quality import unfit_quality
from rexthinker_edge.runtime.risk import unfit_card
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse

MAX_MANIFEST_BYTES = 1_000_000

MEASURED: dict[str, Any] = {"risk": None, "quality": []}  # cards about a bundle, and what stands without

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_manifest(path: Path) -> dict[str, Any]:
    """The parsed manifest of a bundle's directory, of a format this program reads; its keys are not checked.

    Raises:
        BundleError: there is none, it is too large, no JSON, or of another format.
    """
    file = path / MANIFEST
    if not path.is_dir():
        refuse(
            path,
            "no such directory, a bundle is needed",
            "Check the path, or make one with `rexthinker-edge export`.",
        )
    if not file.is_file() or file.is_symlink():
        refuse(file, "missing, a bundle has one", "Name the bundle's own directory, or copy it again.")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        size = f"{file.stat().st_size:,} bytes, at most {MAX_MANIFEST_BYTES:,} are allowed"
        refuse(file, size, "This is no manifest: copy the bundle again.")
    try:
        value = parse(file.read_text(encoding="utf-8"))
    except (StrictJsonError, UnicodeDecodeError) as error:
        refuse(file, f"{error}", "It was altered: copy the bundle again.")
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        newer = f"format version {version}, this program reads up to {FORMAT_VERSION}"
        refuse(file, newer, "Update it: pip install -U rexthinker-edge.")
    if version != FORMAT_VERSION:
        refuse(file, f"format version {version!r}, {FORMAT_VERSION} is needed", "Export the bundle again.")
    assert isinstance(value, dict)
    return value


def check_manifest(manifest: Manifest, path: Path) -> None:
    """BundleError where a name could lead out of the bundle at `path`, or a number ask for too much."""
    file = path / MANIFEST
    for name, entry in manifest.files.items():
        if not _PLAIN_NAME.fullmatch(name) or _DEVICE_NAME.fullmatch(name) or name.endswith("."):
            refuse(
                file,
                f"file name {name!r}, a plain name inside the bundle is needed",
                "Do not use this bundle.",
            )
        if name.lower() == MANIFEST or entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            refuse(file, f"the entry of {name} is not a size and a SHA-256", "Export the bundle again.")
    if len({name.lower() for name in manifest.files}) != len(manifest.files):
        refuse(file, "two file names differ only in case", "Export the bundle again.")
    pictures = [golden.picture for golden in manifest.golden]
    text = [] if manifest.detector.tables is None else [DETECTOR_TEXT]
    for name in [*REQUIRED, *text, *pictures]:
        if name not in manifest.files:
            refuse(file, f"lists no file {name}, every bundle has one", "Export the bundle again.")
    prompt = manifest.prompt
    if not 0 < prompt.min_pixels <= prompt.max_pixels or prompt.max_new_tokens < 1:
        refuse(file, "pixel or token limits are not positive and in order", "Export the bundle again.")
    if not manifest.tokens.eos:
        refuse(file, "tokens.eos is empty, one end token or more is needed", "Export the bundle again.")
    _check_numbers(manifest, file)


def check_cards(manifest: Manifest, value: dict[str, Any], path: Path) -> None:
    """BundleError where a card of what was measured contradicts itself or belongs to another bundle.

    Args:
        value: the manifest as it was read; cards are bound to what it says beside them.
    """
    bare = bare_digest(value)
    if manifest.risk is not None and (problem := unfit_card(manifest.risk, bare)) is not None:
        remedy = "Calibrate this bundle again, or remove the key risk: without it max_risk is refused."
        refuse(path / MANIFEST, problem, remedy)
    if (problem := unfit_quality(manifest.quality, bare)) is not None:
        refuse(path / MANIFEST, problem, "Measure this bundle again, or remove the key quality.")


def _check_numbers(manifest: Manifest, file: Path) -> None:
    parts = {"prompt": manifest.prompt, "vision": manifest.vision, "decoder": manifest.decoder}
    for where, part in (*parts.items(), ("detector", manifest.detector)):
        if (problem := unfit_number(part, where)) is not None:
            refuse(file, problem, "It was edited: copy or export the bundle again.")
    for token in (manifest.tokens.image_pad, *manifest.tokens.eos):
        if not 0 <= token < manifest.decoder.vocab:
            seen = f"token {token} with a vocabulary of {manifest.decoder.vocab:,}"
            refuse(file, seen, "It was edited: copy or export the bundle again.")


def digest(value: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON: keys sorted, no spaces, ASCII."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def bare_digest(value: dict[str, Any]) -> str:
    """The digest but for what was measured of the bundle: what cards are bound to."""
    return digest({key: item for key, item in value.items() if key not in MEASURED})


def known_digests(value: dict[str, Any]) -> list[str]:
    """Every digest the bundle has or had: with its cards, without one of them or any, in old form and new."""
    bare = {key: item for key, item in value.items() if key not in MEASURED}
    forms = [
        [{}, {key: empty}, *([{key: value[key]}] if key in value else [])] for key, empty in MEASURED.items()
    ]
    return [digest(bare | first | second) for first in forms[0] for second in forms[1]]


def refuse(thing: Path, seen: str, remedy: str) -> NoReturn:
    """Raise the BundleError about one thing of a bundle, named with the directory it stands in."""
    raise BundleError(f"{thing.parent.name}/{thing.name}: {seen}. {remedy}")
