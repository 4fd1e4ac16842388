"""Runs calibration for an export: chooses samples, shows them to vision tower and decoder, rounds with GPTQ.

Contract  Pictures go through the vision tower that the bundle will hold. What was chosen is told in the
          manifest's calibration card. Results lie in a scratch directory and are read back layer by layer.
Elsewhere choosing: calibration/sources.py; rounding: gptq_layers.py; the bundle: pipeline.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from rexthinker_edge.calibration.gptq import ActOrder, GptqOptions
from rexthinker_edge.calibration.samples import Reader, Sample
from rexthinker_edge.calibration.sources import choose_calibration
from rexthinker_edge.export import gptq_layers
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.gptq_layers import LayerwiseOptions, quantise_decoder
from rexthinker_edge.export.quantize import IntegerRecipe, Saved
from rexthinker_edge.runtime.bundle import CalibrationCard, PromptSettings
from rexthinker_edge.runtime.decoder import place_image
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionGeometry, VisionTower


@dataclass(frozen=True)
class CalibrationOptions:
    """How integers are chosen from data.

    Attributes:
        source: as `choose_calibration` reads it.
        samples, seed: how many, and which.
        symmetric, damping, act_order: see GptqOptions.
        correct: see gptq_layers.
        answer_weight: how much a token of the assistant's turn counts, against 1 for one of the prompt.
        device: torch's, "cpu" or "cuda".
    """

    source: str
    samples: int = 128
    seed: int = 0
    symmetric: bool = False
    damping: float = 0.01
    act_order: ActOrder = ActOrder.STATIC
    correct: bool = False
    answer_weight: float = 1.0
    device: str = "cpu"


def calibrate(
    checkpoint: Checkpoint, config: TextConfig, prompt: PromptSettings, vision: tuple[Path, VisionGeometry],
    tokenizer: Path, recipe: IntegerRecipe, options: CalibrationOptions, scratch: Path, max_tokens: int,
) -> tuple[Saved, CalibrationCard]:  # fmt: skip
    """Quantise the decoder on chosen samples.

    Args:
        vision: the exported tower and what the runtime knows of it.
        tokenizer: the model's tokenizer.json.
        scratch: a directory for results and activations.
        max_tokens: a longer sample is cut at its end.

    Returns:
        The integers, and the manifest's card about the choice.
    """
    choice = choose_calibration(options.source, options.samples, options.seed)
    limits = PixelLimits(prompt.min_pixels, prompt.max_pixels)
    reader = Reader(TextTokenizer(tokenizer), limits, prompt.system, prompt.wording, max_tokens)
    samples = [reader.sample(situation) for situation in choice.situations]
    round_decoder(checkpoint, config, samples, VisionTower(*vision, _one_session()), recipe, options, scratch)
    card = CalibrationCard(
        choice.source, len(samples), choice.seed,
        ids=tuple(sample.id for sample in samples), sha256=choice.sha256(),
        tokens=sum(len(sample.ids) for sample in samples),
        traces=sum(sample.answer_start < len(sample.ids) for sample in samples),
        domains=choice.domains(),
    )  # fmt: skip
    return Saved(checkpoint, scratch), card


def round_decoder(
    checkpoint: Checkpoint, config: TextConfig, samples: Sequence[Sample], tower: VisionTower,
    recipe: IntegerRecipe, options: CalibrationOptions, scratch: Path,
    report: gptq_layers.Report | None = None,
) -> None:  # fmt: skip
    """Quantise the decoder on these samples, into `scratch`."""
    rounding = GptqOptions(
        recipe.bits, recipe.block, options.symmetric, options.damping, ActOrder(options.act_order)
    )
    walk = LayerwiseOptions(rounding, recipe.head_bits, options.correct, options.device)
    sequences = embedded(checkpoint, config, samples, tower, options.answer_weight)
    lengths = [len(sample.ids) for sample in samples]
    quantise_decoder(checkpoint, config, sequences, lengths, walk, scratch, report)


def embedded(
    checkpoint: Checkpoint, config: TextConfig, samples: Sequence[Sample], tower: VisionTower,
    answer_weight: float = 1.0,
) -> Iterator[gptq_layers.Sequence]:  # fmt: skip
    """The samples as the decoder's first layer reads them, one at a time."""
    table = checkpoint.tensor("model.embed_tokens.weight", (config.vocab, config.hidden))
    for sample in samples:
        rows = np.concatenate([table.float32(slice(token, token + 1)) for token in sample.ids.tolist()])
        if sample.vision is not None:
            rows = place_image(rows, sample.ids, sample.image_pad, tower.encode(sample.vision))
        weights = np.ones(len(rows), np.float32)
        weights[sample.answer_start :] = answer_weight
        yield gptq_layers.Sequence(rows, sample.positions, weights)


def _one_session() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options
