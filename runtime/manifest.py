"""What `manifest.json` says: the bundle's files by name, and everything about the model but its weights.

Layout    One object, schema `Manifest`: every field of a dataclass is a key, tuples are arrays.
Contract  A field that came with a later version has a default, so that earlier bundles still open.
Elsewhere reading and checking it: manifest_file.py; the directory around it: bundle.py; the geometries:
          decoder_geometry.py, vision.py, detector.py; cards of what was measured: quality.py, risk.py.
Source    docs/bundle.md
"""

from dataclasses import dataclass, field

from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.prompt import Wording
from rexthinker_edge.runtime.quality import QualityCard
from rexthinker_edge.runtime.risk import RiskCard
from rexthinker_edge.runtime.vision import VisionGeometry

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

DETECTOR, VISION, DECODER = "detector.onnx", "vision.onnx", "decoder.onnx"
DETECTOR_TEXT = "detector-text.onnx"  # of every bundle whose detector has tables
EMBEDDINGS = "embeddings.bin"
DRAFT = "draft.bin"  # optional: what usually comes next
TOKENIZER, DETECTOR_TOKENIZER = "tokenizer.json", "detector-tokenizer.json"
REQUIRED = (DETECTOR, VISION, DECODER, EMBEDDINGS, TOKENIZER, DETECTOR_TOKENIZER)


@dataclass(frozen=True)
class ModelCard:
    """Whose weights these are; licence and notice travel with every derivative."""

    name: str
    source: str
    revision: str
    licence: str
    notice: str


@dataclass(frozen=True)
class PromptSettings:
    """The words and the picture sizes the model was trained with."""

    system: str
    wording: Wording
    min_pixels: int
    max_pixels: int
    max_new_tokens: int


@dataclass(frozen=True)
class TokenIds:
    """Token ids the runtime has to know."""

    image_pad: int
    eos: tuple[int, ...]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CalibrationCard:
    """Where the calibration data came from."""

    source: str
    items: int
    seed: int
    ids: tuple[str, ...] = ()  # the samples chosen, in order
    sha256: str = ""  # over what they hold: words, boxes, traces and pixels
    tokens: int = 0
    traces: int = 0  # samples that carry the assistant's turn
    domains: dict[str, int] = field(default_factory=dict)
    left_out: int = 0  # records looked at that could not be used


@dataclass(frozen=True)
class DraftCard:
    """What the draft table was learnt from; `sha256` is over the traces' tokens."""

    source: str
    traces: int
    states: int
    sha256: str = ""


@dataclass(frozen=True)
class Golden:
    """One self-test: a picture of the bundle, a question, and what an intact machine answers."""

    picture: str  # file name in the bundle
    category: str
    expression: str
    candidates: tuple[
        tuple[float, float, float, float], ...
    ]  # original_px, given, so the detector is not asked
    detected: tuple[tuple[float, float, float, float], ...]  # original_px, what the detector finds
    token_ids: tuple[int, ...]  # what greedy decoding generates, end token included
    status: str
    boxes: tuple[tuple[float, float, float, float], ...]  # original_px, the answer


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says."""

    format_version: int
    name: str
    model: ModelCard
    prompt: PromptSettings
    tokens: TokenIds
    vision: VisionGeometry
    decoder: DecoderGeometry
    detector: DetectorGeometry
    files: dict[str, FileEntry]
    quantisation: dict[str, str]  # graph name: recipe, such as "fp32" or "int4 round-to-nearest, block 128"
    calibration: CalibrationCard | None
    targets: tuple[str, ...]
    golden: tuple[Golden, ...]
    drafts: DraftCard | None = None  # of draft.bin; None also where an older version wrote it
    quality: tuple[QualityCard, ...] = ()  # what it was seen to reach, where that was measured
    risk: RiskCard | None = None  # how sure answers must be for a stated risk, where that was measured
