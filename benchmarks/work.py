"""Bytes and operations of one stage, read off the bundle's own graphs.

What      Detector and vision tower are run once with ONNX Runtime's profiler, without packing; it states the
          shapes that every node really met, and the bytes of its weights. The decoder's come from its file's
          header and the manifest (runtime/model_sizes.py): a 7B pass without packing takes ten seconds.
Contract  Counted are products: of matrices, convolutions, attention. Two operations a multiplication and
          addition. What is not a product (norms, activations, moving data) counts nothing, so a ceiling made
          of this is never too slow. Products of integers are `int8_ops`, all others `fp32_ops`.
          Bytes are weights as they lie in memory, each once a run; activations count nothing.
Elsewhere rates: ceilings.py; who asks: speed.py.
Source    docs/benchmarks.md#ceilings
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.detector import Detector
from rexthinker_edge.runtime.manifest import DECODER, DETECTOR, DETECTOR_TOKENIZER, VISION
from rexthinker_edge.runtime.model_sizes import ModelSizes, bundle_sizes
from rexthinker_edge.runtime.qwen_pixels import VisionInput
from rexthinker_edge.runtime.vision import VisionTower

Shape = Sequence[int]
TABLES = ("Gather", "GatherElements", "MRotaryEmbedding")  # of whose constants rows are read, not all
FLOAT_LEVEL = "0"  # MatMulNBits's accuracy level that multiplies in float32


@dataclass(frozen=True)
class Work:
    """What one run of a stage takes at least."""

    bytes: float = 0.0
    int8_ops: float = 0.0
    fp32_ops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.int8_ops + other.int8_ops, self.fp32_ops + other.fp32_ops)


def _product(inputs: Sequence[Shape], output: Shape) -> float:
    """Rows of the left side times the right: its last axis is the one summed over."""
    return 2.0 * math.prod(output) * inputs[0][-1]


def _gemm(inputs: Sequence[Shape], output: Shape) -> float:
    """Either side may be transposed: the side summed over is the one that the output lacks."""
    return 2.0 * math.prod(output) * math.prod(inputs[0]) / output[0]


def _convolution(inputs: Sequence[Shape], output: Shape) -> float:
    """A kernel (out, in / groups, height, width) at every cell of the output."""
    weight = next(shape for shape in inputs[1:] if len(shape) == len(output))
    return 2.0 * math.prod(output) * math.prod(weight[1:])


def _attention(inputs: Sequence[Shape], output: Shape) -> float:
    """Scores and their weighted sum, (batch, rows, width) against (batch, columns, width)."""
    return 4.0 * math.prod(inputs[0]) * inputs[1][1]


Count = Callable[[Sequence[Shape], Shape], float]
FLOATS: dict[str, Count] = {
    "MatMul": _product, "FusedMatMul": _product, "Gemm": _gemm, "FusedGemm": _gemm, "Conv": _convolution,
    "FusedConv": _convolution, "MultiHeadAttention": _attention,
}  # fmt: skip
INTEGERS: dict[str, Count] = {
    "MatMulInteger": _product, "DynamicQuantizeMatMul": _product, "MatMulIntegerToFloat": _product,
    "MatMulNBits": _product,
}  # fmt: skip


def node_work(op: str, inputs: Sequence[Shape], output: Shape, weights: float, integers: bool = True) -> Work:
    """One node's work, by the shapes it met.

    Args:
        weights: bytes of its constant inputs.
        integers: whether MatMulNBits multiplies integers.
    """
    floats, whole = FLOATS.get(op), INTEGERS.get(op)
    if floats is not None:
        return Work(weights, 0.0, floats(inputs, output))
    if whole is None:
        return Work(weights)
    operations = whole(inputs, output)
    if op == "MatMulNBits" and not integers:
        return Work(weights, 0.0, operations)
    return Work(weights, operations)


def profile_work(events: Iterable[Mapping[str, Any]]) -> Work:
    """The sum over one run's nodes in ONNX Runtime's profile.

    Tables of which a node reads some rows do not count.
    """
    total = Work()
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            told = event["args"]
            inputs, outputs = _shapes(told["input_type_shape"]), _shapes(told["output_type_shape"])
            weights = 0.0 if told["op_name"] in TABLES else float(told["parameter_size"])
            if inputs and outputs:
                total += node_work(told["op_name"], inputs, outputs[0], weights)
    return total


def _shapes(told: Iterable[Mapping[str, Shape]]) -> list[Shape]:
    return [shape for typed in told for shape in typed.values()]


class Counted:
    """A session that is profiled until `work` is called; weights are mapped, not packed."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._scratch.name) / "run")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def work(self) -> Work:
        """What all runs so far took; the session is of no use afterwards."""
        profile = Path(self.session.end_profiling())
        events = json.loads(profile.read_text("utf-8"))
        self._scratch.cleanup()
        return profile_work(events)


def detector_work(
    opened: Bundle, pixels_HWC: NDArray[np.uint8], category: str, threads: int | None = None
) -> Work:
    """What the detector does for one picture; its text branch, kept between pictures, is left out."""
    counted = Counted(opened.file(DETECTOR), threads)
    tokens = opened.file(DETECTOR_TOKENIZER)
    detector = Detector(opened.file(DETECTOR), tokens, opened.manifest.detector, session=counted.session)
    detector.detect(pixels_HWC, category)
    return counted.work()


def vision_work(opened: Bundle, vision: VisionInput, threads: int | None = None) -> Work:
    """What the vision tower does for one picture."""
    counted = Counted(opened.file(VISION), threads)
    VisionTower(opened.file(VISION), opened.manifest.vision, session=counted.session).encode(vision)
    return counted.work()


@dataclass(frozen=True)
class DecoderWork:
    """What passes of a decoder take."""

    sizes: ModelSizes
    weight_bytes: float  # as they lie in memory
    integers: bool

    def passes(self, computed: int, past: int, chunk: int, rows: int = 1) -> Work:
        """Reading `computed` tokens behind `past` ones, a chunk a pass, with logits of `rows`.

        A token sees itself and all before it; keys and values are read once a pass.
        """
        sizes = self.sizes
        head = sizes.vocab * sizes.hidden
        body = sizes.decoder.weights - head
        passes = max(1, -(-computed // chunk))
        seen = computed * past + computed * (computed + 1) / 2
        products = 2.0 * (body * computed + head * rows)
        # All query heads together are as wide as the residual stream, in every model of this kind.
        attention = 4.0 * sizes.layers * sizes.hidden * seen
        kept = sum(sizes.kv_bytes(min(past + (step + 1) * chunk, past + computed)) for step in range(passes))
        read = self.weight_bytes * passes + kept
        if self.integers:
            return Work(read, products, attention)
        return Work(read, 0.0, products + attention)


def decoder_work(opened: Bundle) -> DecoderWork:
    """The decoder of a bundle: weights that are computed in float32 lie so in memory, however stored."""
    sizes, manifest = bundle_sizes(opened), opened.manifest
    words = manifest.quantisation.get(DECODER, "")
    if not words.startswith("int"):
        return DecoderWork(sizes, 4.0 * sizes.decoder.weights, False)
    rotary = 4 * manifest.decoder.max_length * manifest.decoder.head_dim  # a table: a row of it is read
    level = words.partition("accuracy level ")[2][:1]
    return DecoderWork(sizes, float(manifest.files[f"{DECODER}.data"].bytes - rotary), level != FLOAT_LEVEL)
