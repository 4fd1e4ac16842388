"""Finds a checkpoint: a directory, or a Hugging Face hub id whose needed files are downloaded.

Layout    A hub id is OWNER/NAME or OWNER/NAME@REVISION. Files land in CACHE/OWNER--NAME/COMMIT/, a file under
          way is NAME.incomplete.
Contract  Only files that the export reads are fetched, never a pickle or a program, and nothing fetched is
          executed. Every file is compared with the hash the hub states (SHA-256, or git's for small files)
          before it gets its name. A broken download goes on at the byte where it stopped, in a later process
          too: huggingface_hub's own begins again, so only its addresses, tokens and retries are used here.
Elsewhere reading what was fetched: checkpoint.py, detector_graph.py.
Source    docs/full-size.md#hub
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.runtime.errors import CheckpointError, MissingExtraError

LANGUAGE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "rexthinker.json")
DETECTOR_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
PIECE_BYTES = 1 << 20
Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `sha256` where the hub states it, else git's blob id."""

    name: str
    bytes: int
    sha256: str | None
    blob: str | None


def locate(
    reference: str, wanted: tuple[str, ...], progress: Progress | None = None, cache: Path | None = None
) -> Path:
    """The directory of a checkpoint.

    Args:
        reference: a directory, or a hub id with or without @revision.
        wanted: small files to fetch beside the safetensors, those that the repository has.
        cache: where downloads are kept; None: ~/.cache/rexthinker-edge/checkpoints.

    Raises:
        CheckpointError: neither a directory nor a hub id, no network, or a file differs from its hash.
        MissingExtraError: a hub id without huggingface_hub.
    """
    if Path(reference).is_dir():
        return Path(reference)
    match = HUB_ID.fullmatch(reference)
    if match is None or Path(reference).exists():
        raise CheckpointError(
            f"{reference}: neither a directory nor a hub id such as IDEA-Research/grounding-dino-tiny. "
            "Give the directory of a Hugging Face checkpoint, or OWNER/NAME."
        )
    owner, name, revision = match.groups()
    root = cache or Path.home() / ".cache" / "rexthinker-edge" / "checkpoints"
    return _download(f"{owner}/{name}", revision, wanted, root / f"{owner}--{name}", progress)


def _download(
    repository: str, revision: str | None, wanted: tuple[str, ...], root: Path, progress: Progress | None
) -> Path:
    """Fetch what is needed into root/COMMIT; files that are there already are kept."""
    commit, files = _listing(repository, revision, root)
    directory = root / commit
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*wanted, INDEX):
        if name in files:
            fetch(repository, commit, files[name], directory, progress)
    for name in _weight_files(repository, directory, files):
        fetch(repository, commit, files[name], directory, progress)
    return directory


def _weight_files(repository: str, directory: Path, files: dict[str, RemoteFile]) -> list[str]:
    """The safetensors to fetch: the index's shards, else the single file."""
    if INDEX not in files:
        if SINGLE in files:
            return [SINGLE]
        pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
        first = f"only {pickles[0]!r}, a pickle, which can run code when read" if pickles else ""
        raise CheckpointError(
            f"{repository}: {first or 'no weights'}; needed {SINGLE} or {INDEX}. Ask its owner for "
            "safetensors, or convert it "
            "with transformers' save_pretrained."
        )
    try:
        shards = sorted(set(json.loads((directory / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{repository}/{INDEX}: {error}; needed {{'weight_map': {{name: file}}}}. Name another revision."
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or shard not in files or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{repository}: the index names {shard!r}, which is no safetensors file of the repository. "
                "Name another revision."
            )
    return shards


def _listing(repository: str, revision: str | None, root: Path) -> tuple[str, dict[str, RemoteFile]]:
    """Commit and files of a repository, as the hub states them; nothing below its top folder."""
    hub = _hub()
    try:
        info = hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except _broken(hub) as error:
        raise _offline(repository, revision, root, error) from error
    files = {}
    for sibling in info.siblings or ():
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*", sibling.rfilename) and sibling.size is not None:
            sha256 = None if sibling.lfs is None else sibling.lfs.sha256
            files[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size, sha256, sibling.blob_id)
    return str(info.sha), files


def fetch(
    repository: str, commit: str, file: RemoteFile, directory: Path, progress: Progress | None = None
) -> Path:
    """One file, whole and as hashed, in `directory`.

    Raises:
        CheckpointError: the connection broke (what came is kept), or the bytes are not those the hub states.
    """
    path, partial = directory / file.name, directory / f"{file.name}.incomplete"
    if path.is_file() and path.stat().st_size == file.bytes:
        return path
    hub = _hub()
    have = partial.stat().st_size if partial.is_file() else 0
    if have > file.bytes:
        partial.unlink()
        have = 0
    try:
        if have < file.bytes:
            _receive(hub, repository, commit, file, partial, have, progress)
    except _broken(hub) as error:
        raise _offline(repository, commit, directory.parent, error) from error
    partial.touch()
    if not _matches(partial, file):
        seen = partial.stat().st_size
        partial.unlink()
        raise CheckpointError(
            f"{repository}/{file.name}: the {seen:,} bytes that came do not have the hash the hub states. "
            "They were removed: run the command again."
        )
    partial.replace(path)
    return path


def _receive(
    hub: Any, repository: str, commit: str, file: RemoteFile, partial: Path, have: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    """Append the rest of a file to `partial`."""
    headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    url = hub.hf_hub_url(repository, file.name, revision=commit)
    with hub.utils.http_stream_backoff("GET", url, headers=headers, follow_redirects=True) as answer:
        answer.raise_for_status()
        going_on = have > 0 and answer.status_code == 206
        done = have if going_on else 0
        with partial.open("ab" if going_on else "wb") as stream:
            for piece in answer.iter_bytes(PIECE_BYTES):
                stream.write(piece)
                done += len(piece)
                if done > file.bytes:
                    raise ValueError(f"{done:,} bytes came, the hub states {file.bytes:,}")
                if progress is not None:
                    progress(f"downloading {file.name}", done, file.bytes)
    if done < file.bytes:
        raise ValueError(f"the connection ended after {done:,} of {file.bytes:,} bytes of {file.name}")


def _matches(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and the hash the hub states; one stated without any hash does not."""
    if path.stat().st_size != file.bytes:
        return False
    if file.sha256 is not None:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    made = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    for piece in _pieces(path):
        made.update(piece)
    return made.hexdigest() == file.blob


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _offline(repository: str, revision: str | None, root: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:160]
    place = f"https://huggingface.co/{repository}/tree/{revision or 'main'}"
    return CheckpointError(
        f"{repository}: cannot be downloaded ({reason}); needed a way to the hub, or a copy. What came "
        f"so far is kept in {root}. Where there is a network, copy config.json, tokenizer.json, "
        f"generation_config.json or preprocessor_config.json, and every *.safetensors* file of {place} "
        "into one directory, and give that directory instead of the hub id."
    )


def _broken(hub: Any) -> tuple[type[Exception], ...]:
    """What the library raises where a host cannot be reached, refuses, or breaks off.

    `HTTPError` is that of the HTTP library below it, whichever it is (httpx2 in huggingface_hub 2); its
    errors of connection derive from nothing else.
    """
    return hub.errors.HTTPError, hub.errors.HfHubHTTPError, OSError, RuntimeError, ValueError


def _hub() -> Any:
    try:
        import huggingface_hub  # noqa: PLC0415
        import huggingface_hub.errors  # noqa: PLC0415
        import huggingface_hub.utils  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "hub ids: huggingface_hub is not installed. Run `pip install 'rexthinker-edge[export]'`, or give "
            "a directory."
        ) from error
    return huggingface_hub
