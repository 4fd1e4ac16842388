"""The detector: a picture and a category in, candidate boxes out.

Layout    `detector.onnx` takes the picture at its true size and one caption; it gives, for each query, a
          logit per caption token and a box (centre x, centre y, width, height) as shares of the picture.
Contract  As transformers' `post_process_grounded_object_detection`: a query's score is its best token's
          sigmoid, kept above the threshold; no NMS; the model's order is kept. Boxes are clamped to the
          picture. The text threshold only words labels, and a caption of one phrase has one label.
Elsewhere resizing: dino_pixels.py; text: caption.py; the graph: export/detector_graph.py.
Source    docs/sources.md#detector
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.caption import CaptionTokenizer
from rexthinker_edge.runtime.dino_pixels import DinoPixelRules, dino_pixels


@dataclass(frozen=True)
class DetectorGeometry:
    """What the runtime must know of the detector; the manifest carries it."""

    shortest_px: int
    longest_px: int
    least_px: int  # neither side is made smaller
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    queries: int
    max_text_len: int
    box_threshold: float

    @property
    def pixel_rules(self) -> DinoPixelRules:
        """The part of it that is about pixels."""
        return DinoPixelRules(self.shortest_px, self.longest_px, self.least_px, self.mean, self.std)


class Detector:
    """One open `detector.onnx`."""

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        geometry: DetectorGeometry,
        options: ort.SessionOptions | None = None,
    ) -> None:
        """Open the graph and its tokenizer.

        Raises:
            BundleError: the tokenizer is none of the detector's.
        """
        self._geometry = geometry
        self._tokenizer = CaptionTokenizer(tokenizer, geometry.max_text_len)
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def detect(
        self, pixels_HWC: NDArray[np.uint8], category: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Find the things of one category.

        Args:
            pixels_HWC: (height, width, 3) uint8, upright RGB.
            category: one phrase, such as "ball".

        Returns:
            boxes (N, 4) float32 in pixels of the upright original, and scores (N,) float32 above the
            threshold, in the model's order; N may be 0.

        Raises:
            TextError: no word is left of the category, or it has too many tokens.
        """
        logits, shares = self.raw(pixels_HWC, category)
        size = (pixels_HWC.shape[1], pixels_HWC.shape[0])
        return keep_candidates(logits, shares, size, self._geometry.box_threshold)

    def raw(
        self, pixels_HWC: NDArray[np.uint8], category: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the graph gives: logits (queries, tokens) and boxes (queries, 4) as shares of the picture."""
        caption = self._tokenizer.caption(category)
        logits, shares = self._session.run(
            ["logits", "pred_boxes"],
            {
                "pixel_values": dino_pixels(pixels_HWC, self._geometry.pixel_rules),
                "input_ids": caption.input_ids,
                "token_type_ids": caption.token_type_ids,
                "position_ids": caption.position_ids,
                "text_self_attention_mask": caption.self_attention_mask,
            },
        )
        return logits[0], shares[0]


def keep_candidates(
    logits: NDArray[np.float32], shares: NDArray[np.float32], size: Size, threshold: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries above the threshold, as boxes in pixels.

    Args:
        logits: (queries, tokens); shares: (queries, 4) centre-size as shares of the picture.
        size: (width, height) of the upright original.

    Returns:
        boxes (N, 4) float32 (x0, y0, x1, y1) within the picture, none without area, and scores (N,) float32.
    """
    scores = (1 / (1 + np.exp(-logits.max(axis=1).astype(np.float64)))).astype(np.float32)
    corners = np.concatenate([shares[:, :2] - shares[:, 2:] / 2, shares[:, :2] + shares[:, 2:] / 2], axis=1)
    limit = np.array(size * 2, dtype=np.float32)
    boxes = np.clip(corners * limit, 0, limit).astype(np.float32)
    kept = (scores > threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[kept], scores[kept]
