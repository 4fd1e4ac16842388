"""A loaded bundle: looks at pictures and makes scenes of them.

Contract  Everything up to the cut of the prompt is computed once per `look`, and not even that where it is
          kept from before. What was asked for is run or refused, never replaced: an unknown or absent device
          is an error.
Elsewhere looking: looking.py; asking: scene.py; keeping: prefix_tree.py; opening: bundle.py, parts.py.
Source    docs/sources.md#thinker
"""

import dataclasses
import os
from importlib import resources
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import ArrayLike

from rexthinker_edge.runtime.asking import check_deadline
from rexthinker_edge.runtime.bundle import Bundle, open_bundle
from rexthinker_edge.runtime.deadline import Deadline, monotonic_ms
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.image import Source, read_picture
from rexthinker_edge.runtime.kept_rows import STORAGES
from rexthinker_edge.runtime.kept_scene import restore_scene
from rexthinker_edge.runtime.looking import Looker
from rexthinker_edge.runtime.opening import session_options
from rexthinker_edge.runtime.parts import Parts, open_parts
from rexthinker_edge.runtime.prefix_tree import PrefixTree
from rexthinker_edge.runtime.prepared import find
from rexthinker_edge.runtime.providers import read_device
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.runtime.risk import threshold
from rexthinker_edge.runtime.scene import Scene
from rexthinker_edge.runtime.tokens import check_text

MEMORY_BYTES = 1 << 30  # six pictures of a megapixel at 7B
AT_ONCE_THREADS = 4  # below, detector and vision tower would only take each other's cores


class Thinker:
    """A loaded bundle. Make one with `load`; it may be shared between threads, its scenes may not."""

    def __init__(
        self, bundle: Bundle, parts: Parts, device: str, threads: int,
        memory_bytes: int = MEMORY_BYTES, idle_kv: str = "float32",
    ) -> None:  # fmt: skip
        """Put the parts to work; see `load` for the options."""
        self._bundle, self._parts = bundle, parts
        self._device, self._threads = device, threads
        self._memory_bytes, self._idle_kv = memory_bytes, idle_kv
        prompt, vision = bundle.manifest.prompt, bundle.manifest.vision
        limits = PixelLimits(
            prompt.min_pixels, prompt.max_pixels, vision.patch, vision.merge, vision.temporal_patch
        )
        tree = PrefixTree(parts.language.decoder, memory_bytes, idle_kv)
        self._looker = Looker(parts, tree, limits, at_once=threads >= AT_ONCE_THREADS)

    def look(
        self,
        picture: Source,
        category: str,
        boxes: ArrayLike | None = None,
        deadline_ms: float | None = None,
    ) -> Scene:
        """Find the candidates of a picture and read everything but the expression, once.

        Args:
            picture: path, encoded bytes, PIL image or (H, W, 3) uint8 RGB array.
            category: what the candidates are, such as "ball".
            boxes: (N, 4) candidates in pixels of the upright picture instead of the detector's; N may be 0.
            deadline_ms: milliseconds from now after which looking stops. The scene goes on when it is asked,
                or answers TIMEOUT where its candidates are not known.

        Raises:
            ImageError, TextError, BoxError: the picture, the category or the boxes cannot be used.
            OptionError: the deadline is not positive.
        """
        begun = monotonic_ms()
        check_deadline(deadline_ms)
        deadline = Deadline.after(deadline_ms)
        category = check_text("category", category)
        return self._looker.look(read_picture(picture), category, boxes, deadline, begun)

    def restore(self, path: str | os.PathLike[str]) -> Scene:
        """A scene that `Scene.save` wrote, ready for expressions without looking again.

        Raises:
            SceneError: the file is none of ours, damaged, or made by another bundle than this one.
        """
        sight, prompt = restore_scene(self._looker, Path(path))
        return Scene(self._parts.language, sight, self._looker.tree, prompt)

    def threshold(self, max_risk: float) -> float:
        """How sure an answer must be for `refer(max_risk=…)` to give it.

        Raises:
            OptionError: it is no share between 0 and 1, or the bundle's calibration does not reach it.
        """
        return threshold(self._bundle.manifest.risk, self._bundle.manifest.name, max_risk)

    def describe(self) -> dict[str, Any]:
        """What runs here, and on what: plain values, fit for JSON."""
        manifest, drafting = self._bundle.manifest, self._parts.language.drafting
        return {
            "bundle": {"name": manifest.name, "digest": self._bundle.digest, "path": str(self._bundle.path)},
            "model": dataclasses.asdict(manifest.model),
            "quantisation": dict(manifest.quantisation),
            "device": self._device,
            "prepared": self._prepared(),
            "threads": self._threads,
            "memory_bytes": self._memory_bytes,
            "idle_kv": self._idle_kv,
            "risk": None if manifest.risk is None else manifest.risk.describe(),
            "drafting": None if drafting is None else drafting.describe(),
            "together": {"ms_a_token": self._parts.language.pace.describe()},
            "providers": list(self._parts.vision.session.get_providers()),
            "onnxruntime": ort.__version__,
        }

    def _prepared(self) -> dict[str, Any] | None:
        """What was prepared of the bundle on this machine, and why it is not used where it is not."""
        found = find(self._bundle) if self._device == "cpu" else None
        if found is None:
            return None
        return {"directory": str(found.directory), "not_used": list(found.differences)}


def load(
    path: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    idle_kv: str = "float32",
    drafting: bool = True,
) -> Thinker:
    """Open a bundle.

    Args:
        path: its directory; the small bundled model when None.
        device: "cpu"; "cuda" or "cuda:1" for a GPU, with all of it there or an error; "tensorrt": detector
            and vision tower run as engines that `rexthinker-edge export BUNDLE --target tensorrt` built on
            this machine, the decoder on the CPU.
        threads: cores one model uses; all when None.
        memory_bytes: what may be kept of pictures and prompts between questions, least recently used first
            forgotten; 0 keeps nothing. Beside it stand the models and the scenes that are answering.
        idle_kv: how that part of it which no scene works on is kept: "float32", or "int8" in a quarter of the
            bytes, after which answers are near those of a cold run, no longer equal.
        drafting: foresee what comes and verify several tokens in one pass. No token changes; where a device
            computes wider passes differently, nothing is drafted, and `describe` tells it.

    Raises:
        BundleError: the bundle is incomplete, altered, of a newer format, or unsafe.
        DeviceError: the device is unknown or cannot run this bundle here.
        OptionError: `threads` is below 1, `memory_bytes` below 0, `idle_kv` unknown, or `drafting` no bool.
    """
    read_device(device)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise OptionError(
            f"threads: {threads!r}, a whole number above 0 is needed. Leave it out for all cores."
        )
    if not isinstance(drafting, bool):
        raise OptionError(f"drafting: {drafting!r}, True or False is needed. Leave it out for True.")
    _check_memory(memory_bytes, idle_kv)
    opened = open_bundle(small_bundle() if path is None else path)
    cores = threads or os.cpu_count() or 1
    parts = open_parts(opened, session_options(threads or 0), device)
    if parts.language.drafting is not None:
        parts.language.drafting.on = drafting
    return Thinker(opened, parts, device, cores, memory_bytes, idle_kv)


def small_bundle() -> Path:
    """The directory of the model that comes with the package."""
    return Path(str(resources.files("rexthinker_edge"))) / "bundles" / "small"


def _check_memory(memory_bytes: int, idle_kv: str) -> None:
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 0:
        raise OptionError(
            f"memory_bytes: {memory_bytes!r}, a whole number of bytes from 0 is needed. "
            f"Leave it out for {MEMORY_BYTES:,}."
        )
    if idle_kv not in STORAGES:
        raise OptionError(
            f"idle_kv: {idle_kv!r}, one of {', '.join(STORAGES)} is needed. Leave it out for float32."
        )
