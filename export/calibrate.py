"""Runs calibration for an export: chooses samples, shows them to vision tower and decoder, rounds with GPTQ.

Contract  Pictures go through the vision tower that the bundle will hold. What was chosen is told in the
          manifest's calibration card. Results lie in a scratch directory and are read back layer by layer.
Elsewhere choosing: calibration/sources.py; rounding: gptq_layers.py; tuning: tuning.py; the bundle: parts.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime as ort

from rexthinker_edge.calibration.gptq import ActOrder, GptqOptions
from rexthinker_edge.calibration.samples import Reader, Sample
from rexthinker_edge.calibration.sources import Situation, choose_calibration
from rexthinker_edge.export import gptq_layers
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.gptq_layers import LayerwiseOptions, quantise_decoder
from rexthinker_edge.export.packed_checkpoint import PackedFormat
from rexthinker_edge.export.quantize import IntegerRecipe, Saved
from rexthinker_edge.export.tuning import TuneOptions, tune_decoder
from rexthinker_edge.runtime.embeddings import place_image
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.manifest import CalibrationCard, PromptSettings
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
        correct: aim at the original model's outputs, see gptq_layers; twice the work.
        tune: steps of training the scales afterwards, see tuning; 0 leaves them as GPTQ chose them.
        tune_samples: how many that is done on, GPTQ's the first of them; 0: as many as the steps can take.
        answer_weight: how much a token of the assistant's turn counts, against 1 for one of the prompt.
        device: torch's, "cpu" or "cuda".
    """

    source: str
    samples: int = 128
    seed: int = 0
    symmetric: bool = False
    damping: float = 0.01
    act_order: ActOrder = ActOrder.STATIC
    correct: bool = True
    tune: int = 0
    tune_samples: int = 0
    answer_weight: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises OptionError on a value that has no meaning."""
        if self.samples < 1 or self.answer_weight <= 0:
            raise OptionError(
                f"calibration: {self.samples} samples, answers counted {self.answer_weight} times; needed "
                "1 or more, and above 0. Leave them out for 128 and 1."
            )
        if self.tune < 0 or self.tune_samples < 0:
            raise OptionError(
                f"tune: {self.tune} steps on {self.tune_samples} samples, needed 0 or more. Leave them out: "
                "no steps, and a new sample each time."
            )
        GptqOptions(damping=self.damping, act_order=ActOrder(self.act_order))

    @property
    def items(self) -> int:
        """Samples to choose, for GPTQ and for tuning together."""
        if not self.tune:
            return self.samples
        return max(self.samples, self.tune_samples or TuneOptions.batch * self.tune)


def take_options(chosen: dict[str, Any]) -> CalibrationOptions | None:
    """Remove the command's options about calibration from `chosen`; None where no data were named."""
    source, count = chosen.pop("calibration"), chosen.pop("samples")
    seed, order = chosen.pop("calibration_seed"), ActOrder(chosen.pop("act_order"))
    symmetric, damping = chosen.pop("symmetric"), chosen.pop("damping")
    correct, device = not chosen.pop("no_correction"), chosen.pop("calibration_device")
    tune, tune_samples = chosen.pop("tune"), chosen.pop("tune_samples")
    if source is None:
        if tune:
            raise OptionError(
                f"tune: {tune} steps, but no data to tune on, they are needed. Give --calibration."
            )
        return None
    return CalibrationOptions(
        source, count, seed, symmetric, damping, order, correct, tune, tune_samples, device=device
    )


def check_integers(
    layout: PackedFormat | None, recipe: IntegerRecipe | None, given: CalibrationOptions | None,
    packed_dir: Path | None,
) -> None:  # fmt: skip
    """Refuse options about integers that do not go together.

    Args:
        layout: how the checkpoint is quantised, None where it is not.
        recipe: how the decoder is to be rounded, None for not at all.
        given: how it is to be calibrated, None for not at all.
        packed_dir: where a quantised checkpoint is to be written, or None.

    Raises:
        OptionError: which two do not.
    """
    told = ""
    if layout is not None and recipe is None:
        told = f"precision: fp32, but the checkpoint holds integers ({layout.value}). Give --precision int4."
    elif layout is not None and given is not None:
        told = (
            f"calibration: the checkpoint holds integers already ({layout.value}), unquantised weights are "
            "needed. Leave --calibration out."
        )
    elif given is not None and recipe is None:
        told = "calibration: of no use with precision fp32, int4 or int8 is needed. Give --precision int4."
    elif packed_dir is not None and recipe is not None and recipe.wide:
        told = (
            f"packed_dir: {', '.join(recipe.wide)} in 8 bits, one width for all layers is needed in these "
            "formats. Leave --int8-layers out."
        )
    elif packed_dir is not None and given is None:
        told = "packed_dir: a quantised checkpoint is written of calibrated integers. Give --calibration."
    elif packed_dir is not None and packed_dir.exists() and any(packed_dir.iterdir()):
        told = f"packed_dir: {packed_dir} has files in it, a new or empty place is needed. Name another."
    if told:
        raise OptionError(told)


def method(layout: PackedFormat | None, given: CalibrationOptions | None) -> str:
    """How the decoder's integers came about, in the manifest's words."""
    if layout is not None:
        return f"as the {layout.value} checkpoint has them"
    if given is None:
        return "round-to-nearest"
    corrected = ", corrected for drift" if given.correct else ""
    tuned = f", scales tuned in {given.tune} steps on {given.items}" if given.tune else ""
    how = f"act-order {given.act_order.value}{corrected}{tuned}"
    return f"GPTQ on {given.samples} samples of {given.source}, {how}"


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
    choice = choose_calibration(options.source, options.items, options.seed)
    limits = PixelLimits(prompt.min_pixels, prompt.max_pixels)
    reader = Reader(TextTokenizer(tokenizer), limits, prompt.system, prompt.wording, max_tokens)
    # Pictures are read again for every use: their patches would not fit in memory.
    told = [replace(reader.sample(situation), vision=None) for situation in choice.situations]
    samples = _Read(reader, choice.situations, [len(sample.ids) for sample in told])
    tower = VisionTower(*vision, _one_session())
    found = round_decoder(checkpoint, config, samples, tower, recipe, options, scratch)
    card = CalibrationCard(
        choice.source, len(told), choice.seed,
        ids=tuple(sample.id for sample in told), sha256=choice.sha256(),
        tokens=sum(samples.lengths),
        traces=sum(sample.answer_start < len(sample.ids) for sample in told),
        domains=choice.domains(), left_out=sum(not problem.kept for problem in choice.problems),
    )  # fmt: skip
    return Saved(checkpoint, found), card


@dataclass(frozen=True)
class _Read(Sequence[Sample]):
    """Samples that are made each time they are asked for."""

    reader: Reader
    situations: Sequence[Situation]
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.situations)

    @overload
    def __getitem__(self, which: int) -> Sample: ...

    @overload
    def __getitem__(self, which: slice) -> "_Read": ...

    def __getitem__(self, which: int | slice) -> "Sample | _Read":
        if isinstance(which, slice):
            return _Read(self.reader, self.situations[which], self.lengths[which])
        return self.reader.sample(self.situations[which])


def round_decoder(
    checkpoint: Checkpoint, config: TextConfig, samples: Sequence[Sample], tower: VisionTower,
    recipe: IntegerRecipe, options: CalibrationOptions, scratch: Path,
    report: gptq_layers.Report | None = None,
) -> Path:  # fmt: skip
    """Quantise the decoder on the first `options.samples` of these, into `scratch`, and tune it on all.

    Returns:
        The directory with what is to be used.
    """
    rounding = GptqOptions(
        recipe.bits, recipe.block, options.symmetric, options.damping, ActOrder(options.act_order)
    )
    walk = LayerwiseOptions(rounding, recipe.head_bits, options.correct, options.device, recipe.wide)
    lengths = samples.lengths if isinstance(samples, _Read) else [len(sample.ids) for sample in samples]
    first = slice(options.samples)
    sequences = embedded(checkpoint, config, samples[first], tower, options.answer_weight)
    quantise_decoder(checkpoint, config, sequences, lengths[first], walk, scratch, report)
    if options.tune:
        again = embedded(checkpoint, config, samples, tower)
        steps = TuneOptions(options.tune, seed=options.seed, device=options.device)
        tune_decoder(checkpoint, config, again, lengths, steps, scratch, integers_in(scratch, options))
    return integers_in(scratch, options)


def integers_in(scratch: Path, options: CalibrationOptions) -> Path:
    """The directory under `scratch` whose integers and scales are to be used."""
    return scratch / "tuned" if options.tune else scratch


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
        said = sample.answer_start < len(sample.ids)
        yield gptq_layers.Sequence(rows, sample.positions, weights, sample.answer_start - 1 if said else 0)


def _one_session() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options
