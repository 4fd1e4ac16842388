"""What is judged: anything that answers a question about a picture, told apart from how it does it.

Layout    `Reply` is one answer; its indices and verdicts count the candidates that were asked about.
          A subject is named by "small", a bundle's directory, or a checkpoint's with its number format:
          "DIR@fp32", "DIR@bf16"; "DIR@nf4" and "DIR@int8" on a CUDA GPU.
Contract  Greedy decoding, the same prompt words, pixels and reader of answers for every subject: what differs
          is the weights and how they are computed. `force` gives the logits that a subject would choose
          from after each of another's tokens.
Elsewhere a checkpoint through transformers: checkpoint_subject.py; asking a whole dataset: runs.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.records import Box
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.boxes import to_resized_px
from rexthinker_edge.runtime.bundle import Bundle, open_bundle
from rexthinker_edge.runtime.embeddings import place_image
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.image import Source, read_picture
from rexthinker_edge.runtime.model_sizes import bundle_sizes
from rexthinker_edge.runtime.positions import mrope_positions, text_positions
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels
from rexthinker_edge.runtime.thinker import Thinker, load, small_bundle
from rexthinker_edge.runtime.tiny_onnx import read_contents

FORCE_CHUNK = 64  # tokens whose logits are held at once: 64 x 152,000 float32 are 39 MB
DTYPES = ("fp32", "bf16", "nf4", "int8")


@dataclass(frozen=True)
class Question:
    """One thing to ask; `boxes` None: the subject finds its own candidates."""

    picture: Source
    category: str
    expression: str
    boxes: tuple[Box, ...] | None


@dataclass(frozen=True)
class Reply:
    """What came of it."""

    status: Status
    indices: tuple[int, ...]
    candidates: tuple[Box, ...]
    verdicts: tuple[str, ...]
    text: str
    token_ids: tuple[int, ...]
    tokens: dict[str, int] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)
    confidence: float | None = None
    verdict_confidences: tuple[float | None, ...] = ()
    pass_tokens: tuple[int, ...] = ()  # how many tokens each decoder pass gave


class Subject(ABC):
    """Something that answers. `identity` tells it apart from every other, as plain JSON values."""

    name: str
    identity: dict[str, Any]
    details: dict[str, Any]  # how it runs here

    @abstractmethod
    def ask(self, question: Question) -> Reply:
        """Answer one question; raises ImageError, BoxError or TextError on one that cannot be asked."""

    @abstractmethod
    def force(self, question: Question, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Logits before each of `token_ids`, in pieces of at most `FORCE_CHUNK` rows: (n, vocab) float32."""

    def device_peak_bytes(self) -> int | None:
        """The most memory held on a device beside the process's own; None where there is none, or unknown."""
        return None


class BundleSubject(Subject):
    """A bundle in our runtime."""

    def __init__(self, thinker: Thinker, name: str | None = None) -> None:
        self.thinker = thinker
        described = thinker.describe()
        bundle = described["bundle"]
        self.name = name or bundle["name"]
        self.identity = {"kind": "bundle", "name": bundle["name"], "digest": bundle["digest"]}
        self.details = {key: described[key] for key in ("quantisation", "device", "threads", "onnxruntime")}
        manifest = thinker._bundle.manifest
        self.details["bytes"] = sum(entry.bytes for entry in manifest.files.values())
        self.details["decoder_bits"] = decoder_bits(thinker._bundle)
        card = manifest.calibration
        self.details["calibration"] = card and {
            key: getattr(card, key) for key in ("source", "items", "seed", "tokens")
        }

    def ask(self, question: Question) -> Reply:
        """Look and refer, as a caller does."""
        scene = self.thinker.look(question.picture, question.category, boxes=question.boxes)
        result = scene.refer(question.expression)
        told = result.to_json()
        return Reply(
            status=result.status,
            indices=tuple(result.indices),
            candidates=tuple((c.box[0], c.box[1], c.box[2], c.box[3]) for c in result.candidates),
            verdicts=tuple(candidate.verdict.value for candidate in result.candidates),
            text=result.text,
            token_ids=tuple(result.token_ids),
            tokens=told["tokens"],
            pass_tokens=result.pass_tokens,
            ms=told["ms"],
            confidence=told.get("confidence"),
            verdict_confidences=verdict_confidences(told),
        )

    def force(self, question: Question, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """One pass over the prompt at once, without the scene's cache; then the tokens."""
        assert question.boxes, "teacher forcing needs given candidates"
        parts = self.thinker._parts
        language, manifest = parts.language, self.thinker._bundle.manifest
        settings, vision = language.prompt, manifest.vision
        seen = read_picture(question.picture)
        limits = PixelLimits(
            settings.min_pixels, settings.max_pixels, vision.patch, vision.merge, vision.temporal_patch
        )
        pixels = qwen_pixels(seen.pixels_HWC, limits)
        hints = to_resized_px(np.asarray(question.boxes), seen.size, pixels.resized).tolist()
        words = prompt.prefix(
            settings.system, settings.wording, question.category, hints, pixels.merged_tokens(vision.merge)
        )
        ids = language.tokenizer.encode_parts([*words, *prompt.suffix(settings.wording, question.expression)])
        pad, decoder = language.tokens.image_pad, language.decoder
        positions, following = mrope_positions(ids, pad, [pixels.grid_thw], vision.merge)
        cache = decoder.new_cache(len(ids) + len(token_ids))
        embeds = place_image(decoder.embed(ids), ids, pad, parts.vision.encode(pixels))
        yield decoder.run(embeds, positions, cache)
        for start in range(0, len(token_ids) - 1, FORCE_CHUNK):
            fed = list(token_ids[start : min(start + FORCE_CHUNK, len(token_ids) - 1)])
            where = text_positions(following + start, len(fed))
            yield decoder.run(decoder.embed(fed), where, cache, last_only=False)


def decoder_bits(bundle: Bundle) -> float:
    """Bits a weight of the decoder takes on disk, scales and zero points included; the rotary table is not.

    A tied output layer that is kept as the token table lies in `embeddings.bin`.
    """
    files, held = bundle.manifest.files, read_contents(bundle.file(manifests.DECODER)).weights
    stored = files[f"{manifests.DECODER}.data"].bytes
    stored -= sum(4 * math.prod(shape) for name, shape in held.items() if name.startswith("rotary."))
    if "model.embed_tokens.weight" in held:
        stored += files[manifests.EMBEDDINGS].bytes
    return 8 * stored / bundle_sizes(bundle).decoder.weights


def verdict_confidences(told: Mapping[str, Any]) -> tuple[float | None, ...]:
    """The confidence of each candidate's verdict, by index; () where a result tells none.

    Args:
        told: a result as JSON, `verdicts` [{candidate, verdict, confidence}] where it has any.
    """
    given = {entry["candidate"]: entry.get("confidence") for entry in told.get("verdicts") or ()}
    found = tuple(given.get(index) for index in range(len(told["candidates"])))
    return found if any(value is not None for value in found) else ()


def check_subject(spec: str, device: str = "cpu") -> None:
    """Refuse at once what `open_subject` would refuse later, when others have been asked for hours.

    Raises:
        OptionError: it is neither a bundle nor a checkpoint, or its number format is unknown.
        BundleError: its manifest cannot be used.
        DeviceError, MissingExtraError: a checkpoint, and no GPU or package where it needs one.
    """
    path, dtype = _named(spec)
    if dtype is None:
        open_bundle(path or small_bundle())
    elif (dtype, device) not in (("fp32", "cpu"), ("bf16", "cpu")):
        from rexthinker_edge.benchmarks.quantised_loading import check_device  # noqa: PLC0415

        check_device(spec, dtype, device)


def open_subject(spec: str, threads: int | None = None, device: str = "cpu") -> Subject:
    """Open a subject by its name; see the module's layout.

    Raises:
        OptionError: it is neither a bundle nor a checkpoint, or its number format is unknown.
        BundleError, CheckpointError: its files cannot be used.
    """
    path, dtype = _named(spec)
    if dtype is None:
        return BundleSubject(load(path, device=device, threads=threads))
    assert path is not None, "a checkpoint has a directory"
    from rexthinker_edge.benchmarks.checkpoint_subject import CheckpointSubject  # noqa: PLC0415

    return CheckpointSubject(path, dtype, threads, device)


def _named(spec: str) -> tuple[Path | None, str | None]:
    """Directory (None: the built-in bundle) and number format (None: a bundle) of a subject's name."""
    if spec == "small":
        return None, None
    if (Path(spec) / "manifest.json").is_file():
        return Path(spec), None
    place, at, dtype = spec.rpartition("@")
    path = Path(place if at else spec)
    if at and (place == "small" or (path / "manifest.json").is_file()):
        raise OptionError(
            f"{spec}: a bundle's number format is its own, a name without @ is needed. Leave it out."
        )
    if not (path / "config.json").is_file():
        raise OptionError(
            f"{spec}: no manifest.json and no config.json there, a bundle or a checkpoint is needed. "
            "Name its directory, or `small` for the built-in bundle."
        )
    if (dtype or "fp32") not in DTYPES or (at and not dtype):
        raise OptionError(
            f"{spec}: number format {dtype!r}, one of {', '.join(DTYPES)} is needed. Write DIR@fp32."
        )
    return path, dtype or "fp32"
