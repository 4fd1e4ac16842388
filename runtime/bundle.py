"""A bundle: one flat directory that is complete in itself and safe to load.

Layout    `manifest.json` (format 1, at most 1 MB) and exactly the regular files it lists, by plain name.
          No sub-directories, no links; nothing else is read.
Contract  `open_bundle` refuses an unknown key, a missing or extra file, a wrong size, a newer format and any
          name that could leave the directory; it checks the SHA-256 of files up to 1 MB, or of all.
          A bundle is filled beside its place and renamed into it: a crash leaves the old one or the new one.
Elsewhere the manifest: manifest.py; reading and checking it: manifest_file.py; what was measured put into
          it: measured_cards.py; what is in the graphs: vision.py, decoder.py, detector.py; filling: export/.
Source    docs/bundle.md
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rexthinker_edge.runtime.manifest import MANIFEST, FileEntry, Manifest
from rexthinker_edge.runtime.manifest_file import check_cards, check_manifest, digest, read_manifest, refuse
from rexthinker_edge.runtime.strict_json import StrictJsonError, to_dataclass, to_json

ALWAYS_HASHED_BYTES = 1_000_000


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
    value = read_manifest(path)
    try:
        manifest = to_dataclass(Manifest, value)
    except StrictJsonError as error:
        refuse(
            path / MANIFEST, f"{error}", "It was edited or made by another version: export the bundle again."
        )
    check_manifest(manifest, path)
    check_cards(manifest, value, path)
    _check_directory(manifest, path)
    for name, entry in manifest.files.items():
        _check_file(path / name, entry, hashes)
    return Bundle(path, manifest, digest(value))


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
        refuse(
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
    check_manifest(sealed, directory)
    text = json.dumps(to_json(sealed), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    flush(directory / MANIFEST)
    return sealed


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_directory(manifest: Manifest, path: Path) -> None:
    present = {item.name for item in path.iterdir()} - {MANIFEST}
    for name in sorted(set(manifest.files) - present):
        refuse(path / name, "missing, the manifest lists it", "Copy the bundle again.")
    for name in sorted(present - set(manifest.files)):
        refuse(path / name, "not in the manifest, nothing else may stand in a bundle", "Move it elsewhere.")


def _check_file(file: Path, entry: FileEntry, hashes: bool) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        refuse(
            file,
            "a link, directory or device, a regular file is needed",
            "Copy the bundle with its files, not links.",
        )
    if status.st_size != entry.bytes:
        seen = f"{status.st_size:,} bytes, the manifest says {entry.bytes:,}"
        refuse(file, seen, "The copy was cut short or altered: copy the bundle again.")
    if (hashes or entry.bytes <= ALWAYS_HASHED_BYTES) and (seen := file_sha256(file)) != entry.sha256:
        seen = f"SHA-256 {seen[:12]}…, the manifest says {entry.sha256[:12]}…"
        refuse(file, seen, "The file was altered: copy the bundle again.")


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
