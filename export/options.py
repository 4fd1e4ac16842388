"""What the caller of an export may choose, what that comes to for a model, and the manifest's words for it.

Contract  An option that does not fit the model is refused before anything is written.
Elsewhere the command line's names for them: package/commands/export.py; calibration's own: calibrate.py;
          doing it: pipeline.py.
Source    docs/quantisation.md
"""

from dataclasses import dataclass
from pathlib import Path

from rexthinker_edge.export.calibrate import CalibrationOptions
from rexthinker_edge.export.config import ModelConfig, TextConfig
from rexthinker_edge.export.embeddings import EmbeddingPrecision
from rexthinker_edge.export.packed_checkpoint import PackedFormat
from rexthinker_edge.export.quantize import IntegerRecipe, Precision, choose_block, linear_shapes
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.errors import OptionError

DEFAULT_MAX_LENGTH = 8192


@dataclass(frozen=True)
class ExportOptions:
    """What the caller may choose.

    Attributes:
        precision: of the decoder.
        max_length: positions, prompt and answer together; None: 8,192 or the model's limit, if lower.
        block: columns that share an int4 scale, 16 to 256; None: 128 where it fits, else 32.
        accuracy_level: of MatMulNBits, 0 (float32 activations) or 4 (int8 activations, faster).
        head_bits: of the output layer where the decoder is in integers, 4 or 8.
        int8_layers: linear layers of every decoder layer, such as "v_proj", in 8 bits where the rest has 4.
        embeddings: of the token table: as stored, int8 with a scale a row, or int4 with one per 32 columns.
        calibration: choose the decoder's integers by GPTQ on samples; None: round to nearest.
        draft_traces, draft_count: also learn a draft table from so many traces, see calibration/draft_table.
        packed_dir, packed_format: also write the calibrated integers as a checkpoint for others.
        packed_head: its output layer, "values" or, in the GPTQ formats, "integers".
        vision: "fp32" or "int8", of the vision tower's linear layers.
        detector: "fp32", or "int8" in those linear layers that measurably do not move boxes.
        golden_questions: how many self-tests the bundle carries, 0 to 3; recording them asks the new bundle.
        golden_tokens: most tokens of a self-test's answer; None: the model's own limit.
        overwrite: replace a bundle that stands at the target.
        resume: go on behind the parts that an interrupted export of the same options finished.
        name, source, revision, licence, notice: the model card; None: as the checkpoint says.
    """

    precision: Precision = Precision.FP32
    max_length: int | None = None
    block: int | None = None
    accuracy_level: int = 4
    head_bits: int = 8
    int8_layers: tuple[str, ...] = ()
    embeddings: EmbeddingPrecision = EmbeddingPrecision.KEPT
    calibration: CalibrationOptions | None = None
    draft_traces: str | None = None
    draft_count: int = 1500
    packed_dir: Path | None = None
    packed_format: PackedFormat = PackedFormat.COMPRESSED
    packed_head: str = "values"
    vision: str = "fp32"
    detector: str = "fp32"
    golden_questions: int = 3
    golden_tokens: int | None = None
    overwrite: bool = False
    resume: bool = False
    name: str | None = None
    source: str | None = None
    revision: str | None = None
    licence: str | None = None
    notice: str | None = None


def chosen_length(config: ModelConfig, options: ExportOptions) -> int:
    """Positions of the rotary table; OptionError when the model cannot count so far."""
    limit = config.text.max_position_embeddings
    if options.max_length is None:
        return min(limit, DEFAULT_MAX_LENGTH)
    if not 0 < options.max_length <= limit:
        raise OptionError(
            f"max_length: {options.max_length:,}, needed 1 to {limit:,}, the model's limit. Give a "
            "smaller number."
        )
    return options.max_length


def chosen_recipe(config: TextConfig, options: ExportOptions) -> IntegerRecipe | None:
    """How the decoder's weights are rounded; None keeps them. OptionError on a block MatMulNBits has not."""
    if options.precision is Precision.FP32:
        _wide(config, options)
        if options.embeddings is not EmbeddingPrecision.KEPT and config.tied:
            raise OptionError(
                f"embeddings: {options.embeddings.value}, but the fp32 output layer is the same table. Give "
                "--precision int4, or keep the embeddings."
            )
        return None
    block = options.block or choose_block([config.hidden, config.intermediate])
    if block not in (16, 32, 64, 128, 256):
        raise OptionError(f"block: {block}, needed 16, 32, 64, 128 or 256. Leave it out for the usual one.")
    if options.accuracy_level not in (0, 4):
        raise OptionError(f"accuracy_level: {options.accuracy_level}, needed 0 or 4. Leave it out for 4.")
    if options.head_bits not in (4, 8):
        raise OptionError(f"head_bits: {options.head_bits}, needed 4 or 8. Leave it out for 8.")
    bits = 8 if options.precision is Precision.INT8 else 4
    return IntegerRecipe(bits, options.head_bits, block, options.accuracy_level, _wide(config, options))


def _wide(config: TextConfig, options: ExportOptions) -> tuple[str, ...]:
    """Linear layers that take 8 bits where the others take 4, in the layer's order; OptionError on others."""
    known = tuple(name.rpartition(".")[2] for name in linear_shapes(config))
    for name in options.int8_layers:
        if name not in known:
            raise OptionError(
                f"int8_layers: {name!r}, needed some of {', '.join(known)}. Name them with commas between."
            )
        if options.precision is not Precision.INT4:
            raise OptionError(
                f"int8_layers: {name!r}, of no use with precision {options.precision.value}, int4 is needed. "
                "Give --precision int4."
            )
    return tuple(name for name in known if name in options.int8_layers)


def described(
    recipe: IntegerRecipe | None,
    stored: str,
    vision: str = "fp32",
    detector_int8: int = 0,
    method: str = "round-to-nearest",
) -> dict[str, str]:
    """The manifest's words for how each graph's weights are stored.

    Args:
        detector_int8: linear layers of the detector that are 8-bit.
        method: how the decoder's integers came about.
    """
    kept = f"fp32, weights stored as {stored}"
    words = kept
    if recipe is not None:
        kinds = f" ({', '.join(recipe.wide)} int8)" if recipe.wide else ""
        words = (
            f"int{recipe.bits}{kinds} {method}, block {recipe.block}, accuracy level "
            f"{recipe.accuracy_level}; "
            f"output layer int{recipe.head_bits}; embeddings {stored}"
        )
    detector = "fp32, weights stored as bfloat16 where that is exact"
    if detector_int8:
        detector = f"int8 per channel in {detector_int8} linear layers, else {detector}"
    tower = kept if vision == "fp32" else "int8 per channel in all linear layers, activations int8 by rows"
    return {manifests.DETECTOR: detector, manifests.VISION: tower, manifests.DECODER: words}
