"""Bytes and operations of a model's parts: of a bundle at hand, or of a published shape.

Layout    `decoder`, `vision`, `detector`: bytes of weights that one pass reads, and graph nodes.
Contract  Bytes are those that a pass reads: 4 a weight in float32, which files may store in 2, and the codes
          with their scales where a layer is in integers. A bundle's numbers come from its manifest and its
          graphs' headers; a published shape's from the configuration and a `ShapeRecipe`. On a GPU its
          float32 parts run in half precision: 2 bytes a weight.
Elsewhere times: roofline.py; reading headers: tiny_onnx.py.
Source    docs/sources.md#roofline
"""

import math
from dataclasses import dataclass

from rexthinker_edge.runtime import manifest as manifests
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


@dataclass(frozen=True)
class ShapeRecipe:
    """How a published shape would be exported; the words are those of `export`'s options.

    Attributes:
        precision: of the decoder, "int4" or "int8", in blocks of 128.
        head_bits: of the output layer, 4 or 8.
        embeddings: "kept" (bfloat16), "int8" or "int4".
        vision, detector: "fp32" or "int8"; the detector's in all layers that might be (docs/detector.md):
            how many do not move its boxes is measured at export.
        float_bytes: of a weight in floating point, 4 on a CPU and 2 on a GPU.
    """

    precision: str = "int4"
    head_bits: int = 8
    embeddings: str = "int8"
    vision: str = "int8"
    detector: str = "fp32"
    float_bytes: int = 4


def bundle_sizes(opened: Bundle) -> ModelSizes:
    """The sizes of an opened bundle.

    Raises:
        BundleError: a graph's header cannot be read.
    """
    shape, files = opened.manifest.decoder, opened.manifest.files
    # What a pass reads is told by the weights' shapes: files may store float32 numbers in half the bytes.
    graphs = [manifests.DECODER, manifests.VISION, manifests.DETECTOR]
    contents = {name: read_contents(opened.file(name)) for name in graphs}
    if manifests.DETECTOR_TEXT in files:  # one detector, in two graphs
        contents[manifests.DETECTOR] = _both(
            contents[manifests.DETECTOR], read_contents(opened.file(manifests.DETECTOR_TEXT))
        )
    intermediate = _rows(contents[manifests.DECODER], "model.layers.0.mlp.gate_proj")
    kv_width = shape.kv_heads * shape.head_dim
    a_layer = shape.hidden * (2 * shape.hidden + 2 * kv_width + 3 * intermediate)
    weights = shape.layers * a_layer + shape.vocab * shape.hidden
    vision = contents[manifests.VISION]
    blocks = {name.split(".")[2] for name in vision.weights if name.startswith("visual.blocks.")}

    def part(name: str, counted: float) -> Part:
        return Part(_bytes_read(contents[name]), counted, contents[name].nodes)

    return ModelSizes(
        name=opened.manifest.name,
        decoder=part(manifests.DECODER, weights),
        vision=part(manifests.VISION, _matrices(vision)),
        detector=part(manifests.DETECTOR, _matrices(contents[manifests.DETECTOR])),
        embedding_bytes=files[manifests.EMBEDDINGS].bytes,
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


def _both(picture: Contents, text: Contents) -> Contents:
    weights = picture.weights | {f"text.{name}": shape for name, shape in text.weights.items()}
    return Contents(picture.nodes + text.nodes, weights)


def _bytes_read(contents: Contents) -> int:
    """Bytes of all weights as a pass reads them: codes and zero points one each, all others as float32."""
    total = 0
    for name, shape in contents.weights.items():
        if not name.startswith(("rotary.", "constant_")):
            total += math.prod(shape) * (1 if name.endswith((".codes", ".zeros")) else 4)
    return total


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


DETECTOR_ROUNDED_WEIGHTS = 35.9e6  # of the 97 layers that may be in 8 bits, docs/detector.md


@dataclass(frozen=True)
class _Qwen:
    """One published shape of the language model; the vision tower is the same in all but its last layer."""

    title: str
    layers: int
    hidden: int
    kv_width: int
    intermediate: int
    vocab: int


_QWEN = {
    "3b": _Qwen("Qwen2.5-VL-3B shape", 36, 2048, 256, 11008, 151936),
    "7b": _Qwen("Qwen2.5-VL-7B shape", 28, 3584, 512, 18944, 152064),
    "32b": _Qwen("Qwen2.5-VL-32B shape", 64, 5120, 1024, 27648, 152064),
}
TOWER, TOWER_DEPTH, TOWER_WIDE = 1280, 32, 3420


def published_shape(name: str, recipe: ShapeRecipe | None = None) -> ModelSizes:
    """The sizes of a shape in `SHAPES` as `recipe` would export it."""
    shape, made = _QWEN[name], recipe or ShapeRecipe()
    a_layer = shape.hidden * (2 * shape.hidden + 2 * shape.kv_width + 3 * shape.intermediate)
    head, body = shape.vocab * shape.hidden, shape.layers * a_layer
    merged, blocks = TOWER * 4, TOWER_DEPTH * TOWER * (4 * TOWER + 3 * TOWER_WIDE)
    # merged patches are a quarter as many as patches
    vision = blocks + merged * merged / 4 + merged * shape.hidden / 4
    stored = blocks + merged * merged + merged * shape.hidden
    layer_bits = _bits(4 if made.precision == "int4" else 8)
    rounded = DETECTOR_ROUNDED_WEIGHTS if made.detector == "int8" else 0
    detector = (DETECTOR_WEIGHTS - rounded) * made.float_bytes + rounded
    decoder = body * layer_bits + head * _bits(made.head_bits)
    vision_bytes = stored * (1 if made.vision == "int8" else made.float_bytes)
    row = {"kept": 2 * shape.hidden, "int8": shape.hidden + 4, "int4": shape.hidden * 9 // 16}
    return ModelSizes(
        name=f"{shape.title}, {made.precision}",
        decoder=Part(round(decoder / 8), body + head, 20 * shape.layers),
        vision=Part(round(vision_bytes), vision, 35 * TOWER_DEPTH),
        detector=Part(round(detector), DETECTOR_WEIGHTS, 2_100),
        embedding_bytes=shape.vocab * row[made.embeddings],
        layers=shape.layers, hidden=shape.hidden, kv_width=shape.kv_width, intermediate=shape.intermediate,
        vocab=shape.vocab, vision_hidden=TOWER, vision_layers=TOWER_DEPTH,
    )  # fmt: skip


def _bits(codes: int) -> float:
    """Of a weight, with its share of a float32 scale and a zero point per 128."""
    return codes + (32 + codes) / 128


SHAPES = {name: published_shape(name, ShapeRecipe(float_bytes=2)) for name in _QWEN}
