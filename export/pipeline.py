"""From two checkpoints to one bundle.

Contract  The bundle is filled beside its place and renamed into it when everything, the golden self-test
          included, has succeeded: a failure leaves what stood there before. `resume` goes on behind the parts
          that were finished. Tensors are written one by one, so memory stays near the largest of them.
Elsewhere the parts: parts.py; what may be chosen: options.py; the manifest: runtime/manifest.py; what it
          will take: plan.py.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rexthinker_edge.export.calibrate import check_integers, method
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import ModelConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.detector_graph import read_geometry
from rexthinker_edge.export.journal import Journal, has_parts, held, source_fingerprint
from rexthinker_edge.export.options import ExportOptions, chosen_length, chosen_recipe, described
from rexthinker_edge.export.packed_checkpoint import open_weights, packed_format
from rexthinker_edge.export.parts import (
    Work,
    calibration_part,
    decoder_part,
    detector_part,
    drafts_part,
    golden_part,
    vision_part,
)
from rexthinker_edge.export.plan import ExportPlan, check_disk, existing_parent, plan_export
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.export.source_files import model_card, read_settings, read_tokens
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime.bundle import check_target, seal, staged
from rexthinker_edge.runtime.manifest import (
    FORMAT_VERSION,
    DraftCard,
    Manifest,
    ModelCard,
    PromptSettings,
    TokenIds,
)

Progress = Callable[[str, int, int], None]  # what is done now, bytes done, bytes in all


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
        work = Work(
            vlm_dir, detector_dir, partial, journal, options, config, checkpoint, recipe, length,
            prompt.max_pixels,
        )  # fmt: skip
        manifest = _manifest(work, card, prompt, tokens, method(layout, options.calibration))
        golden = golden_part(work, manifest)
        return seal(partial, replace(manifest, golden=golden.answers), journal.entries())


def _manifest(work: Work, card: ModelCard, prompt: PromptSettings, tokens: TokenIds, method: str) -> Manifest:
    """Make every part but the self-test; the manifest of them, still without files and self-test."""
    decoder, detector, vision = decoder_part(work), detector_part(work), vision_part(work)
    learnt = drafts_part(work, decoder.vocab, tokens.eos[0])
    return Manifest(
        format_version=FORMAT_VERSION, name=card.name, model=card, prompt=prompt, tokens=tokens,
        vision=vision, decoder=decoder, detector=detector, files={},
        quantisation=described(
            work.recipe, decoder.embedding_dtype, work.options.vision, len(detector.int8), method
        ),
        calibration=calibration_part(work), targets=("cpu",), golden=(),
        drafts=None if learnt is None else DraftCard(**asdict(learnt)),
    )  # fmt: skip


@contextmanager
def _staging(
    out_dir: Path, options: ExportOptions, sources: dict[str, Any]
) -> Iterator[tuple[Path, Journal]]:
    """The directory to fill and the journal of what is in it; both stay behind where a part was finished."""
    work_dir = out_dir.with_name(f".{out_dir.name}.work")
    fingerprint = {"version": version("rexthinker-edge"), "format": FORMAT_VERSION, **sources}
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


def describe_json(manifest: Manifest) -> str:
    """A line for scripts: name, bytes and recipe of the bundle."""
    total = sum(entry.bytes for entry in manifest.files.values())
    return json.dumps({"name": manifest.name, "bytes": total, "quantisation": manifest.quantisation})
