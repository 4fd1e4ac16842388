"""Supervised fine-tuning of the small Qwen2.5-VL from random weights, on workbench traces.

Layout    stages of vlm_config.py one after another; every `log_every` steps a JSON line in `log.jsonl`; every
          `save_every` minutes `state.pt`, from which `--resume` goes on.
Contract  The model is transformers' own, unchanged; number pieces start from Fourier features of their value.
Elsewhere the losses: trainee.py; samples: vlm_data.py; batches: vlm_batch.py; shape and stages:
          vlm_config.py; bundles: export/.
Source    docs/sources.md#small-model
"""

import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.runtime.errors import CheckpointError
from rexthinker_edge.runtime.prompt import SYSTEM, Wording
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.training.muon import Muon
from rexthinker_edge.training.tokenizer import number_ids
from rexthinker_edge.training.trainee import Trainee
from rexthinker_edge.training.vlm_batch import Batch, Pictures, collate
from rexthinker_edge.training.vlm_config import Recipe, Shape, Stage
from rexthinker_edge.training.vlm_data import Sampler

POOLED = 4  # batches drawn together, so that rows of one batch have similar lengths


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
) -> Iterator[tuple[Batch | Pictures, int]]:
    """Batches from `progress` on, made in a second process while the model learns from the last ones."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        step, first = progress.step, progress.sample
        pending: tuple[Future[Sequence[Batch | Pictures]], int] | None = None
        while found := stage_at(recipe, step):
            job = pool.submit(_draw, sampler, found[0], first, pad_id)
            first += POOLED * (found[0].scenes or found[0].pictures)
            if pending is not None:
                yield from ((batch, pending[1]) for batch in pending[0].result())
            pending, step = (job, first), step + POOLED
        if pending is not None:
            yield from ((batch, pending[1]) for batch in pending[0].result())


def _draw(sampler: Sampler, stage: Stage, first: int, pad_id: int) -> Sequence[Batch | Pictures]:
    """`POOLED` batches, each of samples with prefixes of similar length, or of pictures alone."""
    torch.set_num_threads(1)
    if not stage.scenes:
        return [sampler.pictures(stage.pictures, first + k * stage.pictures) for k in range(POOLED)]
    samples = [sampler.sample(stage, first + k) for k in range(POOLED * stage.scenes)]
    samples.sort(key=lambda sample: len(sample.ids))
    batches = [
        collate(
            samples[k : k + stage.scenes],
            sampler.system_ids,
            pad_id,
            sampler.pictures(stage.pictures, first + k) if stage.pictures else None,
        )
        for k in range(0, len(samples), stage.scenes)
    ]
    order = np.random.default_rng(first).permutation(len(batches))
    return [batches[k] for k in order]


def train(
    recipe: Recipe, tokenizer_path: Path, out: Path, *, resume: bool, threads: int, start: Path | None = None,
    save_minutes: float = 4.0,
) -> None:  # fmt: skip
    """Run the recipe to its end, or go on from `out/state.pt`.

    Args:
        out: folder of `state.pt`, `log.jsonl` and, in Hugging Face layout, `checkpoint/`.
        start: a checkpoint whose weights are taken in place of random ones; not with `resume`.
    """
    assert not (resume and start)
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    limits = PixelLimits(min_pixels=recipe.pixels.min_pixels, max_pixels=recipe.pixels.max_pixels)
    sampler = Sampler(tokenizer_path, limits, recipe.seed)
    model = build_model(recipe.shape, tokenizer_path, recipe.seed)
    if start is not None:
        _take_weights(model, start)
    trainee = Trainee(model, recipe.shape, sampler.tokenizer)
    opts, progress = optimisers(trainee, recipe), Progress()
    if resume:
        progress = _load(out / "state.pt", trainee, opts)
    else:
        _log(out, {"recipe": recipe.as_dict(), "parameters": sum(p.numel() for p in model.parameters())})
    image_pad, pad_id = (sampler.tokenizer.special_id(f"<|{name}|>") for name in ("image_pad", "endoftext"))
    window: list[dict[str, float]] = []
    saved = began = time.monotonic()
    for batch, sample in _batches(sampler, recipe, progress, pad_id):
        found = stage_at(recipe, progress.step)
        if found is None:
            break  # batches are drawn `POOLED` at a time and a run may have gone on in the middle of them
        stage, rate = found
        window.append(_step(trainee, opts, batch, image_pad, stage.auxiliary, rate, recipe.clip))
        progress = replace(progress, step=progress.step + 1, sample=sample)
        if progress.step % 25 == 0:
            row = {"step": progress.step, "stage": stage.name, "rate": rate, **_means(window)}
            _log(out, row | {"seconds_a_step": (time.monotonic() - began) / len(window)})
            window, began = [], time.monotonic()
        if time.monotonic() - saved > 60 * save_minutes:
            _save(out, trainee, opts, progress, recipe, tokenizer_path)
            saved = time.monotonic()
    _save(out, trainee, opts, progress, recipe, tokenizer_path)


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    """Of every figure that the last step told, over the steps that told it."""
    return {key: float(np.nanmean([w.get(key, math.nan) for w in window])) for key in window[-1]}


def _step(
    trainee: Trainee,
    opts: list[torch.optim.Optimizer],
    batch: Batch | Pictures,
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


def _take_weights(model: Qwen2_5_VLForConditionalGeneration, start: Path) -> None:
    """Replace every weight by the checkpoint's; its shape and vocabulary must be the recipe's."""
    found = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    try:
        model.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"{start}: another shape than the recipe's ({str(error).splitlines()[-1].strip()}). "
            "Start from a checkpoint of this recipe, with its own tokenizer.json."
        ) from error


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
    save_checkpoint(trainee.model, recipe, progress.step, tokenizer_path, out / "checkpoint")


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration, recipe: Recipe, step: int, tokenizer_path: Path, out: Path
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
        "model": {
            "name": "workbench-small",
            "source": "trained by this project on workbench pictures, from random weights",
            "revision": f"seed {recipe.seed}, step {step}",
            "licence": "Apache-2.0",
            "notice": "",
        },
    }
    (out / "rexthinker.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
