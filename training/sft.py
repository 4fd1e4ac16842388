"""Supervised fine-tuning of the small Qwen2.5-VL from random weights, on workbench traces.

Layout    stages of vlm_config.py one after another; every `log_every` steps a JSON line in `log.jsonl`; every
          `save_every` minutes `state.pt`, from which `--resume` goes on.
Contract  The model is transformers' own, unchanged. What is ours acts in training alone: number pieces start
          from Fourier features of their value, and small linear heads ask the hidden states of picture tokens
          for their cell and its thing, those of hint boxes for their thing. The heads are thrown away.
Elsewhere batches: vlm_data.py; shape and stages: vlm_config.py; into a bundle: export/.
Source    docs/sources.md#small-model
"""

import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.runtime.prompt import SYSTEM, Wording
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.training.muon import Muon
from rexthinker_edge.training.tokenizer import number_ids
from rexthinker_edge.training.vlm_config import Recipe, Shape, Stage
from rexthinker_edge.training.vlm_data import CELL_BINS, FIELDS, IGNORE, Batch, Sampler, Turns, collate

CELL_LAYER = 2  # after two layers a picture token should know its place and its thing
POOLED = 4  # batches drawn together, so that rows of one batch have similar lengths
BOX_LAYER = 4  # two layers later the hint should know what stands in each box; later layers read it there


def build_model(shape: Shape, tokenizer_path: Path, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The small model with random weights; number pieces start where their values lie."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    vocab = tokenizer.get_vocab()
    size = math.ceil((max(vocab.values()) + 1) / 32) * 32
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shape.to_config(size, vocab)))
    numbers = number_ids(tokenizer)
    values = torch.tensor(list(numbers.values()), dtype=torch.float32)
    angles = values[:, None] * (2 * math.pi / torch.logspace(math.log10(12), math.log10(900), 24))
    features = torch.cat([angles.sin(), angles.cos()], dim=1) @ torch.randn(48, shape.hidden) / math.sqrt(48)
    with torch.no_grad():
        table = model.model.language_model.embed_tokens.weight
        table[list(numbers)] = 0.3 * table[list(numbers)] + 0.03 * features
    return model


class Probes(nn.Module):
    """Linear heads that ask hidden states for what they should know by then; training only."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.place = nn.Linear(shape.hidden, 2 * CELL_BINS)
        sizes = [len(values) for values in FIELDS.values()]
        self.sizes = [size + 1 for size in sizes]  # the last class of a picture token: nothing here
        self.seen = nn.Linear(shape.hidden, sum(self.sizes))
        self.cell = nn.Linear(shape.hidden, sum(self.sizes))
        self.box = nn.Linear(shape.hidden, sum(self.sizes))

    def fields(self, head: nn.Linear, hidden: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Mean cross-entropy over FIELDS and the accuracy of each; hidden (N, H), labels (N, fields)."""
        loss, right = hidden.new_zeros(()), []
        for logits, label in zip(head(hidden).split(self.sizes, dim=1), labels.T, strict=True):
            known = label != IGNORE
            if bool(known.any()):
                loss = loss + cross_entropy(logits, label, ignore_index=IGNORE)
                right.append(float((logits.argmax(1) == label)[known].float().mean()))
            else:
                right.append(math.nan)
        return loss / len(self.sizes), right

    def places(self, hidden: Tensor, cells: Tensor) -> Tensor:
        """Cross-entropy of row and column; one head, so that pictures and boxes name a place alike."""
        logits = self.place(hidden).view(-1, 2, CELL_BINS)
        return cross_entropy(logits.flatten(0, 1), cells.clamp(max=CELL_BINS - 1).flatten())


class Trainee(nn.Module):
    """Model and probes, with the two hidden states the probes look at."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, shape: Shape) -> None:
        super().__init__()
        self.model, self.probes = model, Probes(shape)
        self.verdicts: tuple[int, ...] = ()
        self.probing = False
        self._hidden: dict[str, Tensor] = {}
        layers = model.model.language_model.layers
        layers[CELL_LAYER - 1].register_forward_hook(partial(self._keep, "cell"))
        layers[BOX_LAYER - 1].register_forward_hook(partial(self._keep, "box"))
        layers[0].register_forward_pre_hook(lambda _, inputs: self._keep("seen", None, None, inputs[0]))

    def _keep(self, name: str, _module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if self.probing:
            self._hidden[name] = hidden

    def forward(self, batch: Batch, image_pad: int, auxiliary: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and figures for the log.

        The system turn is computed once and its keys and values lent to every prefix, theirs to every turn.
        """
        text = self.model.model.language_model
        cache = DynamicCache()
        text(input_ids=batch.system_ids, past_key_values=cache, use_cache=True)
        cache = _lend(cache, torch.zeros(len(batch.samples), dtype=torch.long))
        self.probing = True
        self.model.model(
            input_ids=batch.ids,
            pixel_values=batch.patches,
            image_grid_thw=batch.grids,
            position_ids=batch.positions,
            attention_mask={"full_attention": batch.mask_BHQK},
            past_key_values=cache,
            use_cache=True,
        )
        self.probing = False
        figures: dict[str, float] = {}
        probed = self._probe(batch, image_pad, figures) if auxiliary else torch.zeros(())
        logits, targets = zip(*(self._turn_logits(cache, turns) for turns in batch.turns), strict=True)
        loss = self._turn_loss(torch.cat(logits), torch.cat(targets), figures)
        return loss + auxiliary * probed, figures

    def _turn_logits(self, cache: DynamicCache, turns: Turns) -> tuple[Tensor, Tensor]:
        hidden = self.model.model.language_model(
            input_ids=turns.ids,
            position_ids=turns.positions,
            attention_mask={"full_attention": turns.mask_RHQK},
            past_key_values=_lend(cache, turns.rows),
            use_cache=True,
        ).last_hidden_state
        wanted = turns.targets[:, 1:] != IGNORE
        return self.model.lm_head(hidden[:, :-1][wanted]), turns.targets[:, 1:][wanted]

    def _turn_loss(self, logits: Tensor, targets: Tensor, figures: dict[str, float]) -> Tensor:
        loss = cross_entropy(logits, targets)
        right = logits.argmax(1) == targets
        verdicts = torch.isin(targets, torch.tensor(self.verdicts))
        figures |= {"loss": loss.item(), "token_accuracy": right.float().mean().item()}
        if bool(verdicts.any()):
            figures["verdict_accuracy"] = right[verdicts].float().mean().item()
        return loss

    def _probe(self, batch: Batch, image_pad: int, figures: dict[str, float]) -> Tensor:
        pictures = batch.ids == image_pad
        nothing = torch.tensor([size - 1 for size in self.probes.sizes])
        cells, places, boxes, centres, rows, columns = [], [], [], [], [], []
        for row, sample in enumerate(batch.samples):
            fields = torch.from_numpy(sample.thing_fields)
            under = torch.from_numpy(sample.cell_things)
            cells.append(torch.where((under < 0)[:, None], nothing, fields[under.clamp(min=0)]))
            _, grid_h, grid_w = sample.vision.grid_thw
            places.append(torch.cartesian_prod(torch.arange(grid_h // 2), torch.arange(grid_w // 2)))
            centres.append(torch.from_numpy(sample.box_cells))
            boxes.append(fields[torch.from_numpy(sample.box_things)])
            rows += [row] * len(sample.box_ends)
            columns += sample.box_ends.tolist()
        at_cells, at_boxes = self._hidden["cell"][pictures], self._hidden["box"][rows, columns]
        seen_loss, _ = self.probes.fields(self.probes.seen, self._hidden["seen"][pictures], torch.cat(cells))
        cell_loss, _ = self.probes.fields(self.probes.cell, at_cells, torch.cat(cells))
        box_loss, right = self.probes.fields(self.probes.box, at_boxes, torch.cat(boxes))
        place_loss = self.probes.places(at_cells, torch.cat(places))
        centre_loss = self.probes.places(self._hidden["cell"][rows, columns], torch.cat(centres))
        figures |= {"seen": seen_loss.item(), "cell": cell_loss.item(), "place": place_loss.item()}
        figures["centre"] = centre_loss.item()
        figures |= {f"box_{field}": value for field, value in zip(FIELDS, right, strict=True)}
        return seen_loss + cell_loss + place_loss + centre_loss + box_loss


def _lend(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache whose row i holds the keys and values of row `rows[i]`; the lender stays as it is."""
    lent = DynamicCache()
    for number, layer in enumerate(cache.layers):
        lent.update(layer.keys[rows], layer.values[rows], number)
    return lent


def optimisers(trainee: Trainee, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the model, AdamW for embeddings, norms, biases and probes."""
    matrices, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in trainee.named_parameters():
        inside = p.ndim == 2 and name.startswith("model.") and "embed_tokens" not in name
        (matrices if inside else others).append(p)
    rate = recipe.stages[0].learning_rate
    return [
        Muon(matrices, lr=rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@dataclass(frozen=True)
class Progress:
    """Where training stands: total steps done, and samples drawn."""

    step: int = 0
    sample: int = 0


def stage_at(recipe: Recipe, step: int) -> tuple[Stage, float] | None:
    """The stage of a step and its learning rate; None when all are done."""
    begin = 0
    for stage in recipe.stages:
        if step < begin + stage.steps:
            share = (step - begin) / stage.steps
            rate = stage.learning_rate + share * (stage.final_rate - stage.learning_rate)
            return stage, rate * min(1.0, (step + 1) / recipe.warmup)
        begin += stage.steps
    return None


def _batches(
    sampler: Sampler, recipe: Recipe, progress: Progress, pad_id: int
) -> Iterator[tuple[Batch, int]]:
    """Batches from `progress` on, made in a second process while the model learns from the last ones."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        step, first = progress.step, progress.sample
        pending: tuple[Future[list[Batch]], int] | None = None
        while found := stage_at(recipe, step):
            job = pool.submit(_draw, sampler, found[0], first, pad_id)
            first += POOLED * found[0].scenes
            if pending is not None:
                yield from ((batch, pending[1]) for batch in pending[0].result())
            pending, step = (job, first), step + POOLED
        if pending is not None:
            yield from ((batch, pending[1]) for batch in pending[0].result())


def _draw(sampler: Sampler, stage: Stage, first: int, pad_id: int) -> list[Batch]:
    """`POOLED` batches, each of samples with prefixes of similar length."""
    torch.set_num_threads(1)
    samples = [sampler.sample(stage, first + k) for k in range(POOLED * stage.scenes)]
    samples.sort(key=lambda sample: len(sample.ids))
    batches = [
        collate(samples[k : k + stage.scenes], sampler.system_ids, pad_id)
        for k in range(0, len(samples), stage.scenes)
    ]
    order = np.random.default_rng(first).permutation(len(batches))
    return [batches[k] for k in order]


def train(
    recipe: Recipe, tokenizer_path: Path, out: Path, *, resume: bool, threads: int, save_minutes: float = 4.0
) -> None:
    """Run the recipe to its end, or go on from `out/state.pt`.

    Args:
        out: folder of `state.pt`, `log.jsonl` and, in Hugging Face layout, `checkpoint/`.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    limits = PixelLimits(min_pixels=recipe.pixels.min_pixels, max_pixels=recipe.pixels.max_pixels)
    sampler = Sampler(tokenizer_path, limits, recipe.seed)
    trainee = Trainee(build_model(recipe.shape, tokenizer_path, recipe.seed), recipe.shape)
    signs = (f"{space}{sign}{end}" for space in ("", " ") for sign in "✅❌" for end in ("", "\n", "\n\n"))
    trainee.verdicts = tuple(ids[0] for ids in map(sampler.tokenizer.encode_plain, signs) if len(ids) == 1)
    opts, progress = optimisers(trainee, recipe), Progress()
    if resume:
        progress = _load(out / "state.pt", trainee, opts)
    else:
        _log(
            out,
            {"recipe": recipe.as_dict(), "parameters": sum(p.numel() for p in trainee.model.parameters())},
        )
    image_pad, pad_id = (sampler.tokenizer.special_id(f"<|{name}|>") for name in ("image_pad", "endoftext"))
    window: list[dict[str, float]] = []
    saved = began = time.monotonic()
    for batch, sample in _batches(sampler, recipe, progress, pad_id):
        found = stage_at(recipe, progress.step)
        assert found is not None
        stage, rate = found
        window.append(_step(trainee, opts, batch, image_pad, stage.auxiliary, rate, recipe.clip))
        progress = replace(progress, step=progress.step + 1, sample=sample)
        if progress.step % 25 == 0:
            means = {key: float(np.nanmean([w.get(key, math.nan) for w in window])) for key in window[-1]}
            row = {"step": progress.step, "stage": stage.name, "rate": rate, **means}
            _log(out, row | {"seconds_a_step": (time.monotonic() - began) / len(window)})
            window, began = [], time.monotonic()
        if time.monotonic() - saved > 60 * save_minutes:
            _save(out, trainee, opts, progress, recipe, tokenizer_path)
            saved = time.monotonic()
    _save(out, trainee, opts, progress, recipe, tokenizer_path)


def _step(
    trainee: Trainee,
    opts: list[torch.optim.Optimizer],
    batch: Batch,
    image_pad: int,
    auxiliary: float,
    rate: float,
    clip: float,
) -> dict[str, float]:
    figures: dict[str, float]
    loss, figures = trainee(batch, image_pad, auxiliary)
    loss.backward()
    figures["norm"] = float(nn.utils.clip_grad_norm_(trainee.parameters(), clip))
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate
        opt.step()
        opt.zero_grad(set_to_none=True)
    return figures


def _log(out: Path, row: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def _load(path: Path, trainee: Trainee, opts: list[torch.optim.Optimizer]) -> Progress:
    state = torch.load(path, weights_only=True)
    trainee.load_state_dict(state["trainee"])
    for opt, saved in zip(opts, state["optimisers"], strict=True):
        opt.load_state_dict(saved)
    return Progress(**state["progress"])


def _save(
    out: Path,
    trainee: Trainee,
    opts: list[torch.optim.Optimizer],
    progress: Progress,
    recipe: Recipe,
    tokenizer_path: Path,
) -> None:
    state = {
        "trainee": trainee.state_dict(),
        "optimisers": [opt.state_dict() for opt in opts],
        "progress": {"step": progress.step, "sample": progress.sample},
    }
    torch.save(state, out / "state.tmp")
    (out / "state.tmp").replace(out / "state.pt")
    save_checkpoint(trainee.model, recipe, tokenizer_path, out / "checkpoint")


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, recipe: Recipe, tokenizer_path: Path, out: Path
) -> None:
    """Write bf16 safetensors in Hugging Face layout, tokenizer and prompt settings beside them."""
    half = Qwen2_5_VLForConditionalGeneration(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(out)
    (out / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())
    settings = {
        "system": SYSTEM,
        "wording": Wording.DETECT.value,
        "min_pixels": recipe.pixels.min_pixels,
        "max_pixels": recipe.pixels.max_pixels,
        "max_new_tokens": recipe.max_new_tokens,
    }
    (out / "rexthinker.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
