"""Opens a bundle's graphs on a GPU.

Contract  The bundle's files are read and changed in memory (half_graph.py); nothing is written. Every graph
          is wholly on the GPU or an error is raised: decoder in float16, vision tower in float16 between
          casts, both graphs of the detector in float32.
Elsewhere what a session may be: providers.py; the decoder's passes: cuda_decoder.py; other devices:
          thinker.py.
Source    docs/cuda.md
"""

from dataclasses import dataclass, replace
from typing import Any

from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.cuda_decoder import CudaDecoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.graph_file import GraphFile, read_graph
from rexthinker_edge.runtime.half_graph import check_kernels, half_decoder, half_vision, whole_integers
from rexthinker_edge.runtime.providers import Placement, cuda_session


@dataclass(frozen=True)
class CudaParts:
    """A bundle's graphs as sessions of one GPU, opened when asked for."""

    opened: Bundle
    placement: Placement
    threads: int = 0

    def decoder(self, embeddings: Embeddings) -> CudaDecoder:
        """The decoder, without branches."""
        graph = self._read(manifests.DECODER)
        half_decoder(graph)
        geometry = replace(self.opened.manifest.decoder, branches=False)
        session = self._session(manifests.DECODER, graph, capture=True)
        return CudaDecoder(session, embeddings, geometry, self.placement)

    def vision(self) -> Any:
        """A session of the vision tower."""
        graph = self._read(manifests.VISION)
        half_vision(graph)
        return self._session(manifests.VISION, graph)

    def detector(self, name: str = manifests.DETECTOR) -> Any:
        """A session of one of the detector's graphs."""
        graph = self._read(name)
        whole_integers(graph)
        check_kernels(graph, name, "float32")
        return self._session(name, graph)

    def text(self) -> Any:
        """A session of the detector's text branch; None where the bundle has none."""
        return (
            None if self.opened.manifest.detector.tables is None else self.detector(manifests.DETECTOR_TEXT)
        )

    def _read(self, name: str) -> GraphFile:
        return read_graph(self.opened.file(name))

    def _session(self, name: str, graph: GraphFile, capture: bool = False) -> Any:
        path = self.opened.file(name)
        return cuda_session(graph.serialise(), path, self.placement, self.threads, capture)
