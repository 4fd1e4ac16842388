"""Compares an opened graph with the geometry its manifest states, before either allocates anything.

Contract  Compared are names, ranks and every side that the runtime relies on; a free dimension fits all.
Elsewhere the geometries: decoder_geometry.py, vision.py; opening: parts.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.vision import VisionGeometry

Shape = tuple[int | None, ...]  # None: any


def check_decoder(session: ort.InferenceSession, geometry: DecoderGeometry, path: Path) -> None:
    """BundleError where `decoder.onnx` has another shape than its manifest says."""
    cache: Shape = (None, geometry.kv_heads, None, geometry.head_dim)
    inputs: dict[str, Shape] = {"embeds": (None, None, geometry.hidden), "positions": (3, None, None)}
    outputs: dict[str, Shape] = {"logits": (None, None, geometry.vocab)}
    for layer in range(geometry.layers):
        for part in ("keys", "values"):
            inputs[f"{part}.{layer}"], outputs[f"new_{part}.{layer}"] = cache, cache
    given = _shapes(session.get_inputs())
    if f"keys.{geometry.layers}" in given:
        raise _other(path, f"more than the {geometry.layers} layers of the manifest")
    _compare(path, given, inputs)
    _compare(path, _shapes(session.get_outputs()), outputs)


def check_vision(session: ort.InferenceSession, geometry: VisionGeometry, width: int, path: Path) -> None:
    """BundleError where `vision.onnx` has another shape than its manifest says, or the decoder's width."""
    volume = 3 * geometry.temporal_patch * geometry.patch**2
    _compare(path, _shapes(session.get_inputs()), {"patches": (None, volume)})
    _compare(path, _shapes(session.get_outputs()), {"features": (None, geometry.hidden)})
    if geometry.hidden != width:
        raise _other(path, f"features {geometry.hidden} wide, the decoder reads {width}")


def _shapes(nodes: list[Any]) -> dict[str, list[Any]]:
    return {node.name: node.shape for node in nodes}


def _compare(path: Path, given: Mapping[str, list[Any]], needed: Mapping[str, Shape]) -> None:
    for name, shape in needed.items():
        if name not in given:
            raise _other(path, f"no input or output {name!r}")
        seen = given[name]
        fits = len(seen) == len(shape) and all(
            want is None or not isinstance(side, int) or side == want
            for side, want in zip(seen, shape, strict=True)
        )
        if not fits:
            raise _other(path, f"{name!r} of shape {seen}, the manifest means {list(shape)}")


def _other(path: Path, seen: str) -> BundleError:
    return BundleError(
        f"{path.parent.name}/{path.name}: {seen}; graph and manifest of one export are needed. Copy or "
        "export the bundle again."
    )
