"""Training the small Grounding DINO on workbench pictures, from random weights.

Layout    fresh weights -> steps (batch, loss, AdamW, moving average) -> every few minutes: a checkpoint to
          resume from, the average's AP on held-out pictures, a line in the log.
Contract  What is saved is the moving average. A resumed run goes on where it stopped; its recipe may only
          differ in `steps` and `learning_rate`.
Elsewhere the model: detector_model.py; sizes and schedule: detector_config.py; data: detector_data.py; loss:
          detector_loss.py; the AP that steers: benchmarks/detection.py, handed in by the caller.
Source    Grounding DINO, arXiv 2303.05499, with the choices told in docs/training/detector.md.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rexthinker_edge.calibration.workbench.world import CATEGORIES
from rexthinker_edge.training.deformable import use_native_sampling
from rexthinker_edge.training.detector_config import DetectorRecipe
from rexthinker_edge.training.detector_data import (
    LEVELS,
    Pictures,
    cut_vocabulary,
    make_batch,
    render_pictures,
    training_batches,
)
from rexthinker_edge.training.detector_loss import corners
from rexthinker_edge.training.detector_model import fresh_model, groups_of, run_layers, save_model, step_loss

HELD_SEED, HELD_COUNT = 900_001, 160


@dataclass(frozen=True)
class Found:
    """What the model found in one held-out picture, and what was there; boxes are shares of the picture."""

    category: str
    level: str
    boxes: NDArray[np.float32]  # (queries, 4) corners
    scores: NDArray[np.float32]  # (queries,)
    truths: NDArray[np.float32]  # (n, 4) corners


Evaluate = Callable[[list[Found]], dict[str, float]]
"""From held-out pictures to figures by name."""


def rate_at(step: int, recipe: DetectorRecipe) -> float:
    """Warm-up, flat, then down along a cosine over the last two fifths."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    fall = max(0.0, (step / recipe.steps - 0.6) / 0.4)
    return recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))


def scale_at(step: int, recipe: DetectorRecipe, rng: np.random.Generator) -> float:
    """Picture scale of a step: small ones first, full size at the end, of several sizes always."""
    progress = step / recipe.steps
    low, high = (0.56, 0.76) if progress < 0.5 else (0.66, 0.92) if progress < 0.8 else (0.92, 1.0)
    return float(rng.uniform(low, high))


class Run:
    """A training run: what changes from step to step, and how it is kept."""

    def __init__(
        self, recipe: DetectorRecipe, folder: Path, tokenizer: dict[str, Any], evaluate: Evaluate
    ) -> None:
        self.recipe, self.folder, self.evaluate = recipe, folder, evaluate
        self.tokenizer = cut_vocabulary(tokenizer)
        vocabulary = self.tokenizer["model"]["vocab"]
        self.words = [vocabulary[c] for c in CATEGORIES]
        self.model = fresh_model(recipe, len(vocabulary))
        use_native_sampling(self.model)
        self.optimizer = torch.optim.AdamW(
            groups_of(self.model, recipe), lr=1.0, betas=(0.9, 0.98), fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.step, self.seconds = 0, 0.0

    def prepare(self) -> None:
        """Render what is missing and open the pictures."""
        render_pictures(self.folder / "held", self.recipe, HELD_SEED, HELD_COUNT)
        render_pictures(self.folder / "pictures", self.recipe, self.recipe.data_seed, self.recipe.pictures)
        self.held, self.pictures = Pictures(self.folder / "held"), Pictures(self.folder / "pictures")

    def save(self) -> None:
        """Keep the run, in a temporary file that is renamed."""
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average, "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, self.folder / "run.pt.part")
        (self.folder / "run.pt.part").rename(self.folder / "run.pt")

    def resume(self) -> None:
        """Go on from `run.pt`."""
        state = torch.load(self.folder / "run.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def train(self, every_seconds: float) -> None:
        """Run to the recipe's last step, checking every so many seconds."""
        rng = np.random.default_rng([self.recipe.seed, self.step])
        batches = training_batches(self.pictures, self.recipe.batch, rng)
        checked, started = time.monotonic(), time.monotonic() - self.seconds
        means: dict[str, float] = {}
        while self.step < self.recipe.steps:
            parts = self._step(batches, rng)
            for name, value in parts.items():
                means[name] = value if name not in means else 0.98 * means[name] + 0.02 * value
            if self.step % 100 == 0:
                self.seconds = time.monotonic() - started
                self._log(
                    {"rate": rate_at(self.step, self.recipe), **{n: round(v, 4) for n, v in means.items()}}
                )
            if time.monotonic() - checked > every_seconds or self.step == self.recipe.steps:
                self.save()
                self._log(self.check())
                checked = time.monotonic()

    def _step(
        self, batches: Iterator[tuple[NDArray[np.int64], list[list[int]]]], rng: np.random.Generator
    ) -> dict[str, float]:
        which, asked = next(batches)
        scale = scale_at(self.step, self.recipe, rng)
        loss, parts = step_loss(self.model, make_batch(self.pictures, which, asked, self.words, scale, rng))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if bool(torch.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(self.step, self.recipe) * group["scale"]
            self.optimizer.step()
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return {"loss": loss.item(), "norm": norm.item(), **parts}

    def check(self) -> dict[str, float]:
        """Save the average, rounded to bf16, and give its figures on the held-out pictures."""
        kept = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self._put({n: p.bfloat16().float() for n, p in self.average.items()})
        save_model(self.model, self.tokenizer, self.recipe, self.folder / "checkpoint")
        found = detect_all(self.model, self.held, self.words)
        self._put(kept)
        return self.evaluate(found)

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(values[name])

    def _log(self, line: dict[str, float]) -> None:
        line = {"step": self.step, "seconds": round(self.seconds), **line}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


@torch.no_grad()
def detect_all(model: Any, held: Pictures, words: list[int]) -> list[Found]:
    """Ask every held-out picture for its most frequent category; boxes in (0, 1) corners."""
    found: list[Found] = []
    model.eval()
    for group in held.groups():
        for chunk in np.array_split(group, -(-len(group) // 12)):
            labels = held.index.labels[chunk]
            asked = [int(np.bincount(row[row >= 0]).argmax()) for row in labels]
            batch = make_batch(held, chunk, [[c] for c in asked], words, 1.0, None)
            logits, boxes = run_layers(model, batch)["layers"][-1]
            scores = logits.sigmoid().amax(-1)
            for n, category in enumerate(asked):
                truths = held.index.boxes[chunk[n]][labels[n] == category]
                found.append(
                    Found(
                        category=CATEGORIES[category],
                        level=str(LEVELS[held.index.level[chunk[n]]]),
                        boxes=corners(boxes[n]).numpy(),
                        scores=scores[n].numpy(),
                        truths=corners(torch.from_numpy(truths)).numpy(),
                    )
                )
    model.train()
    return found


def train(recipe: DetectorRecipe, folder: Path, tokenizer: dict[str, Any], evaluate: Evaluate, resume: bool,
          every_seconds: float = 240.0) -> None:  # fmt: skip
    """Train in `folder`: pictures, `run.pt`, `log.jsonl` and `checkpoint/` appear there.

    Args:
        tokenizer: bert-base-uncased's `tokenizer.json`.
        resume: go on from `run.pt`, else begin afresh.
    """
    torch.set_flush_denormal(True)
    run = Run(recipe, folder, tokenizer, evaluate)
    run.prepare()
    if resume:
        run.resume()
    run.train(every_seconds)
