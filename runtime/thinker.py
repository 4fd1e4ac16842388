"""A loaded bundle: looks at pictures and makes scenes of them.

Layout    picture ─ detector ─ candidates ─┐
                 └─ vision tower ─ features ┴─ prompt prefix ─ decoder ─ KV cache, kept in the scene
Contract  Everything up to the cut of the prompt is computed once per `look`. What was asked for is run or
          refused, never replaced: an unknown or absent device is an error.
Elsewhere asking: scene.py; opening files: bundle.py; the parts: detector.py, vision.py, decoder.py.
Source    docs/sources.md#thinker
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.runtime import bundle as bundles
from rexthinker_edge.runtime.boxes import check_boxes, to_resized_px
from rexthinker_edge.runtime.bundle import Bundle, open_bundle
from rexthinker_edge.runtime.decoder import Decoder, Embeddings, place_image
from rexthinker_edge.runtime.detector import Detector
from rexthinker_edge.runtime.errors import BoxError, BundleError, DeviceError, OptionError
from rexthinker_edge.runtime.generate import now_ms
from rexthinker_edge.runtime.image import Picture, Source, read_picture
from rexthinker_edge.runtime.positions import mrope_positions
from rexthinker_edge.runtime.prompt import prefix
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, VisionInput, qwen_pixels, smart_resize
from rexthinker_edge.runtime.result import BundleInfo, Candidate, Milliseconds
from rexthinker_edge.runtime.scene import Language, Prefix, Scene, Sight
from rexthinker_edge.runtime.tokens import TextTokenizer, check_text
from rexthinker_edge.runtime.vision import VisionTower

DEVICES = ("cpu",)
# What InferenceSession raises; they share no base but Exception.
_REFUSALS = (
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoSuchFile,
    refusals.NotImplemented,
    refusals.RuntimeException,
)


@dataclass(frozen=True)
class Parts:
    """The models of a bundle, opened."""

    detector: Detector
    vision: VisionTower
    language: Language


class Thinker:
    """A loaded bundle. Make one with `load`; it may be shared between threads, its scenes may not."""

    def __init__(self, bundle: Bundle, parts: Parts, device: str, threads: int) -> None:
        self._bundle, self._parts = bundle, parts
        self._device, self._threads = device, threads

    def look(self, picture: Source, category: str, boxes: ArrayLike | None = None) -> Scene:
        """Find the candidates of a picture and read everything but the expression, once.

        Args:
            picture: path, encoded bytes, PIL image or (H, W, 3) uint8 RGB array.
            category: what the candidates are, such as "ball".
            boxes: (N, 4) candidates in pixels of the upright picture instead of the detector's; N may be 0.

        Raises:
            ImageError, TextError, BoxError: the picture, the category or the boxes cannot be used.
        """
        begun = now_ms()
        category = check_text("category", category)
        seen = read_picture(picture)
        limits = self._limits()
        height, width = smart_resize(
            seen.height, seen.width, limits.min_pixels, limits.max_pixels, limits.factor
        )
        given = None if boxes is None else check_boxes(boxes, seen.size)
        read = now_ms()
        found, scores = (
            (given, None) if given is not None else self._parts.detector.detect(seen.pixels_HWC, category)
        )
        detected = now_ms()
        candidates = _candidates(found, scores)
        hints = to_resized_px(found, seen.size, (width, height))
        image_ms = max(read - begun, seen.read_ms)  # a `Picture` was read before
        ms = Milliseconds(image=image_ms, detect=detected - read)
        if not candidates:
            return Scene(self._parts.language, Sight(seen, category, (), hints, ms), None)
        kept, ms = self._read_prefix(seen, category, hints, ms)
        return Scene(self._parts.language, Sight(seen, category, candidates, hints, ms), kept)

    def describe(self) -> dict[str, Any]:
        """What runs here, and on what: plain values, fit for JSON."""
        manifest = self._bundle.manifest
        return {
            "bundle": {"name": manifest.name, "digest": self._bundle.digest, "path": str(self._bundle.path)},
            "model": dataclasses.asdict(manifest.model),
            "quantisation": dict(manifest.quantisation),
            "device": self._device,
            "threads": self._threads,
            "providers": list(self._parts.vision.session.get_providers()),
            "onnxruntime": ort.__version__,
        }

    def _limits(self) -> PixelLimits:
        prompt, vision = self._bundle.manifest.prompt, self._bundle.manifest.vision
        return PixelLimits(
            prompt.min_pixels, prompt.max_pixels, vision.patch, vision.merge, vision.temporal_patch
        )

    def _read_prefix(
        self, seen: Picture, category: str, hints: NDArray[np.int64], ms: Milliseconds
    ) -> tuple[Prefix, Milliseconds]:
        """Vision tower and prefill of everything left of the cut."""
        begun = now_ms()
        pixels = qwen_pixels(seen.pixels_HWC, self._limits())
        token_ids = self._prefix_ids(pixels, category, hints)
        resized = now_ms()
        features = self._parts.vision.encode(pixels)
        encoded = now_ms()
        language, merge = self._parts.language, self._bundle.manifest.vision.merge
        positions, following = mrope_positions(token_ids, language.tokens.image_pad, [pixels.grid_thw], merge)
        embeds = place_image(
            language.decoder.embed(token_ids), token_ids, language.tokens.image_pad, features
        )
        cache = language.decoder.new_cache(len(token_ids) + language.prompt.max_new_tokens + 64)
        language.decoder.run(embeds, positions, cache)
        prefilled = now_ms()
        kept = Prefix(cache, len(token_ids), following)
        image_ms = ms.image + resized - begun
        return kept, dataclasses.replace(
            ms, image=image_ms, vision=encoded - resized, prefill=prefilled - encoded
        )

    def _prefix_ids(self, pixels: VisionInput, category: str, hints: NDArray[np.int64]) -> list[int]:
        language, merge = self._parts.language, self._bundle.manifest.vision.merge
        settings = language.prompt
        parts = prefix(
            settings.system, settings.wording, category, hints.tolist(), pixels.merged_tokens(merge)
        )
        token_ids = language.tokenizer.encode_parts(parts)
        most = language.decoder.geometry.max_length
        if len(token_ids) >= most:
            raise BoxError(
                f"candidate boxes: {len(hints)} of them and the picture make a prompt of {len(token_ids):,} "
                f"tokens, the bundle allows {most:,}. Keep fewer boxes, or give a smaller picture."
            )
        return token_ids


def load(
    path: str | os.PathLike[str] | None = None, device: str = "cpu", threads: int | None = None
) -> Thinker:
    """Open a bundle.

    Args:
        path: its directory; the small bundled model when None.
        device: where it runs. This version runs on "cpu"; anything else is refused.
        threads: cores one model uses; all when None.

    Raises:
        BundleError: the bundle is incomplete, altered, of a newer format, or unsafe.
        DeviceError: the device is unknown or cannot run this bundle here.
        OptionError: `threads` is below 1.
    """
    _check_device(device)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise OptionError(
            f"threads: {threads!r}, a whole number above 0 is needed. Leave it out for all cores."
        )
    opened = open_bundle(small_bundle() if path is None else path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return Thinker(opened, open_parts(opened, options), device, threads or os.cpu_count() or 1)


def small_bundle() -> Path:
    """The directory of the model that comes with the package."""
    return Path(str(resources.files("rexthinker_edge"))) / "bundles" / "small"


def open_parts(opened: Bundle, options: ort.SessionOptions) -> Parts:
    """Open the three graphs, the embeddings and the tokenizers of a bundle.

    Raises:
        BundleError: ONNX Runtime cannot open a graph, or a tokenizer or the embeddings are not as described.
    """
    manifest = opened.manifest
    embeddings = Embeddings(opened.file(bundles.EMBEDDINGS), manifest.decoder)
    with _opening(opened, bundles.DECODER) as path:
        decoder = Decoder(path, embeddings, manifest.decoder, options)
    with _opening(opened, bundles.VISION) as path:
        vision = VisionTower(path, manifest.vision, options)
    with _opening(opened, bundles.DETECTOR) as path:
        detector = Detector(path, opened.file(bundles.DETECTOR_TOKENIZER), manifest.detector, options)
    language = Language(
        tokenizer=TextTokenizer(opened.file(bundles.TOKENIZER)),
        decoder=decoder,
        prompt=manifest.prompt,
        tokens=manifest.tokens,
        bundle=BundleInfo(manifest.name, opened.digest),
    )
    return Parts(detector, vision, language)


@contextmanager
def _opening(opened: Bundle, name: str) -> Iterator[Path]:
    """The path of a graph; what ONNX Runtime says against it becomes a BundleError."""
    try:
        yield opened.file(name)
    except _REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(
            f"{opened.path.name}/{name}: ONNX Runtime {ort.__version__} cannot open it ({reason}). "
            "Update onnxruntime, or export the bundle again."
        ) from error


def _check_device(device: str) -> None:
    if device not in DEVICES:
        known = ", ".join(DEVICES)
        raise DeviceError(f'device {device!r}: this version runs bundles on {known} only. Use device="cpu".')


def _candidates(
    boxes: ArrayLike, scores: Sequence[float] | NDArray[np.floating[Any]] | None
) -> tuple[Candidate, ...]:
    rows = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist()
    known = [None] * len(rows) if scores is None else [float(score) for score in scores]
    return tuple(Candidate(i, row, score) for i, (row, score) in enumerate(zip(rows, known, strict=True)))
