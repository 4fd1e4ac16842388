"""`rexthinker-edge info`: what a bundle is, from its manifest.

Elsewhere whether it is intact: verify.py; the manifest: runtime/manifest.py.
"""

import json
from pathlib import Path
from typing import Any

import click

UNMEASURED = "not measured: `evaluate --report FILE`, then `export BUNDLE --quality FILE`"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and its digest as one JSON object.")
def info(bundle: Path | None, as_json: bool) -> int:
    """Say what BUNDLE is; without it, the small one that is built in."""
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.strict_json import to_json  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415

    opened = open_bundle(small_bundle() if bundle is None else bundle)
    manifest, shape = opened.manifest, opened.manifest.decoder
    if as_json:
        value = {"path": str(opened.path), "digest": opened.digest, "manifest": to_json(manifest)}
        click.echo(json.dumps(value, ensure_ascii=False))
        return 0
    size = sum(entry.bytes for entry in manifest.files.values())
    rows = {
        "name": manifest.name,
        "path": str(opened.path),
        "digest": opened.digest,
        "model": f"{manifest.model.name} ({manifest.model.source}, {manifest.model.revision})",
        "licence": manifest.model.licence,
        "notice": _first_line(manifest.model.notice),
        "precision": ", ".join(f"{part} {recipe}" for part, recipe in manifest.quantisation.items()),
        "calibration": _calibration(manifest.calibration),
        "drafts": _drafts(manifest),
        "decoder": f"{shape.layers} layers of {shape.hidden}, {shape.max_length:,} tokens",
        "pictures": f"{manifest.prompt.min_pixels:,} to {manifest.prompt.max_pixels:,} pixels",
        "targets": ", ".join(manifest.targets),
        "self-tests": str(len(manifest.golden)),
        "files": f"{len(manifest.files)}, {size / 1e6:,.1f} MB",
    }
    for name, text in rows.items():
        click.echo(f"{name:<11} {text}")
    for place, text in enumerate([card.describe() for card in manifest.quality] or [UNMEASURED]):
        click.echo(f"{'quality' if place == 0 else '':<11} {text}")
    return 0


def _drafts(manifest: Any) -> str:
    """What the draft table was learnt from."""
    if "draft.bin" not in manifest.files:
        return "no table: from the prompt, the template and earlier answers only"
    card = manifest.drafts
    if card is None:
        return "a table of unknown source, made by an older version"
    return f"{card.traces:,} traces of {card.source}, {card.states:,} states"


def _calibration(card: Any) -> str:
    """Where the samples came from, how many, and how to make them again."""
    if card is None:
        return "none"
    domains = ", ".join(f"{name} {count}" for name, count in sorted(card.domains.items()))
    told = f"{card.source}, {card.items} items, seed {card.seed}" + (f" ({domains})" if domains else "")
    return told + (f"; {card.left_out} records could not be used" if card.left_out else "")


def _first_line(notice: str) -> str:
    """A notice may be a whole licence: its beginning, and where the rest is."""
    lines = [line.strip() for line in notice.splitlines() if line.strip()]
    more = f" … ({len(lines) - 1} more lines: --json)" if len(lines) > 1 else ""
    return (lines[0] if lines else "none") + more
