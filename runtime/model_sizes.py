"""Bytes and operations of a model's parts: of a bundle at hand, or of a published shape.

Layout    `decoder`, `vision`, `detector`: bytes of weights that one pass reads, and graph nodes.
Contract  A bundle's numbers come from its manifest and its graphs' headers. A shape's come from the
          configuration; its bytes assume int4 decoder (4.25 bits a weight with scale and zero point per 128),
          8-bit output layer and embeddings, 8-bit vision tower, bfloat16 detector.
Elsewhere times: roofline.py; reading headers: tiny_onnx.py.
Source    docs/sources.md#roofline
"""

from dataclasses import dataclass
from pathlib import Path

from rexthinker_edge.runtime import bundle as bundles
from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.tiny_onnx import Contents, read_contents

DETECTOR_FLOPS = 464e9  # Grounding DINO Swin-T, docs/sources.md#roofline
DETECTOR_PIXELS = 800 * 1333
DETECTOR_WEIGHTS = 172e6
FULL_LAYERS_SHARE = 1 / 8  # of the vision tower's layers attend among all patches: 4 of 32
WINDOW_PATCHES = 64
CHUNK_TOKENS = 512  # the prompt is read so many at a time


@dataclass(frozen=True)
class Part:
    """One graph: weights in bytes, how many numbers they stand for, and nodes."""

    bytes: int
    weights: float
    nodes: int


@dataclass(frozen=True)
class ModelSizes:
    """Everything a forecast needs."""

    name: str
    decoder: Part
    vision: Part
    detector: Part
    embedding_bytes: int
    layers: int
    hidden: int
    kv_width: int  # kv_heads * head_dim
    intermediate: int
    vocab: int
    vision_hidden: int
    vision_layers: int
    kv_number_bytes: int = 4

    def kv_bytes(self, tokens: float) -> float:
        """Keys and values of so many tokens."""
        return 2 * self.layers * self.kv_width * self.kv_number_bytes * tokens

    def token_flops(self, length: float) -> float:
        """Two operations per weight, and four per channel and earlier token for attention."""
        return 2 * self.decoder.weights + 4 * self.layers * self.hidden * length

    def prompt_flops(self, tokens: float) -> float:
        """As many tokens at once; the output layer is computed for the last one only."""
        body = self.decoder.weights - self.vocab * self.hidden
        attention = 4 * self.layers * self.hidden * tokens * tokens / 2
        return 2 * body * tokens + attention + 2 * self.vocab * self.hidden

    def vision_flops(self, image_tokens: int) -> float:
        """Four patches a token; most layers attend within windows."""
        patches = 4 * image_tokens
        full = self.vision_layers * FULL_LAYERS_SHARE
        looked = full * patches + (self.vision_layers - full) * min(WINDOW_PATCHES, patches)
        return 2 * self.vision.weights * patches + 4 * patches * self.vision_hidden * looked

    def detector_flops(self, pixels: int) -> float:
        """The published count, in proportion to the pixels and to the weights."""
        return DETECTOR_FLOPS * (pixels / DETECTOR_PIXELS) * (self.detector.weights / DETECTOR_WEIGHTS)

    def activation_bytes(self, image_tokens: int, detector_pixels: int) -> int:
        """The largest of the three graphs' working memories; they run one after the other.

        Decoder: a chunk's feed-forward and logits. Vision: the same of all patches. Detector: an
        estimate for Swin-T, in proportion to the pixels (docs/sources.md#roofline).
        """
        decoder = CHUNK_TOKENS * (3 * self.intermediate + 6 * self.hidden) * 4 + self.vocab * 4
        vision = 4 * image_tokens * self.vision_hidden * 16 * 4
        detector = 1_100_000_000 * detector_pixels / (800 * 1216) * self.detector.weights / DETECTOR_WEIGHTS
        return round(max(decoder, vision, detector))


def bundle_sizes(opened: Bundle) -> ModelSizes:
    """The sizes of an opened bundle.

    Raises:
        BundleError: a graph's header cannot be read.
    """
    shape, files = opened.manifest.decoder, opened.manifest.files
    contents = {
        name: read_contents(opened.file(name)) for name in (bundles.DECODER, bundles.VISION, bundles.DETECTOR)
    }
    intermediate = _rows(contents[bundles.DECODER], "model.layers.0.mlp.gate_proj")
    kv_width = shape.kv_heads * shape.head_dim
    a_layer = shape.hidden * (2 * shape.hidden + 2 * kv_width + 3 * intermediate)
    weights = shape.layers * a_layer + shape.vocab * shape.hidden
    vision = contents[bundles.VISION]
    blocks = {name.split(".")[2] for name in vision.weights if name.startswith("visual.blocks.")}

    def part(name: str, counted: float) -> Part:
        stem = Path(name).stem
        size = sum(entry.bytes for file, entry in files.items() if file in (name, f"{stem}.onnx.data"))
        return Part(size, counted, contents[name].nodes)

    return ModelSizes(
        name=opened.manifest.name,
        decoder=part(bundles.DECODER, weights),
        vision=part(bundles.VISION, _matrices(vision)),
        detector=part(bundles.DETECTOR, _matrices(contents[bundles.DETECTOR])),
        embedding_bytes=files[bundles.EMBEDDINGS].bytes,
        layers=shape.layers, hidden=shape.hidden, kv_width=kv_width, intermediate=intermediate,
        vocab=shape.vocab, vision_layers=len(blocks),
        vision_hidden=_rows(vision, "visual.blocks.0.attn.proj"),
    )  # fmt: skip


def _rows(contents: Contents, layer: str) -> int:
    """Output width of a layer: the rows of its weight, its bias or its scales, however it is stored."""
    for name in (f"{layer}.weight", f"{layer}.codes", f"{layer}.bias"):
        if name in contents.weights:
            shape = contents.weights[name]
            # 8-bit channel codes lie (in, out); a square layer has both alike
            return shape[-1] if name.endswith(".bias") else shape[0]
    return 0


def _matrices(contents: Contents) -> float:
    """Numbers in weights of two axes and more that a pass multiplies with; tables are left out."""
    total = 0
    for name, shape in contents.weights.items():
        if len(shape) >= 2 and not name.startswith(("rotary.", "constant_", "window")):
            count = 1
            for side in shape:
                count *= side
            total += count
    return float(total)


INT4_BITS = 4 + (32 + 4) / 128  # a code, and scale and zero point shared by 128


def _qwen(
    name: str, layers: int, hidden: int, kv_width: int, intermediate: int, vocab: int, vision_out: int
) -> ModelSizes:
    a_layer = hidden * (2 * hidden + 2 * kv_width + 3 * intermediate)
    head, body = vocab * hidden, layers * a_layer
    tower, depth, wide = 1280, 32, 3420
    merged = tower * 4
    vision = depth * tower * (4 * tower + 3 * wide) + merged * merged / 4 + merged * vision_out / 4
    stored = depth * tower * (4 * tower + 3 * wide) + merged * merged + merged * vision_out
    return ModelSizes(
        name=name,
        decoder=Part(round(body * INT4_BITS / 8 + head * (8 + 36 / 128) / 8), body + head, 20 * layers),
        vision=Part(round(stored), vision, 35 * depth),
        detector=Part(346_000_000, DETECTOR_WEIGHTS, 3_000),
        embedding_bytes=vocab * (hidden + 4),
        layers=layers, hidden=hidden, kv_width=kv_width, intermediate=intermediate, vocab=vocab,
        vision_hidden=tower, vision_layers=depth,
    )  # fmt: skip


SHAPES = {
    "3b": _qwen("Qwen2.5-VL-3B shape, int4", 36, 2048, 256, 11008, 151936, 2048),
    "7b": _qwen("Qwen2.5-VL-7B shape, int4", 28, 3584, 512, 18944, 152064, 3584),
    "32b": _qwen("Qwen2.5-VL-32B shape, int4", 64, 5120, 1024, 27648, 152064, 5120),
}
