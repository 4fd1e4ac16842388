"""The detector: a picture and a category in, candidate boxes out.

Layout    `detector-text.onnx` takes a caption; what it gives is kept, so that a category that comes again
          costs nothing. `detector.onnx` takes the picture at its true size, the tables that this size decides
          (kept likewise) and the caption's features; it gives, for each query, a logit per caption token and
          a box (centre x, centre y, width, height) as shares of the picture. Bundles made before 0.2 have one
          graph for both, and no tables; they run as they did.
Contract  As transformers' `post_process_grounded_object_detection`: a query's score is its best token's
          sigmoid, kept above the threshold; no NMS; the model's order is kept. Boxes are clamped to the
          picture. The text threshold only words labels, and a caption of one phrase has one label.
          What is kept is found again by all of a caption's token ids, or by the picture's exact size.
Elsewhere resizing: dino_pixels.py; text: caption.py; tables: detector_tables.py; the graphs:
          export/detector_graph.py.
Source    docs/sources.md#detector
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.caption import Caption, CaptionTokenizer
from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.detector_tables import TableRules, make_tables
from rexthinker_edge.runtime.dino_pixels import DinoPixelRules, dino_pixels
from rexthinker_edge.runtime.kept import Kept

KEPT_CAPTIONS = 64  # up to 256 tokens of 256 floats, twice, and their mask: 50 MB at most, 1 MB as a rule
KEPT_SIZES = 4  # 40 MB each at 800 x 1216


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
    tables: TableRules | None = None  # None: one graph from pixels and token ids, of a bundle before 0.2
    int8: tuple[str, ...] = ()  # linear layers with 8-bit weights

    @property
    def pixel_rules(self) -> DinoPixelRules:
        """The part of it that is about pixels."""
        return DinoPixelRules(self.shortest_px, self.longest_px, self.least_px, self.mean, self.std)


def text_path(path: Path) -> Path:
    """Where the text branch of the graph at `path` lies."""
    return path.with_name(f"{path.stem}-text.onnx")


class Detector:
    """An open `detector.onnx` with its text branch."""

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        geometry: DetectorGeometry,
        options: ort.SessionOptions | None = None,
        session: Any = None,
        text: Any = None,
    ) -> None:
        """Open the graphs and the tokenizer.

        Args:
            session: runs the graph at `path` instead of one opened here, such as an engine.
            text: likewise the text branch.

        Raises:
            BundleError: the tokenizer is none of the detector's.
        """
        self._geometry = geometry
        self._tokenizer = CaptionTokenizer(tokenizer, geometry.max_text_len)
        self._session = open_graph(path, options) if session is None else session
        self._text = text
        if text is None and geometry.tables is not None:
            self._text = open_graph(text_path(path), options)
        self._asked = {given.name for given in self._session.get_inputs()}
        self._captions = Kept[tuple[int, ...], Mapping[str, Any]](KEPT_CAPTIONS)
        self._sizes = Kept[Size, Mapping[str, Any]](KEPT_SIZES)

    def detect(
        self, pixels_HWC: NDArray[np.uint8], category: str, deadline: Deadline = NEVER
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
            DeadlinePassed: the deadline came first.
        """
        logits, shares = self.raw(pixels_HWC, category, deadline)
        size = (pixels_HWC.shape[1], pixels_HWC.shape[0])
        return keep_candidates(logits, shares, size, self._geometry.box_threshold)

    def raw(
        self, pixels_HWC: NDArray[np.uint8], category: str, deadline: Deadline = NEVER
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the graph gives: logits (queries, tokens) and boxes (queries, 4) as shares of the picture."""
        caption = self._tokenizer.caption(category)
        pixels = dino_pixels(pixels_HWC, self._geometry.pixel_rules)
        deadline.check()
        feeds = self._old_feeds(caption) if self._text is None else self.feeds(pixels, caption, deadline)
        with deadline.running() as options:
            logits, shares = self._session.run(
                ["logits", "pred_boxes"], {"pixel_values": pixels, **feeds}, options
            )
        return logits.reshape(self._geometry.queries, -1), shares.reshape(-1, 4)

    def feeds(
        self, pixels: NDArray[np.float32], caption: Caption, deadline: Deadline = NEVER
    ) -> dict[str, NDArray[Any]]:
        """Every input of the graph for pixels (1, 3, height, width) and a caption."""
        rules = self._geometry.tables
        assert rules is not None
        padded = whole_patches(pixels, rules.patch)
        height, width = padded.shape[2:]
        tables = self._sizes.get((width, height), lambda: self._tables(height, width, rules))
        ids = tuple(int(token) for token in caption.input_ids[0])
        words = self._captions.get(ids, lambda: self._words(caption, deadline))
        return {**tables, **words, "pixel_values": padded}

    def _tables(self, height: int, width: int, rules: TableRules) -> dict[str, NDArray[Any]]:
        made = make_tables(height, width, rules)
        return {name: table for name, table in made.items() if name in self._asked}

    def _words(self, caption: Caption, deadline: Deadline) -> dict[str, NDArray[np.float32]]:
        """Run the text branch."""
        assert self._text is not None
        bias = np.where(caption.self_attention_mask[0], np.float32(0), np.finfo(np.float32).min)
        feeds = {
            "input_ids": caption.input_ids[0], "position_ids": caption.position_ids[0], "text_bias": bias
        }  # fmt: skip
        with deadline.running() as options:
            text, positions = self._text.run(["text", "text_positions"], feeds, options)
        return {"text": text, "text_positions": positions, "text_bias": bias}

    @staticmethod
    def _old_feeds(caption: Caption) -> dict[str, NDArray[Any]]:
        return {
            "input_ids": caption.input_ids,
            "token_type_ids": caption.token_type_ids,
            "position_ids": caption.position_ids,
            "text_self_attention_mask": caption.self_attention_mask,
        }


def open_graph(path: Path, options: ort.SessionOptions | None) -> ort.InferenceSession:
    """One of the detector's two graphs, on the CPU."""
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def whole_patches(pixels: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """(1, 3, H, W) with zeros to the right and below, up to multiples of the patch."""
    down, right = (-side % patch for side in pixels.shape[2:])
    return np.pad(pixels, ((0, 0), (0, 0), (0, down), (0, right))) if down or right else pixels


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
