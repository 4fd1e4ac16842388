"""`rexthinker-edge verify`: whether a bundle is intact, every byte of it.

Elsewhere what is checked: runtime/bundle.py; what a bundle is: info.py.
"""

import json
from pathlib import Path

import click

from rexthinker_edge.progress import phase


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(bundle: Path | None, as_json: bool) -> int:
    """Compare every file of BUNDLE with its manifest; without it, of the small one that is built in.

    Exit code 1, and the first difference on stderr, when it is not intact.
    """
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415

    with phase("reading every file"):
        opened = open_bundle(small_bundle() if bundle is None else bundle, hashes=True)
    files = opened.manifest.files
    size = sum(entry.bytes for entry in files.values())
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
