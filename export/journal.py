"""Which parts of an export are finished, so that an interrupted one goes on where it stopped.

Layout    `.NAME.work/journal.json` beside the bundle NAME: {fingerprint, parts: {part: {depends, value,
          files}}}, where files gives every file's size and SHA-256; `lock` beside it is held while an export
          runs.
Contract  A part is entered after its files are on disk and hashed, in one rename: a journal never promises
          what is not there. A part is made again where its files differ from their entry, or the options
          that it depends on have changed. A journal is used only where its fingerprint (program version,
          source files) is the same in every point.
Elsewhere the parts: parts.py; the directory they fill: runtime/bundle.py.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rexthinker_edge.runtime.bundle import file_sha256, flush
from rexthinker_edge.runtime.errors import BundleError, OptionError
from rexthinker_edge.runtime.manifest import FileEntry
from rexthinker_edge.runtime.strict_json import StrictJsonError, parse, to_dataclass, to_json

JOURNAL = "journal.json"
LOCK = "lock"
HASHED_BYTES = 16_000_000  # source files up to here are hashed whole, larger ones by their header
T = TypeVar("T")


@dataclass(frozen=True)
class PartEntry:
    """A finished part: the options it was made with, what it returned, as JSON, and its files."""

    depends: dict[str, Any]
    value: dict[str, Any]
    files: dict[str, FileEntry]


class Journal:
    """The finished parts of one export; every change is on disk before the call returns."""

    def __init__(self, work: Path, staging: Path, fingerprint: Mapping[str, Any], resume: bool) -> None:
        """Begin afresh, or go on.

        Args:
            work: the journal's own directory, made when missing.
            staging: where the parts' files lie.
            fingerprint: plain JSON values that every part depends on.
            resume: keep the parts that an earlier run finished; without one there is nothing to keep.

        Raises:
            OptionError: `resume`, and the earlier run read other files or left no readable journal.
        """
        self.work, self.staging = work, staging
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.parts: dict[str, PartEntry] = {}
        work.mkdir(parents=True, exist_ok=True)
        if resume and (work / JOURNAL).is_file():
            self.parts = self._read()
        self._write()

    def part(
        self, name: str, kind: type[T], owns: tuple[str, ...], depends: Mapping[str, Any],
        make: Callable[[], T],
    ) -> T:  # fmt: skip
        """What `make` returns, from the journal where the part is finished and its files are intact.

        Args:
            kind: the dataclass it returns.
            owns: the part's files begin with one of these; leftovers are removed before `make`.
            depends: the options that decide the part, plain JSON values.
        """
        wanted = json.loads(json.dumps(depends))
        entry = self.parts.get(name)
        if entry is not None and entry.depends == wanted and self._intact(entry):
            return to_dataclass(kind, entry.value)
        self.parts.pop(name, None)
        for file in self._files(owns):
            file.unlink()
        made = make()
        files = {}
        for file in self._files(owns):
            flush(file)
            files[file.name] = FileEntry(file.stat().st_size, file_sha256(file))
        flush(self.staging)
        self.parts[name] = PartEntry(wanted, to_json(made), files)
        self._write()
        return made

    def keep_only_finished(self) -> None:
        """Remove what an interrupted run left in the staging directory beside its finished parts."""
        known = self.entries()
        for item in self.staging.iterdir():
            if item.name not in known:
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()

    def entries(self) -> dict[str, FileEntry]:
        """Sizes and hashes of all files of all finished parts."""
        return {name: entry for part in self.parts.values() for name, entry in part.files.items()}

    def _files(self, owns: tuple[str, ...]) -> list[Path]:
        return sorted(item for item in self.staging.iterdir() if item.name.startswith(owns))

    def _intact(self, entry: PartEntry) -> bool:
        for name, file in entry.files.items():
            path = self.staging / name
            if not path.is_file() or path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
                return False
        return True

    def _read(self) -> dict[str, PartEntry]:
        path = self.work / JOURNAL
        afresh = "Start afresh: leave --resume out."
        try:
            value = parse(path.read_text("utf-8"))
            before = value["fingerprint"]
            parts = {
                name: PartEntry(
                    part["depends"],
                    part["value"],
                    {file: to_dataclass(FileEntry, entry) for file, entry in part["files"].items()},
                )
                for name, part in value["parts"].items()
            }
        except (OSError, StrictJsonError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"--resume: {path} is no journal of an export ({error}). {afresh}") from error
        if before != self.fingerprint:
            raise OptionError(
                f"--resume: the interrupted export had {difference(before, self.fingerprint)}; the same "
                f"program and unchanged checkpoints are needed. {afresh}"
            )
        return parts

    def _write(self) -> None:
        value = {
            "fingerprint": self.fingerprint,
            "parts": {name: to_json(entry) for name, entry in self.parts.items()},
        }
        fresh = self.work / (JOURNAL + ".new")
        fresh.write_text(json.dumps(value, indent=1), "utf-8")
        flush(fresh)
        fresh.replace(self.work / JOURNAL)
        flush(self.work)


def has_parts(work: Path) -> bool:
    """Whether the journal there has a finished part."""
    try:
        return bool(json.loads((work / JOURNAL).read_text("utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def difference(before: object, now: object, where: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                inner = f"{where}.{key}" if where else str(key)
                return difference(before.get(key), now.get(key), inner)
    return f"{where or 'a fingerprint'} {before!r}, now it is {now!r}"


def source_fingerprint(directory: Path) -> dict[str, list[Any]]:
    """Size, time of change and a hash of every file of a checkpoint; large safetensors by their header."""
    found = {}
    for path in sorted(item for item in directory.iterdir() if item.is_file()):
        status = path.stat()
        if status.st_size <= HASHED_BYTES:
            digest = file_sha256(path)
        else:
            with path.open("rb") as stream:
                head = stream.read(8)
                length = min(struct.unpack("<Q", head)[0], HASHED_BYTES)
                digest = hashlib.sha256(head + stream.read(length)).hexdigest()
        found[path.name] = [status.st_size, status.st_mtime_ns, digest]
    return found


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Hold the work directory for this process; the system lets go when the process ends, however it ends.

    Raises:
        BundleError: another export to the same place is running.
    """
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            raise BundleError(
                f"{work}: another export to the same place is running, one at a time is needed. Wait for "
                "it, or name another --out."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file without waiting; OSError when another process holds it."""
    try:
        import fcntl  # noqa: PLC0415
    except ImportError:  # Windows has no such call: there two exports to one place are not noticed
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
