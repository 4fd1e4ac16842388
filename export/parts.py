"""The parts of an export: each makes its files of a bundle once, and is journalled when they are on disk.

Layout    vision ─ calibration ─ decoder (with the embeddings); detector (with the tokenizers); drafts; and
          golden, the self-test, which comes last and depends on all of them.
Contract  A part that the journal knows with the same options is not made again. A tensor that no part used
          makes its part fail.
Elsewhere their order and the manifest: pipeline.py; finished parts: journal.py; the graphs: decoder_graph.py,
          vision_graph.py, detector_graph.py; integers: calibrate.py, packed_checkpoint.py.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rexthinker_edge.calibration.draft_table import Learnt, write_table
from rexthinker_edge.export.calibrate import calibrate, integers_in
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import ModelConfig
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.detector_graph import write_detector
from rexthinker_edge.export.detector_int8 import detector_layers
from rexthinker_edge.export.embeddings import EmbeddingPrecision, write_embeddings
from rexthinker_edge.export.golden import record_answers, write_pictures
from rexthinker_edge.export.journal import Journal
from rexthinker_edge.export.options import ExportOptions
from rexthinker_edge.export.packed_checkpoint import open_weights, packed_format
from rexthinker_edge.export.packed_writer import write_packed
from rexthinker_edge.export.quantize import IntegerRecipe, Saved, Weights
from rexthinker_edge.export.source_files import read_settings
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import seal
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.manifest import CalibrationCard, Golden, Manifest
from rexthinker_edge.runtime.strict_json import to_json
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionGeometry


@dataclass(frozen=True)
class GoldenAnswers:
    """The self-test, as the journal keeps it."""

    answers: tuple[Golden, ...]


@dataclass(frozen=True)
class Work:
    """One export under way: sources, choices and where its files go."""

    vlm_dir: Path
    detector_dir: Path
    partial: Path
    journal: Journal
    options: ExportOptions
    config: ModelConfig
    checkpoint: Checkpoint
    recipe: IntegerRecipe | None
    length: int  # of the decoder's rotary table
    max_pixels: int


def decoder_part(work: Work) -> DecoderGeometry:
    """The decoder's graph and its token table."""

    def make() -> DecoderGeometry:
        text = work.config.text
        weights = _weights(work)
        made = write_decoder(work.checkpoint, text, work.partial, work.length, work.recipe, weights=weights)
        # A tied checkpoint may state the shared table a second time.
        work.checkpoint.refuse_unused(["lm_head.weight"] if text.tied else [], but="visual.")
        if work.options.embeddings is EmbeddingPrecision.KEPT:
            return made
        table = work.checkpoint.tensor("model.embed_tokens.weight", (text.vocab, text.hidden))
        stored = write_embeddings(table, work.partial / manifests.EMBEDDINGS, work.options.embeddings)
        return replace(made, embedding_dtype=stored)

    depends = {
        "recipe": None if work.recipe is None else asdict(work.recipe), "length": work.length,
        "embeddings": work.options.embeddings,
        "calibration": _calibration_options(work.options),
    }  # fmt: skip
    return work.journal.part(
        "decoder", DecoderGeometry, (manifests.DECODER, manifests.EMBEDDINGS), depends, make
    )


def _calibration_options(options: ExportOptions) -> dict[str, Any] | None:
    return None if options.calibration is None else asdict(options.calibration)


def _weights(work: Work) -> Weights | None:
    """Where the decoder's linear layers come from; None: from the checkpoint, as the recipe says."""
    layout = packed_format(work.vlm_dir)
    if layout is not None and work.recipe is not None:
        return open_weights(work.checkpoint, layout, work.recipe)
    if calibration_part(work) is None:
        return None
    assert work.options.calibration is not None, "what was calibrated had options"
    saved = Saved(work.checkpoint, integers_in(_scratch(work), work.options.calibration))
    if work.options.packed_dir is not None:
        write_packed(
            work.checkpoint, work.config.text, saved, work.options.packed_format, work.options.packed_dir,
            work.options.calibration.symmetric, work.options.packed_head == "integers",
        )  # fmt: skip
    return saved


def calibration_part(work: Work) -> CalibrationCard | None:
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
        vision = (work.partial / manifests.VISION, vision_part(work))
        tokenizer = work.vlm_dir / "tokenizer.json"
        return calibrate(
            work.checkpoint, work.config.text, prompt, vision, tokenizer, recipe, options, scratch,
            work.length,
        )[1]  # fmt: skip

    depends = {"calibration": asdict(options), "recipe": asdict(recipe), "vision": work.options.vision}
    return work.journal.part("calibration", CalibrationCard, (), depends, make)


def _scratch(work: Work) -> Path:
    """Where integers wait for the decoder's graph: one directory for each way of choosing them."""
    recipe = None if work.recipe is None else asdict(work.recipe)
    what = [_calibration_options(work.options), recipe, work.options.vision, work.journal.fingerprint]
    return work.journal.work / f"integers-{sha256(json.dumps(what).encode()).hexdigest()[:12]}"


def detector_part(work: Work) -> DetectorGeometry:
    """The detector's graphs, and both tokenizers."""

    def make() -> DetectorGeometry:
        int8 = detector_layers(work.detector_dir, work.options.detector)
        made = write_detector(work.detector_dir, work.partial / manifests.DETECTOR, int8=int8)
        shutil.copyfile(work.vlm_dir / "tokenizer.json", work.partial / manifests.TOKENIZER)
        shutil.copyfile(work.detector_dir / "tokenizer.json", work.partial / manifests.DETECTOR_TOKENIZER)
        return made

    owns = (manifests.DETECTOR, manifests.DETECTOR_TEXT, manifests.TOKENIZER, manifests.DETECTOR_TOKENIZER)
    depends = {"precision": work.options.detector}
    return work.journal.part("detector", DetectorGeometry, owns, depends, make)


def drafts_part(work: Work, vocab: int, end_id: int) -> Learnt | None:
    """The table of what usually comes next, where traces were named."""
    source, count = work.options.draft_traces, work.options.draft_count
    if source is None:
        return None

    def make() -> Learnt:
        encode = TextTokenizer(work.vlm_dir / "tokenizer.json").encode_plain
        return write_table(work.partial / manifests.DRAFT, source, count, encode, vocab, end_id)

    depends = {"traces": source, "count": count}
    return work.journal.part("drafts", Learnt, (manifests.DRAFT,), depends, make)


def vision_part(work: Work) -> VisionGeometry:
    """The vision tower's graph."""

    def make() -> VisionGeometry:
        made = write_vision(
            work.checkpoint, work.config.vision, work.partial, work.max_pixels, precision=work.options.vision
        )
        work.checkpoint.refuse_unused(prefix="visual.")
        return made

    depends = {"pixels": work.max_pixels, "precision": work.options.vision}
    return work.journal.part("vision", VisionGeometry, (manifests.VISION,), depends, make)


def golden_part(work: Work, manifest: Manifest) -> GoldenAnswers:
    """Pictures and questions of the self-test, and what the new bundle answers."""

    def make() -> GoldenAnswers:
        pictures = write_pictures(work.partial, work.options.golden_questions)
        seal(work.partial, manifest, work.journal.entries())
        return GoldenAnswers(record_answers(work.partial, pictures, work.options.golden_tokens))

    depends = {"manifest": to_json(manifest), "files": to_json(work.journal.entries())}
    depends |= {"questions": work.options.golden_questions, "tokens": work.options.golden_tokens}
    return work.journal.part("golden", GoldenAnswers, ("golden-",), depends, make)
