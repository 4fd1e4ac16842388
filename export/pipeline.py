"""From two checkpoints to one bundle.

Contract  The bundle is filled beside its place and renamed into it when everything, the golden self-test
          included, has succeeded: a failure leaves what stood there before. Tensors are written one by one,
          so memory stays near the largest of them. A tensor that is not used makes the export fail.
Elsewhere the graphs: decoder_graph.py, vision_graph.py, detector_graph.py; the manifest: runtime/bundle.py.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import ModelConfig, TextConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.detector_graph import write_detector
from rexthinker_edge.export.golden import record_answers, write_pictures
from rexthinker_edge.export.quantize import IntegerRecipe, Precision, choose_block
from rexthinker_edge.export.source_files import model_card, read_settings, read_tokens
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime import bundle as bundles
from rexthinker_edge.runtime.bundle import FORMAT_VERSION, Manifest, seal, staged
from rexthinker_edge.runtime.errors import OptionError

DEFAULT_MAX_LENGTH = 8192
Progress = Callable[[str, int, int], None]  # what is done now, bytes done, bytes in all


@dataclass(frozen=True)
class ExportOptions:
    """What the caller may choose.

    Attributes:
        precision: of the decoder; vision tower and detector keep their weights.
        max_length: positions, prompt and answer together; None: 8,192 or the model's limit, if lower.
        block: columns that share an int4 scale, 16 to 256; None: 128 where it fits, else 32.
        accuracy_level: of MatMulNBits, 0 (float32 activations) or 4 (int8 activations, faster).
        overwrite: replace a bundle that stands at the target.
        name, source, revision, licence, notice: the model card; None: as the checkpoint says.
    """

    precision: Precision = Precision.FP32
    max_length: int | None = None
    block: int | None = None
    accuracy_level: int = 4
    overwrite: bool = False
    name: str | None = None
    source: str | None = None
    revision: str | None = None
    licence: str | None = None
    notice: str | None = None


def export_bundle(
    vlm_dir: Path, detector_dir: Path, out_dir: Path, options: ExportOptions, progress: Progress | None = None
) -> Manifest:
    """Write the bundle `out_dir` of a Qwen2.5-VL and a Grounding DINO checkpoint.

    Args:
        vlm_dir, detector_dir: Hugging Face checkpoint directories (safetensors, tokenizer.json).
        progress: called as bytes of the language model are read.

    Raises:
        ConfigError, CheckpointError: a checkpoint cannot be honoured.
        OptionError: an option does not fit the model.
        BundleError: the target exists and may not be replaced.
    """
    config = read_config(vlm_dir)
    prompt, card = read_settings(vlm_dir)
    given = {key: getattr(options, key) for key in ("name", "source", "revision", "licence", "notice")}
    card = model_card(card, given, default_name=out_dir.name)
    tokens = read_tokens(vlm_dir, config)
    length, recipe = chosen_length(config, options), chosen_recipe(config.text, options)
    checkpoint = Checkpoint(vlm_dir, progress)
    with staged(out_dir, overwrite=options.overwrite) as partial:
        vision = write_vision(checkpoint, config.vision, partial, prompt.max_pixels)
        decoder = write_decoder(checkpoint, config.text, partial, length, recipe)
        # A tied checkpoint may state the shared table a second time.
        checkpoint.refuse_unused(["lm_head.weight"] if config.text.tied else [])
        detector = write_detector(detector_dir, partial / bundles.DETECTOR)
        shutil.copyfile(vlm_dir / "tokenizer.json", partial / bundles.TOKENIZER)
        shutil.copyfile(detector_dir / "tokenizer.json", partial / bundles.DETECTOR_TOKENIZER)
        pictures = write_pictures(partial)
        manifest = Manifest(
            format_version=FORMAT_VERSION, name=card.name, model=card, prompt=prompt, tokens=tokens,
            vision=vision, decoder=decoder, detector=detector, files={},
            quantisation=described(recipe, decoder.embedding_dtype),
            calibration=None, targets=("cpu",), golden=(),
        )  # fmt: skip
        seal(partial, manifest)
        return seal(partial, replace(manifest, golden=record_answers(partial, pictures)))


def check_checkpoint(vlm_dir: Path, scratch: Path) -> ModelConfig:
    """The dry run: read configuration, settings, tokenizer and the shape of every tensor; nothing is written.

    Args:
        scratch: an empty directory for the graphs' few kilobytes.

    Raises:
        ConfigError, CheckpointError: as `export_bundle`.
    """
    config = read_config(vlm_dir)
    prompt, _ = read_settings(vlm_dir)
    read_tokens(vlm_dir, config)
    checkpoint = Checkpoint(vlm_dir)
    write_vision(checkpoint, config.vision, scratch, prompt.max_pixels, dry=True)
    write_decoder(checkpoint, config.text, scratch, 16, None, dry=True)
    checkpoint.refuse_unused(["lm_head.weight"] if config.text.tied else [])
    return config


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
        return None
    block = options.block or choose_block([config.hidden, config.intermediate])
    if block not in (16, 32, 64, 128, 256):
        raise OptionError(f"block: {block}, needed 16, 32, 64, 128 or 256. Leave it out for the usual one.")
    if options.accuracy_level not in (0, 4):
        raise OptionError(f"accuracy_level: {options.accuracy_level}, needed 0 or 4. Leave it out for 4.")
    return IntegerRecipe(block=block, accuracy_level=options.accuracy_level)


def described(recipe: IntegerRecipe | None, stored: str) -> dict[str, str]:
    """The manifest's words for how each graph's weights are stored."""
    kept = f"fp32, weights stored as {stored}"
    words = kept
    if recipe is not None:
        words = (
            f"int{recipe.bits} round-to-nearest, block {recipe.block}, accuracy level "
            f"{recipe.accuracy_level}; "
            f"output layer int{recipe.head_bits}; embeddings {stored}"
        )
    detector = "fp32, weights stored as bfloat16 where that is exact"
    return {bundles.DETECTOR: detector, bundles.VISION: kept, bundles.DECODER: words}


def describe_json(manifest: Manifest) -> str:
    """A line for scripts: name, bytes and recipe of the bundle."""
    total = sum(entry.bytes for entry in manifest.files.values())
    return json.dumps({"name": manifest.name, "bytes": total, "quantisation": manifest.quantisation})
