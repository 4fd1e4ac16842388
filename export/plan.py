"""What an export will take, before it begins: bytes of every part, memory, time; and if the disk has room.

Contract  Bytes follow from the configuration, the options and the tensors' stored dtypes alone and are those
          of the files to within their alignment (under 1 %; the detector's graph is estimated from its
          checkpoint). Memory and time are estimates: constants measured where docs/full-size.md says.
Elsewhere doing it: pipeline.py; whether a bundle fits a device: the `plan` command.
Source    docs/full-size.md#plan
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.embeddings import EmbeddingPrecision, embedding_bytes
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.runtime.errors import BundleError

READ_BYTES_A_SECOND = 300e6  # checkpoint read, bundle written and hashed
ROUNDED_A_SECOND = 60e6  # weights rounded to nearest by one core
DETECTOR_SECONDS = 60  # following the detector's graph, at Swin-T size
BASE_MEMORY_BYTES = 900_000_000  # Python with torch and ONNX loaded
DETECTOR_MEMORY_FACTOR = 12  # float32 weights, the traced graph, its protobuf, against bf16 bytes
SMALL_FILES_BYTES = 1_000_000  # manifest, self-test pictures
SPARE = 1.02  # of the disk asked for: file systems have their own tables


@dataclass(frozen=True)
class PlannedPart:
    """One part of a bundle and its bytes on disk."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """What an export will take."""

    parts: tuple[PlannedPart, ...]
    read_bytes: int
    memory_bytes: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Of the whole bundle."""
        return sum(part.bytes for part in self.parts)

    def lines(self) -> list[str]:
        """The plan as a table of text."""
        rows = [f"{part.name:<24}{part.bytes / 1e6:>12,.1f} MB" for part in self.parts]
        return [
            *rows,
            f"{'bundle':<24}{self.bytes / 1e6:>12,.1f} MB",
            f"{'read':<24}{self.read_bytes / 1e6:>12,.1f} MB",
            f"{'memory, about':<24}{self.memory_bytes / 1e6:>12,.0f} MB",
            f"{'time, about':<24}{self.seconds / 60:>12,.1f} min (without the self-test)",
        ]


def plan_export(
    checkpoint: Checkpoint, detector_dir: Path, config: TextConfig, recipe: IntegerRecipe | None,
    embeddings: EmbeddingPrecision, positions: int,
    int8: bool = False,
) -> ExportPlan:  # fmt: skip
    """Sizes, memory and time of exporting `checkpoint` so.

    Args:
        recipe: of the decoder; None keeps its weights.
        positions: rows of the rotary table.
        int8: the vision tower's linear layers in 8 bits.
    """
    table = checkpoint.shape_and_bytes("model.embed_tokens.weight")
    own_head = not config.tied and "lm_head.weight" in checkpoint  # if it is quantised, of the same shape
    head = checkpoint.shape_and_bytes("lm_head.weight") if own_head else table
    layers, rounded = 4 * positions * config.head_dim, 0
    for name in checkpoint.names("model.layers."):
        bits = None if recipe is None else recipe.bits_of(name.removesuffix(".weight"))
        size, count = _stored(checkpoint, name, recipe, bits)
        layers, rounded = layers + size, rounded + count
    vision = sum(
        _vision_bytes(*checkpoint.shape_and_bytes(name), int8) for name in checkpoint.names("visual.")
    )
    if recipe is not None:
        output = integer_bytes(head[0], recipe.head_bits, recipe.block)
        rounded += head[0][0] * head[0][1]
    else:
        output = 0 if config.tied else head[1]
    kept = embeddings is EmbeddingPrecision.KEPT
    stored = table[1] if kept else embedding_bytes(table[0][0], table[0][1], embeddings)
    detector = sum(path.stat().st_size for path in detector_dir.glob("*.safetensors"))
    parts = (
        PlannedPart("vision tower", vision), PlannedPart("decoder layers", layers),
        PlannedPart("output layer", output), PlannedPart("embeddings", stored),
        PlannedPart("detector", detector),
        PlannedPart("tokenizers, self-test", _tokenizers(checkpoint.directory, detector_dir)),
    )  # fmt: skip
    total = sum(part.bytes for part in parts)
    read = checkpoint.bytes + detector
    largest = max(count for count in [*map(_count, (table[0], head[0])), *_counts(checkpoint)])
    seconds = (read + 3 * total) / READ_BYTES_A_SECOND + rounded / ROUNDED_A_SECOND + DETECTOR_SECONDS
    # Integers of the largest weight unpacked and packed, and the checkpoint's bytes of it. The self-test
    # holds the bundle once mapped and once as ONNX Runtime packs it, less the table.
    export = 4 * largest
    self_test = 2 * total - stored
    memory = BASE_MEMORY_BYTES + max(export, DETECTOR_MEMORY_FACTOR * detector, self_test)
    return ExportPlan(parts, read, memory, seconds)


def integer_bytes(shape: tuple[int, ...], bits: int, block: int) -> int:
    """Bytes of an (out, in) weight as MatMulNBits stores it: codes, float32 scales, zero points."""
    rows, columns = shape
    blocks = -(-columns // block)
    return rows * (blocks * (block * bits // 8 + 4) + -(-blocks * bits // 8))


def check_disk(plan: ExportPlan, directory: Path, present: int = 0) -> None:
    """BundleError when the file system of `directory` cannot hold the bundle.

    Args:
        present: bytes of it that are there already.
    """
    needed = int((plan.bytes - present) * SPARE)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise BundleError(
            f"{directory}: {free / 1e9:,.2f} GB free on this disk, the export needs "
            f"{needed / 1e9:,.2f} GB. Free some space, or name --out on another disk."
        )


def existing_parent(path: Path) -> Path:
    """The nearest directory above `path` that is there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _stored(
    checkpoint: Checkpoint, name: str, recipe: IntegerRecipe | None, bits: int | None
) -> tuple[int, int]:
    """Bytes of one tensor of a decoder layer in the bundle, and how many of its numbers are rounded."""
    shape, stored = checkpoint.shape_and_bytes(name)
    if recipe is None or bits is None or len(shape) != 2:
        return stored, 0
    return integer_bytes(shape, bits, recipe.block), _count(shape)


def _vision_bytes(shape: tuple[int, ...], stored: int, int8: bool) -> int:
    """One tensor of the vision tower: int8 stores a scale for every output channel beside the codes."""
    return shape[0] * (shape[1] + 4) if int8 and len(shape) == 2 else stored


def _counts(checkpoint: Checkpoint) -> list[int]:
    return [_count(checkpoint.shape_and_bytes(name)[0]) for name in checkpoint.names("model.layers.0.")]


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _tokenizers(*directories: Path) -> int:
    files = [directory / "tokenizer.json" for directory in directories]
    return SMALL_FILES_BYTES + sum(file.stat().st_size for file in files if file.is_file())
