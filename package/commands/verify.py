"""`rexthinker-edge verify`: whether a bundle is intact, every byte of it.

Elsewhere what is checked: runtime/bundle.py; what a bundle is: info.py.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

PIECE_BYTES = 1 << 22


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(bundle: Path | None, as_json: bool) -> int:
    """Compare every file of BUNDLE with its manifest; without it, of the small one that is built in.

    Exit code 1, and the first difference on stderr, when it is not intact.
    """
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415

    opened = open_bundle(small_bundle() if bundle is None else bundle)
    files = opened.manifest.files
    size = sum(entry.bytes for entry in files.values())
    with _bar(size) as told:
        for name, entry in files.items():
            _compare(opened.path / name, entry.sha256, told)
    if as_json:
        value = {
            "intact": True,
            "path": str(opened.path),
            "digest": opened.digest,
            "files": len(files),
            "bytes": size,
        }
        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        click.echo(f"intact: {opened.path}, {len(files)} files, {size:,} bytes, digest {opened.digest}")
    return 0


def _compare(path: Path, wanted: str, told: Callable[[int], None]) -> None:
    """Hash one file in pieces; BundleError when it is another one than the manifest means."""
    from rexthinker_edge.runtime.errors import BundleError  # noqa: PLC0415

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
            told(len(piece))
    if (seen := digest.hexdigest()) != wanted:
        raise BundleError(
            f"{path.parent.name}/{path.name}: SHA-256 {seen[:12]}…, the manifest says {wanted[:12]}…. "
            "The file was altered: copy the bundle again."
        )


@contextmanager
def _bar(size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes on standard error, where that is a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = ("reading every file", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading", total=size)
        yield lambda count: bar.advance(task, count)
