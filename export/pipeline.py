"""From two checkpoints to one bundle.

Contract  The bundle is filled beside its place and renamed into it when everything, the golden self-test
          included, has succeeded: a failure leaves what stood there before. Work is done in parts; a finished
          part is journalled, and `resume` goes on behind it. Tensors are written one by one, so memory stays
          near the largest of them. A tensor that is not used makes the export fail.
Elsewhere the graphs: decoder_graph.py, vision_graph.py, detector_graph.py; the manifest: runtime/bundle.py;
          finished parts: journal.py; what it will take: plan.py.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rexthinker_edge.calibration.draft_table import Learnt, write_table
from rexthinker_edge.export.calibrate import CalibrationOptions, calibrate, check_integers, method
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import ModelConfig, TextConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.detector_graph import read_geometry, write_detector
from rexthinker_edge.export.detector_int8 import detector_layers
from rexthinker_edge.export.embeddings import EmbeddingPrecision, write_embeddings
from rexthinker_edge.export.golden import record_answers, write_pictures
from rexthinker_edge.export.journal import Journal, has_parts, held, source_fingerprint
from rexthinker_edge.export.packed_checkpoint import PackedFormat, open_weights, packed_format, write_packed
from rexthinker_edge.export.plan import ExportPlan, check_disk, existing_parent, plan_export
from rexthinker_edge.export.quantize import IntegerRecipe, Precision, Saved, Weights, choose_block
from rexthinker_edge.export.source_files import model_card, read_settings, read_tokens
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import check_target, seal, staged
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.manifest import FORMAT_VERSION, CalibrationCard, DraftCard, Golden, Manifest
from rexthinker_edge.runtime.strict_json import to_json
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionGeometry

DEFAULT_MAX_LENGTH = 8192
Progress = Callable[[str, int, int], None]  # what is done now, bytes done, bytes in all


@dataclass(frozen=True)
class ExportOptions:
    """What the caller may choose.

    Attributes:
        precision: of the decoder.
        max_length: positions, prompt and answer together; None: 8,192 or the model's limit, if lower.
        block: columns that share an int4 scale, 16 to 256; None: 128 where it fits, else 32.
        accuracy_level: of MatMulNBits, 0 (float32 activations) or 4 (int8 activations, faster).
        head_bits: of the output layer where the decoder is in integers, 4 or 8.
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


@dataclass(frozen=True)
class GoldenAnswers:
    """The self-test, as the journal keeps it."""

    answers: tuple[Golden, ...]


@dataclass(frozen=True)
class _Work:
    """One export under way: sources, choices and where its files go."""

    vlm_dir: Path
    detector_dir: Path
    partial: Path
    journal: Journal
    options: ExportOptions
    config: ModelConfig
    checkpoint: Checkpoint
    recipe: IntegerRecipe | None
    max_pixels: int


def export_bundle(
    vlm_dir: Path, detector_dir: Path, out_dir: Path, options: ExportOptions, progress: Progress | None = None
) -> Manifest:
    """Write the bundle `out_dir` of a Qwen2.5-VL and a Grounding DINO checkpoint.

    Args:
        vlm_dir, detector_dir: Hugging Face checkpoint directories (safetensors, tokenizer.json).
        progress: called as bytes of the language model are read.

    Raises:
        ConfigError, CheckpointError: a checkpoint cannot be honoured.
        OptionError: an option does not fit the model, or there is nothing such to resume.
        BundleError: the target exists and may not be replaced, the disk is too small, or another export to
            the same place is running.
    """
    config = read_config(vlm_dir)
    prompt, card = read_settings(vlm_dir)
    given = {key: getattr(options, key) for key in ("name", "source", "revision", "licence", "notice")}
    card = model_card(card, given, default_name=out_dir.name)
    tokens = read_tokens(vlm_dir, config)
    length, recipe = chosen_length(config, options), chosen_recipe(config.text, options)
    layout = packed_format(vlm_dir)
    check_integers(layout, recipe, options.calibration, options.packed_dir)
    checkpoint = Checkpoint(vlm_dir, progress)
    plan = plan_export(
        checkpoint, detector_dir, config.text, recipe, options.embeddings, length, options.vision == "int8"
    )
    sources = {"checkpoint": source_fingerprint(vlm_dir), "detector": source_fingerprint(detector_dir)}
    with _staging(out_dir.absolute(), options, sources) as (partial, journal):
        check_disk(plan, partial, sum(entry.bytes for entry in journal.entries().values()))
        work = _Work(
            vlm_dir, detector_dir, partial, journal, options, config, checkpoint, recipe, prompt.max_pixels
        )
        decoder, detector, vision = _decoder(work, length), _detector(work), _vision(work)
        learnt = _drafts(work, decoder.vocab, tokens.eos[0])
        manifest = Manifest(
            format_version=FORMAT_VERSION, name=card.name, model=card, prompt=prompt, tokens=tokens,
            vision=vision, decoder=decoder, detector=detector, files={},
            quantisation=described(
                recipe, decoder.embedding_dtype, options.vision, len(detector.int8),
                method(layout, options.calibration),
            ),
            calibration=_calibration(work, length), targets=("cpu",), golden=(),
            drafts=None if learnt is None else DraftCard(**asdict(learnt)),
        )  # fmt: skip
        golden = _golden(work, manifest)
        return seal(partial, replace(manifest, golden=golden.answers), journal.entries())


@contextmanager
def _staging(
    out_dir: Path, options: ExportOptions, sources: dict[str, Any]
) -> Iterator[tuple[Path, Journal]]:
    """The directory to fill and the journal of what is in it; both stay behind where a part was finished."""
    work_dir = out_dir.with_name(f".{out_dir.name}.work")
    fingerprint = {
        "version": version("rexthinker-edge"), "format": FORMAT_VERSION, **sources
    }  # fmt: skip
    check_target(out_dir, options.overwrite)
    with held(work_dir):
        partial, finished = out_dir, False
        try:
            with staged(out_dir, overwrite=options.overwrite, keep=True) as partial:
                journal = Journal(work_dir, partial, fingerprint, options.resume)
                journal.keep_only_finished()
                yield partial, journal
            finished = True
        finally:
            if finished or not has_parts(work_dir):
                shutil.rmtree(work_dir, ignore_errors=True)
                if partial != out_dir:
                    shutil.rmtree(partial, ignore_errors=True)


def _decoder(work: _Work, length: int) -> DecoderGeometry:
    def make() -> DecoderGeometry:
        text = work.config.text
        weights = _weights(work, length)
        made = write_decoder(work.checkpoint, text, work.partial, length, work.recipe, weights=weights)
        # A tied checkpoint may state the shared table a second time.
        work.checkpoint.refuse_unused(["lm_head.weight"] if text.tied else [], but="visual.")
        if work.options.embeddings is EmbeddingPrecision.KEPT:
            return made
        table = work.checkpoint.tensor("model.embed_tokens.weight", (text.vocab, text.hidden))
        stored = write_embeddings(table, work.partial / manifests.EMBEDDINGS, work.options.embeddings)
        return replace(made, embedding_dtype=stored)

    depends = {
        "recipe": None if work.recipe is None else asdict(work.recipe), "length": length,
        "embeddings": work.options.embeddings,
        "calibration": _calibration_options(work.options),
    }  # fmt: skip
    return work.journal.part(
        "decoder", DecoderGeometry, (manifests.DECODER, manifests.EMBEDDINGS), depends, make
    )


def _calibration_options(options: ExportOptions) -> dict[str, Any] | None:
    return None if options.calibration is None else asdict(options.calibration)


def _weights(work: _Work, length: int) -> Weights | None:
    """Where the decoder's linear layers come from; None: from the checkpoint, as the recipe says."""
    layout = packed_format(work.vlm_dir)
    if layout is not None and work.recipe is not None:
        return open_weights(work.checkpoint, layout, work.recipe)
    if _calibration(work, length) is None:
        return None
    saved = Saved(work.checkpoint, _scratch(work))
    if work.options.packed_dir is not None:
        assert work.options.calibration is not None, "packed_dir is refused without calibration"
        write_packed(
            work.checkpoint, work.config.text, saved, work.options.packed_format, work.options.packed_dir,
            work.options.calibration.symmetric, work.options.packed_head == "integers",
        )  # fmt: skip
    return saved


def _calibration(work: _Work, length: int) -> CalibrationCard | None:
    """Round the decoder on samples, once; what was chosen."""
    options, recipe = work.options.calibration, work.recipe
    if options is None or recipe is None:
        return None

    def make() -> CalibrationCard:
        scratch = _scratch(work)
        if not work.options.resume:
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(exist_ok=True)
        prompt, _ = read_settings(work.vlm_dir)
        vision = (work.partial / manifests.VISION, _vision(work))
        tokenizer = work.vlm_dir / "tokenizer.json"
        return calibrate(
            work.checkpoint, work.config.text, prompt, vision, tokenizer, recipe, options, scratch, length
        )[1]

    depends = {"calibration": asdict(options), "recipe": asdict(recipe), "vision": work.options.vision}
    return work.journal.part("calibration", CalibrationCard, (), depends, make)


def _scratch(work: _Work) -> Path:
    """Where integers wait for the decoder's graph: one directory for each way of choosing them."""
    recipe = None if work.recipe is None else asdict(work.recipe)
    what = [_calibration_options(work.options), recipe, work.options.vision, work.journal.fingerprint]
    return work.journal.work / f"integers-{sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def _detector(work: _Work) -> DetectorGeometry:
    def make() -> DetectorGeometry:
        int8 = detector_layers(work.detector_dir, work.options.detector)
        made = write_detector(work.detector_dir, work.partial / manifests.DETECTOR, int8=int8)
        shutil.copyfile(work.vlm_dir / "tokenizer.json", work.partial / manifests.TOKENIZER)
        shutil.copyfile(work.detector_dir / "tokenizer.json", work.partial / manifests.DETECTOR_TOKENIZER)
        return made

    owns = (manifests.DETECTOR, manifests.DETECTOR_TEXT, manifests.TOKENIZER, manifests.DETECTOR_TOKENIZER)
    depends = {"precision": work.options.detector}
    return work.journal.part("detector", DetectorGeometry, owns, depends, make)


def _drafts(work: _Work, vocab: int, end_id: int) -> Learnt | None:
    """The table of what usually comes next, where traces were named."""
    source, count = work.options.draft_traces, work.options.draft_count
    if source is None:
        return None

    def make() -> Learnt:
        encode = TextTokenizer(work.vlm_dir / "tokenizer.json").encode_plain
        return write_table(work.partial / manifests.DRAFT, source, count, encode, vocab, end_id)

    depends = {"traces": source, "count": count}
    return work.journal.part("drafts", Learnt, (manifests.DRAFT,), depends, make)


def _vision(work: _Work) -> VisionGeometry:
    def make() -> VisionGeometry:
        made = write_vision(
            work.checkpoint, work.config.vision, work.partial, work.max_pixels, precision=work.options.vision
        )
        work.checkpoint.refuse_unused(prefix="visual.")
        return made

    depends = {"pixels": work.max_pixels, "precision": work.options.vision}
    return work.journal.part("vision", VisionGeometry, (manifests.VISION,), depends, make)


def _golden(work: _Work, manifest: Manifest) -> GoldenAnswers:
    def make() -> GoldenAnswers:
        pictures = write_pictures(work.partial, work.options.golden_questions)
        seal(work.partial, manifest, work.journal.entries())
        return GoldenAnswers(record_answers(work.partial, pictures, work.options.golden_tokens))

    depends = {"manifest": to_json(manifest), "files": to_json(work.journal.entries())}
    depends |= {"questions": work.options.golden_questions, "tokens": work.options.golden_tokens}
    return work.journal.part("golden", GoldenAnswers, ("golden-",), depends, make)


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
    layout = packed_format(vlm_dir)
    weights = None if layout is None else open_weights(checkpoint, layout, IntegerRecipe(block=32))
    write_decoder(checkpoint, config.text, scratch, 16, None, dry=True, weights=weights)
    checkpoint.refuse_unused(["lm_head.weight"] if config.text.tied else [])
    return config


def plan_bundle(vlm_dir: Path, detector_dir: Path, out_dir: Path, options: ExportOptions) -> ExportPlan:
    """What `export_bundle` with the same arguments will take.

    Raises:
        ConfigError, CheckpointError, OptionError: as it.
        BundleError: the disk of `out_dir` is too small.
    """
    config = read_config(vlm_dir)
    read_geometry(detector_dir)
    length, recipe = chosen_length(config, options), chosen_recipe(config.text, options)
    checkpoint = Checkpoint(vlm_dir)
    plan = plan_export(
        checkpoint, detector_dir, config.text, recipe, options.embeddings, length, options.vision == "int8"
    )
    check_disk(plan, existing_parent(out_dir))
    return plan


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
    return IntegerRecipe(bits, options.head_bits, block, options.accuracy_level)


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
        words = (
            f"int{recipe.bits} {method}, block {recipe.block}, accuracy level "
            f"{recipe.accuracy_level}; "
            f"output layer int{recipe.head_bits}; embeddings {stored}"
        )
    detector = "fp32, weights stored as bfloat16 where that is exact"
    if detector_int8:
        detector = f"int8 per channel in {detector_int8} linear layers, else {detector}"
    tower = kept if vision == "fp32" else "int8 per channel in all linear layers, activations int8 by rows"
    return {manifests.DETECTOR: detector, manifests.VISION: tower, manifests.DECODER: words}


def describe_json(manifest: Manifest) -> str:
    """A line for scripts: name, bytes and recipe of the bundle."""
    total = sum(entry.bytes for entry in manifest.files.values())
    return json.dumps({"name": manifest.name, "bytes": total, "quantisation": manifest.quantisation})
