"""The models of a bundle, opened where they are to run.

Contract  The graphs are opened at the same time, the tokenizers meanwhile. No graph is read by ONNX Runtime
          that reaches outside the bundle, and what is opened has the shapes that the manifest states. What a
          device cannot run is an error, never replaced.
Elsewhere sessions: opening.py; on a GPU: cuda_parts.py; engines: engine.py; graphs packed before:
          prepared.py; the checks: graph_check.py, session_check.py; who uses them: looking.py, answering.py.
Source    docs/sources.md#thinker
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime as ort

from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.cuda_parts import CudaParts
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.detector import Detector, open_graph
from rexthinker_edge.runtime.draft import Drafting
from rexthinker_edge.runtime.draft_table import Table
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.engine import open_engine
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.graph_check import check_graph
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.opening import REFUSALS, refusal, session_options, start_packing
from rexthinker_edge.runtime.prepared import Prepared, find, plain_options
from rexthinker_edge.runtime.providers import Placement, read_device, require_cuda
from rexthinker_edge.runtime.result import BundleInfo
from rexthinker_edge.runtime.session_check import check_decoder, check_vision
from rexthinker_edge.runtime.together import EVERY_TOKEN, FLOAT_NEAR_TIE, NO_TOKEN
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionTower

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Parts:
    """The models of a bundle, opened."""

    detector: Detector
    vision: VisionTower
    language: Language


def open_parts(
    opened: Bundle, options: ort.SessionOptions, device: str = "cpu", prepared: Path | None = None
) -> Parts:
    """Open the three graphs, at the same time, the embeddings and the tokenizers of a bundle.

    Args:
        prepared: where prepared graphs lie; None for the usual place.

    Raises:
        DeviceError: the device is a GPU that cannot be had, or cannot run a graph of this bundle.
        DeviceError, MissingExtraError: the device is "tensorrt" and its engines cannot run here.
        BundleError: ONNX Runtime cannot open a graph, or a tokenizer or the embeddings are not as described.
    """
    manifest = opened.manifest
    placement = read_device(device)
    gpu = _gpu(opened, placement, options)
    ready = find(opened, prepared) if placement.kind == "cpu" else None
    graphs = _Graphs(opened, options, placement, gpu, ready)
    with ThreadPoolExecutor(4) as pool:

        def begin(name: str, opens: Callable[[], Opened]) -> Future[Opened]:
            _check_graph(opened, name)  # Python's work, like the tokenizer, while others are being opened
            return pool.submit(opens)

        sight = begin(manifests.DETECTOR, graphs.sight)  # first, for it takes longest
        text = None if manifest.detector.tables is None else begin(manifests.DETECTOR_TEXT, graphs.text)
        vision = begin(manifests.VISION, graphs.vision)
        decoder = begin(manifests.DECODER, graphs.decoder)
        tokenizer = _tokenizer(opened)
        info = BundleInfo(manifest.name, opened.digest)
        drafting = Drafting(_draft_table(opened))
        prompt, tokens, risk = manifest.prompt, manifest.tokens, manifest.risk
        detector = graphs.detector(sight.result(), None if text is None else text.result())
        near_tie = _near_tie(decoder.result(), manifest.quantisation.get(manifests.DECODER, ""))
        language = Language(tokenizer, decoder.result(), prompt, tokens, info, drafting, risk, near_tie)
        parts = Parts(detector, vision.result(), language)
    for session in (parts.vision.session, parts.language.decoder.session):
        start_packing(session)  # only now: it would take the cores from what must be there at once
    return parts


@dataclass(frozen=True)
class _Graphs:
    """A bundle's graphs, and what opens them: the GPU, engines, or the CPU with what was packed before."""

    opened: Bundle
    options: ort.SessionOptions
    placement: Placement
    gpu: CudaParts | None
    ready: Prepared | None

    def decoder(self) -> Decoder:
        geometry = self.opened.manifest.decoder
        embeddings = Embeddings(self.opened.file(manifests.EMBEDDINGS), geometry)
        with _opening(self.opened, manifests.DECODER) as path:
            place, how = self._place(manifests.DECODER)
            made = self.gpu.decoder(embeddings) if self.gpu else Decoder(place, embeddings, geometry, how)
        check_decoder(made.session, geometry, path)
        return made

    def vision(self) -> VisionTower:
        manifest = self.opened.manifest
        with _opening(self.opened, manifests.VISION) as path:
            session = self.gpu.vision() if self.gpu else self._engine(manifests.VISION)
            place, how = self._place(manifests.VISION)
            made = VisionTower(place, manifest.vision, how, session=session)
        check_vision(made.session, manifest.vision, manifest.decoder.hidden, path)
        return made

    def sight(self) -> Any:
        """The detector's session."""
        with _opening(self.opened, manifests.DETECTOR):
            session = self.gpu.detector() if self.gpu else self._engine(manifests.DETECTOR)
            return session or self._session(manifests.DETECTOR)

    def text(self) -> Any:
        """The session of the detector's text branch."""
        with _opening(self.opened, manifests.DETECTOR_TEXT):
            return self.gpu.text() if self.gpu else self._session(manifests.DETECTOR_TEXT)

    def detector(self, sight: Any, text: Any) -> Detector:
        """The detector of its sessions."""
        tokens, geometry = self.opened.file(manifests.DETECTOR_TOKENIZER), self.opened.manifest.detector
        return Detector(self.opened.file(manifests.DETECTOR), tokens, geometry, None, sight, text)

    def _session(self, name: str) -> ort.InferenceSession:
        return open_graph(*self._place(name))

    def _place(self, name: str) -> tuple[Path, ort.SessionOptions]:
        """Where a graph lies, and how it is opened."""
        path = None if self.ready is None else self.ready.graph(name)
        threads = self.options.intra_op_num_threads
        options = session_options(threads) if path is None else plain_options(threads)
        if name != manifests.DECODER:
            # A run's threads else spin on for a while, and take the cores from the graph that runs next:
            # 28 % of the processor time of detector and vision tower (docs/benchmarks.md#waiting).
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return path or self.opened.file(name), options

    def _engine(self, name: str) -> Any:
        return open_engine(self.opened, name) if self.placement.kind == "tensorrt" else None


def _gpu(opened: Bundle, placement: Placement, options: ort.SessionOptions) -> CudaParts | None:
    """What opens graphs on the GPU that was asked for; None where another device was."""
    if placement.kind != "cuda":
        return None
    require_cuda(placement)
    return CudaParts(opened, placement, options.intra_op_num_threads)


def _check_graph(opened: Bundle, name: str) -> None:
    """BundleError where a graph reaches outside the bundle; ONNX Runtime has not read it yet."""
    check_graph(opened.file(name), {known: entry.bytes for known, entry in opened.manifest.files.items()})


def _tokenizer(opened: Bundle) -> TextTokenizer:
    """The language model's tokenizer; BundleError where it has tokens that the model has not."""
    tokenizer, vocabulary = TextTokenizer(opened.file(manifests.TOKENIZER)), opened.manifest.decoder.vocab
    if tokenizer.largest_id >= vocabulary:
        raise BundleError(
            f"{opened.path.name}/{manifests.TOKENIZER}: token {tokenizer.largest_id:,}, the model has "
            f"{vocabulary:,}. Copy the bundle again, or export it again."
        )
    return tokenizer


def _draft_table(opened: Bundle) -> Table | None:
    """The bundle's draft table, where it has one."""
    if manifests.DRAFT not in opened.manifest.files:
        return None
    return Table(opened.file(manifests.DRAFT), opened.manifest.decoder.vocab)


def _near_tie(decoder: Decoder, stored: str) -> float:
    """What answers decoded together may be off by, of what the manifest says of the decoder's numbers."""
    if decoder.rows_alike:
        return NO_TOKEN
    return FLOAT_NEAR_TIE if stored.startswith("fp32") else EVERY_TOKEN


@contextmanager
def _opening(opened: Bundle, name: str) -> Iterator[Path]:
    """The path of a graph; what ONNX Runtime says against it becomes a BundleError."""
    path = opened.file(name)
    try:
        yield path
    except REFUSALS as error:
        raise refusal(path, error) from error
