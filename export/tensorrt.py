"""Builds TensorRT engines of a bundle's detector and vision tower, on the machine that will run them.

What      The bundle's own ONNX files are said again in standard operators (standard_graph.py), the layers
          that bear it in float16 (half.py), checked against TensorRT's list (tensorrt_support.py), and
          compiled for this GPU with a profile per bucket of picture sizes (tensorrt_profiles.py). The
          decoder and the caption's text branch stay with ONNX Runtime.
Layout    `NAME.tensorrt/` beside the bundle: runtime/engine_card.py.
Contract  An engine and its card appear together or not at all; what stood there before stays until then.
          **Not run here**: TensorRT's builder cannot be installed where this project is built. Everything up
          to the calls into `tensorrt` is tested with a stand-in; the calls follow its Python API 10.x.
Elsewhere running engines: runtime/engine.py.
Source    docs/tensorrt.md
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.export.half import DETECTOR, VISION, Policy, halve
from rexthinker_edge.export.standard_graph import StandardGraph
from rexthinker_edge.export.standard_operators import standardise
from rexthinker_edge.export.tensorrt_profiles import Profile, detector_profiles, symbols, vision_profiles
from rexthinker_edge.export.tensorrt_support import PARSER_VERSION, problems
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.engine import import_tensorrt
from rexthinker_edge.runtime.engine_card import (
    CARD_FORMAT,
    EngineCard,
    Machine,
    engines_directory,
    read_gpu,
    source_digest,
)
from rexthinker_edge.runtime.errors import ConfigError, DeviceError, OptionError
from rexthinker_edge.runtime.strict_json import to_json

PRECISIONS = ("fp16", "fp32")
TIMING_CACHE = "timing.cache"
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    `version_compatible` engines run on later minor versions of TensorRT too, a little slower and larger;
    `workspace_mb` bounds the memory that a tactic may try, None leaves it to TensorRT.
    """

    precision: str = "fp16"
    version_compatible: bool = False
    workspace_mb: int | None = None


@dataclass(frozen=True)
class Part:
    """One graph to build."""

    graph: str
    policy: Policy
    tf32: bool
    """Whether what stays float32 may be multiplied in TF32, which keeps float32's range and 10 bits of it:
    yes for the tower, trained in bfloat16; no for the detector, whose float32 layers are the precise ones."""


PARTS = (Part(manifests.VISION, VISION, tf32=True), Part(manifests.DETECTOR, DETECTOR, tf32=False))


def build_engines(
    opened: Bundle, options: EngineOptions, report: Report, trt: Any = None, here: Machine | None = None
) -> list[EngineCard]:
    """Build and store the engines of a bundle.

    Args:
        report: called with what is done, how much, of how much.
        trt: the `tensorrt` module; imported when None.
        here: this machine; asked of the driver when None.

    Raises:
        OptionError: an unknown precision or no workspace.
        MissingExtraError: TensorRT is not installed.
        DeviceError: there is no GPU, or TensorRT cannot build an engine.
        ConfigError: a graph holds what TensorRT does not read.
    """
    _check(options)
    trt = import_tensorrt() if trt is None else trt
    here = read_gpu(str(trt.__version__)) if here is None else here
    directory = engines_directory(opened.path)
    directory.mkdir(exist_ok=True)
    cards = []
    for number, part in enumerate(PARTS):
        report(f"building {part.graph}", number, len(PARTS))
        cards.append(_build_part(opened, part, options, Builder(trt, directory / TIMING_CACHE, here)))
    report("done", len(PARTS), len(PARTS))
    return cards


def prepare(opened: Bundle, part: Part, precision: str) -> tuple[StandardGraph, list[Profile]]:
    """The graph as TensorRT will read it, and its profiles; needs no TensorRT.

    Raises:
        ConfigError: the graph holds what TensorRT does not read.
    """
    graph = standardise(opened.file(part.graph))
    if precision == "fp16":
        halve(graph, part.policy)
    skeleton = graph.skeleton()
    if found := problems(skeleton):
        raise ConfigError(
            f"{part.graph}: {len(found)} things that {PARSER_VERSION} is not said to read, the first: "
            f"{found[0]}. Export the bundle with this version."
        )
    manifest, inputs = opened.manifest, symbols(skeleton)
    if part.graph == manifests.VISION:
        return graph, vision_profiles(manifest.vision, manifest.prompt, inputs)
    return graph, detector_profiles(manifest.detector, inputs)


def _check(options: EngineOptions) -> None:
    if options.precision not in PRECISIONS:
        raise OptionError(
            f"precision: {options.precision!r}, one of {', '.join(PRECISIONS)} is needed. Choose one."
        )
    if options.workspace_mb is not None and options.workspace_mb < 1:
        raise OptionError(f"workspace: {options.workspace_mb} MB, 1 or more is needed. Leave it out.")


def _build_part(opened: Bundle, part: Part, options: EngineOptions, builder: "Builder") -> EngineCard:
    directory, stem = engines_directory(opened.path), Path(part.graph).stem
    graph, profiles = prepare(opened, part, options.precision)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".building-") as scratch:
        graph.save(Path(scratch) / part.graph)
        engine = builder.build(Path(scratch) / part.graph, profiles, options, part.tf32)
    card = EngineCard(
        format_version=CARD_FORMAT, graph=part.graph, source_sha256=source_digest(opened, part.graph),
        engine_sha256=hashlib.sha256(engine).hexdigest(), engine_bytes=len(engine), machine=builder.here,
        version_compatible=options.version_compatible, precision=options.precision,
        profiles=tuple(profile.ranges() for profile in profiles),
    )  # fmt: skip
    (directory / f"{stem}.json").unlink(missing_ok=True)  # an engine without a card is none
    _replace(directory / f"{stem}.engine", engine)
    _replace(directory / f"{stem}.json", (json.dumps(to_json(card), indent=1) + "\n").encode())
    return card


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


class Builder:
    """TensorRT's builder for one machine: the only calls into `tensorrt` that build something."""

    def __init__(self, trt: Any, cache: Path, here: Machine) -> None:
        self.trt, self.here, self._cache = trt, here, cache
        self._logger = trt.Logger(trt.Logger.WARNING)

    def build(self, path: Path, profiles: list[Profile], options: EngineOptions, tf32: bool) -> bytes:
        """Compile the graph at `path`; DeviceError with TensorRT's own words when it refuses."""
        trt = self.trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            told = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
            raise self._refused(path, " ".join(told.split())[:600])
        config = self._config(builder, options, tf32)
        shapes_by_value = {
            network.get_input(number).name
            for number in range(network.num_inputs)
            if network.get_input(number).is_shape_tensor
        }
        for profile in profiles:
            config.add_optimization_profile(self._profile(builder, profile, shapes_by_value))
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise self._refused(path, "no engine came out, its log above says why")
        self._keep_timings(config)
        return bytes(engine)

    def _config(self, builder: Any, options: EngineOptions, tf32: bool) -> Any:
        trt, config = self.trt, builder.create_builder_config()
        if not tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
        stored = self._cache.read_bytes() if self._cache.is_file() else b""
        # A cache of another GPU or version is refused by TensorRT; then timing begins anew.
        if not config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return config

    @staticmethod
    def _profile(builder: Any, profile: Profile, shapes_by_value: set[str]) -> Any:
        made = builder.create_optimization_profile()
        for name, least in profile.least.items():
            corners = (least, profile.usual[name], profile.most[name])
            if name in shapes_by_value:  # its numbers are sizes of other values: their range counts
                made.set_shape_input(name, *(corner.reshape(-1).tolist() for corner in corners))
            else:
                made.set_shape(name, *(corner.shape for corner in corners))
        return made

    def _keep_timings(self, config: Any) -> None:
        _replace(self._cache, bytes(config.get_timing_cache().serialize()))

    def _refused(self, path: Path, reason: str) -> DeviceError:
        return DeviceError(
            f"{path.name}: TensorRT {self.trt.__version__} cannot build an engine ({reason}). Update "
            "TensorRT to 10.x or later, or run with device='cpu'."
        )
