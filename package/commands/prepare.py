"""`rexthinker-edge prepare`: let this machine pack a bundle's weights once, so that it opens them by mapping.

Contract  The bundle is only read. With --json one object on stdout, schema rexthinker-edge/prepare/1.
Elsewhere the work: runtime/prepared.py; what it wins: docs/full-size.md.
"""

import json
from pathlib import Path
from typing import Any

import click

SCHEMA = "rexthinker-edge/prepare/1"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--remove", is_flag=True, help="Delete what was prepared of it instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prepare(bundle: Path | None, remove: bool, as_json: bool) -> int:
    """Pack the weights of BUNDLE for this machine's CPU; without it, of the small one that is built in.

    What is written lies in ~/.cache/rexthinker-edge/prepared and may be deleted at any time. Run it again
    after an update of onnxruntime or on another machine: until then the bundle is opened as if unprepared.
    """
    from rexthinker_edge.progress import phase  # noqa: PLC0415
    from rexthinker_edge.runtime import prepared  # noqa: PLC0415
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415

    opened = open_bundle(small_bundle() if bundle is None else bundle)
    before = prepared.find(opened)
    value: dict[str, Any] = {"schema": SCHEMA, "bundle": opened.manifest.name, "digest": opened.digest}
    value["directory"] = str(prepared.directory_of(opened))
    value["before"] = None if before is None else list(before.differences)
    if remove:
        value["done"], size = ("removed" if prepared.remove(opened) else "nothing to remove"), 0
    elif before is not None and not before.differences:
        value["done"], size = "already prepared", _bytes(before.directory)
    else:
        with phase(f"packing the weights of {opened.manifest.name}"):
            made = prepared.prepare(opened)
        value["done"], size = ("prepared" if before is None else "prepared again"), _bytes(made.directory)
    value["bytes"] = size
    if as_json:
        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        why = f" ({'; '.join(before.differences)})" if before is not None and before.differences else ""
        click.echo(f"{value['done']}{why}: {value['directory']}, {size:,} bytes")
    return 0


def _bytes(directory: Path) -> int:
    return sum(item.stat().st_size for item in directory.iterdir())
