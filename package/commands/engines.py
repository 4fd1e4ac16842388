"""The part of `rexthinker-edge export` that builds TensorRT engines of a bundle.

Contract  A bundle stays as it is: engines lie beside it. One JSON object about them goes to standard output.
Elsewhere the options: export.py; building: export/tensorrt.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

REPORT_SCHEMA = "rexthinker-edge/engines/1"


def is_bundle(path: str) -> bool:
    """Whether an argument names a bundle and not a checkpoint."""
    return (Path(path) / "manifest.json").is_file()


def export_engines(
    bundle: Path,
    precision: str,
    version_compatible: bool,
    workspace: int | None,
    progress: Callable[..., Any],
) -> None:
    """Build the engines of a bundle and print what was built.

    Args:
        progress: runs a function that takes a reporting function, under a progress bar.
    """
    from rexthinker_edge.export.tensorrt import EngineOptions, build_engines  # noqa: PLC0415
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.engine_card import engines_directory  # noqa: PLC0415
    from rexthinker_edge.runtime.strict_json import to_json  # noqa: PLC0415

    opened = open_bundle(bundle)
    options = EngineOptions(precision, version_compatible, workspace)
    cards = progress(lambda report: build_engines(opened, options, report))
    value = {
        "schema": REPORT_SCHEMA,
        "directory": str(engines_directory(opened.path)),
        "engines": [to_json(card) for card in cards],
    }
    click.echo(json.dumps(value))


def check_engines(bundle: Path, precision: str) -> None:
    """The dry run: lower both graphs, hold them against TensorRT's list, print sizes; nothing is written."""
    from rexthinker_edge.export.tensorrt import PARTS, prepare  # noqa: PLC0415
    from rexthinker_edge.export.tensorrt_support import PARSER_VERSION  # noqa: PLC0415
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415

    opened = open_bundle(bundle)
    for part in PARTS:
        graph, profiles = prepare(opened, part, precision)
        size = sum(weight.bytes for weight in graph.weights.values())
        click.echo(
            f"{part.graph}: {len(graph.nodes_list)} standard operators, all on the list of {PARSER_VERSION}; "
            f"{size / 1e6:,.1f} MB of weights; profiles: {', '.join(profile.name for profile in profiles)}"
        )
