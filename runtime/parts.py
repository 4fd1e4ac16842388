"""The models of a bundle, opened where they are to run.

Contract  The three graphs are opened at the same time, the tokenizers meanwhile. No graph is read by ONNX
          Runtime that reaches outside the bundle, and what is opened has the shapes that the manifest states.
          What a device cannot run is an error, never replaced.
Elsewhere sessions: opening.py; on a GPU: cuda_parts.py; engines: engine.py; graphs packed before:
          prepared.py; the checks: graph_check.py, session_check.py; who uses them: looking.py, answering.py.
Source    docs/sources.md#thinker
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.cuda_parts import CudaParts
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.detector import Detector
from rexthinker_edge.runtime.draft import Drafting
from rexthinker_edge.runtime.draft_table import Table
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.engine import open_engine
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.graph_check import check_graph
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.opening import REFUSALS, refusal, start_packing
from rexthinker_edge.runtime.prepared import Prepared, find, plain_options
from rexthinker_edge.runtime.providers import Placement, read_device, require_cuda
from rexthinker_edge.runtime.result import BundleInfo
from rexthinker_edge.runtime.session_check import check_decoder, check_vision
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionTower


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
    _check_graphs(opened)
    embeddings = Embeddings(opened.file(manifests.EMBEDDINGS), manifest.decoder)
    placement = read_device(device)
    gpu = _gpu(opened, placement, options)
    ready = find(opened, prepared) if placement.kind == "cpu" else None
    graphs = _Graphs(opened, options, placement, gpu, ready)
    with ThreadPoolExecutor(3) as pool:
        decoder = pool.submit(graphs.decoder, embeddings)
        vision, detector = pool.submit(graphs.vision), pool.submit(graphs.detector)
        tokenizer = _tokenizer(opened)
        info = BundleInfo(manifest.name, opened.digest)
        drafting = Drafting(_draft_table(opened))
        prompt, tokens, risk = manifest.prompt, manifest.tokens, manifest.risk
        language = Language(tokenizer, decoder.result(), prompt, tokens, info, drafting, risk)
        parts = Parts(detector.result(), vision.result(), language)
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

    def decoder(self, embeddings: Embeddings) -> Decoder:
        geometry = self.opened.manifest.decoder
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

    def detector(self) -> Detector:
        with _opening(self.opened, manifests.DETECTOR):
            tokens = self.opened.file(manifests.DETECTOR_TOKENIZER)
            session = self.gpu.detector() if self.gpu else self._engine(manifests.DETECTOR)
            text = self.gpu.text() if self.gpu else None
            place, how = self._place(manifests.DETECTOR)
            return Detector(place, tokens, self.opened.manifest.detector, how, session, text)

    def _place(self, name: str) -> tuple[Path, ort.SessionOptions]:
        """Where a graph lies, and how it is opened."""
        path = None if self.ready is None else self.ready.graph(name)
        if path is None:
            return self.opened.file(name), self.options
        return path, plain_options(self.options.intra_op_num_threads)

    def _engine(self, name: str) -> Any:
        return open_engine(self.opened, name) if self.placement.kind == "tensorrt" else None


def _gpu(opened: Bundle, placement: Placement, options: ort.SessionOptions) -> CudaParts | None:
    """What opens graphs on the GPU that was asked for; None where another device was."""
    if placement.kind != "cuda":
        return None
    require_cuda(placement)
    return CudaParts(opened, placement, options.intra_op_num_threads)


def _check_graphs(opened: Bundle) -> None:
    """BundleError where a graph reaches outside the bundle; ONNX Runtime has read none of them yet."""
    sizes = {name: entry.bytes for name, entry in opened.manifest.files.items()}
    for name in sorted(sizes):
        if name.endswith(".onnx"):
            check_graph(opened.file(name), sizes)


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


@contextmanager
def _opening(opened: Bundle, name: str) -> Iterator[Path]:
    """The path of a graph; what ONNX Runtime says against it becomes a BundleError."""
    path = opened.file(name)
    try:
        yield path
    except REFUSALS as error:
        raise refusal(path, error) from error
