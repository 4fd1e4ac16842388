"""Trains the scales of a quantised decoder so that the whole of it says what the original says.

Layout    GPTQ settles one linear layer after another; what is left over adds up on its way to the output.
          Here integers and zero points stay as they are, and the blocks' scales are moved together, by
          gradient, until the last norm's output and the tokens expected of it are the original's on the
          samples' answers.
Contract  In memory are the scales with Adam's two averages, both output layers, one batch's activations, and
          the integers where they take less than `IN_MEMORY_BYTES`; above, one decoder layer at a time is read
          from the scratch directory, and run a second time for its gradient. Scales stay float16 numbers.
          A run that was interrupted goes on from its last saved step, to the same result.
Elsewhere the integers: gptq_layers.py; a layer's arithmetic: torch_layer.py; who asks: calibrate.py.
Source    docs/sources.md#scale-tuning
"""

import math
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as run_again

from rexthinker_edge.calibration.gptq import SMALLEST_SCALE
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.gptq_layers import IN_MEMORY_BYTES, Activations, Sequence
from rexthinker_edge.export.quantize import (
    QuantisedLinear,
    head_name,
    linear_shapes,
    load_linear,
    save_linear,
)
from rexthinker_edge.export.torch_layer import Rotations, TorchLayer, rms_norm
from rexthinker_edge.runtime.errors import OptionError

STATE = "tuning.pt"
SAVED_EVERY = 20  # steps
WARM_STEPS = 10
BETAS = (0.9, 0.99)

StepReport = Callable[[int, float], None]  # steps done, and what the last one found, see `_Tuner.loss`


@dataclass(frozen=True)
class TuneOptions:
    """How scales are trained.

    Attributes:
        steps: of Adam, at a rate that rises over the first few and falls to nothing along a cosine.
        batch: samples a step.
        rate: how far a scale moves in one step at most, as a share of itself.
        seed: of the samples' order.
        device: torch's.
    """

    steps: int
    batch: int = 4
    rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises OptionError on a value that has no meaning."""
        if self.steps < 1 or self.batch < 1 or not 0 < self.rate < 0.1:
            raise OptionError(
                f"tune: {self.steps} steps of {self.batch} samples at a rate of {self.rate}; needed 1 or "
                "more of both, and a rate between 0 and 0.1. Leave batch and rate out for 4 and 0.001."
            )


def tune_decoder(
    checkpoint: Checkpoint, config: TextConfig, sequences: Iterable[Sequence], lengths: list[int],
    options: TuneOptions, scratch: Path, out_dir: Path, report: StepReport | None = None,
) -> None:  # fmt: skip
    """Train the scales of the integers in `scratch`.

    Args:
        sequences: the samples, asked for once; `lengths` their tokens.
        scratch: what `quantise_decoder` left; also for the state of a run that may be interrupted.
        out_dir: takes every linear layer, output layer included, as `save_linear` writes them; made when
            it is not there.
    """
    tuner = _Tuner(checkpoint, config, sequences, lengths, options, scratch)
    tuner.train(report)
    tuner.save(out_dir)


class _Tuner:
    """Samples, what the original makes of them, and the scales under way."""

    def __init__(
        self, checkpoint: Checkpoint, config: TextConfig, sequences: Iterable[Sequence], lengths: list[int],
        options: TuneOptions, scratch: Path,
    ) -> None:  # fmt: skip
        self.checkpoint, self.config, self.options, self.scratch = checkpoint, config, options, scratch
        self.rotations = Rotations(config, max(lengths), options.device)
        self.inputs = Activations(lengths, config.hidden, scratch / "tuning.inputs", options.device)
        self.aims = Activations(lengths, config.hidden, scratch / "tuning.aims", options.device)
        norm = torch.from_numpy(checkpoint.tensor("model.norm.weight", (config.hidden,)).float32())
        self.norm = norm.to(options.device)
        self.positions: list[NDArray[np.int64]] = []
        self.firsts: list[int] = []
        for number, sequence in enumerate(sequences):
            self.inputs[number] = self.aims[number] = torch.from_numpy(sequence.embeds)
            self.positions.append(sequence.positions)
            self.firsts.append(sequence.first)
        self._see_original()
        name = head_name(config)
        head = checkpoint.tensor(f"{name}.weight", (config.vocab, config.hidden)).float32()
        heads = (head, load_linear(scratch, name).dense())
        self.heads = [torch.from_numpy(values).to(options.device) for values in heads]
        self.names = [
            f"model.layers.{number}.{name}"
            for number in range(config.layers) for name in linear_shapes(config)
        ]  # fmt: skip
        size = config.layers * sum(rows * columns for rows, columns in linear_shapes(config).values())
        self.kept: dict[str, QuantisedLinear] | None = {} if size <= IN_MEMORY_BYTES else None
        self.shares = {
            name: torch.zeros(self._linear(name).weight.scales.shape, device=options.device)
            .requires_grad_()
            for name in self.names
        }  # fmt: skip
        self.adam = torch.optim.Adam(self.shares.values(), lr=options.rate, betas=BETAS)
        self.done = 0

    @torch.no_grad()
    def _see_original(self) -> None:
        """Fill `aims` with the last norm's outputs in the original, one layer in memory."""
        for number in range(self.config.layers):
            layer = TorchLayer.load(self.checkpoint, self.config, number, self.options.device)
            for k, positions in enumerate(self.positions):
                self.aims[k] = layer.whole(self.aims[k], self.rotations.of(positions))
        for k in range(len(self.positions)):
            self.aims[k] = self._normed(self.aims[k])

    def _normed(self, rows: Tensor) -> Tensor:
        return rms_norm(rows, self.norm, self.config.rms_norm_eps)

    def _linear(self, name: str) -> QuantisedLinear:
        """Integers of a linear layer, from memory where they fit."""
        if self.kept is None:
            return load_linear(self.scratch, name)
        if name not in self.kept:
            self.kept[name] = load_linear(self.scratch, name)
        return self.kept[name]

    def _layer(self, number: int) -> TorchLayer:
        """One layer whose weights are its integers times its scales of now."""
        layer = TorchLayer.load_vectors(self.checkpoint, self.config, number, self.options.device)
        for name in linear_shapes(self.config):
            whole = f"model.layers.{number}.{name}"
            layer.weights[f"{name}.weight"] = dense(self._linear(whole), self.shares[whole])
        return layer

    def _through(self, number: int, chosen: list[int], *rows: Tensor) -> tuple[Tensor, ...]:
        """One layer over the samples of a batch."""
        layer = self._layer(number)
        return tuple(
            layer.whole(x, self.rotations.of(self.positions[k])) for k, x in zip(chosen, rows, strict=True)
        )

    def loss(self, chosen: list[int]) -> Tensor:
        """How far the model is from the original, on the answers' tokens of a batch.

        KL of the next token, nats a token, plus the squared difference of the last norm's outputs over those
        outputs' own. Most tokens are certain, so KL alone says little about most weights; the outputs say
        something at every token.
        """
        rows = tuple(self.inputs[k] for k in chosen)
        for number in range(self.config.layers):
            if self.kept is None:
                rows = run_again(self._through, number, chosen, *rows, use_reentrant=False)
            else:
                rows = self._through(number, chosen, *rows)
        missed = apart = whole = torch.zeros((), device=self.options.device)
        tokens = 0
        for k, x in zip(chosen, rows, strict=True):
            first = self.firsts[k]
            aim, found = self.aims[k][first:], self._normed(x[first:])
            missed = missed + (found - aim).square().sum()
            whole = whole + aim.square().sum()
            apart = apart + divergence(aim @ self.heads[0].T, found @ self.heads[1].T)
            tokens += len(aim)
        return apart / tokens + missed / whole

    def train(self, report: StepReport | None) -> None:
        """Take the steps that are still to be taken."""
        self._resume()
        order = _order(len(self.positions), self.options)
        while self.done < self.options.steps:
            for group in self.adam.param_groups:
                group["lr"] = self.options.rate * _share_of_rate(self.done, self.options.steps)
            self.adam.zero_grad()
            loss = self.loss(order[self.done])
            loss.backward()  # type: ignore[no-untyped-call]
            self.adam.step()
            self.done += 1
            if self.done % SAVED_EVERY == 0:
                self._keep()
            if report is not None:
                report(self.done, float(loss.detach()))

    def _keep(self) -> None:
        """Write down how far it has come, whole or not at all."""
        state = {"done": self.done, "shares": self.shares, "adam": self.adam.state_dict()}
        partial = self.scratch / f".{STATE}"
        torch.save(state, partial)
        partial.replace(self.scratch / STATE)

    def _resume(self) -> None:
        """Go on from the last saved step, where there is one."""
        path = self.scratch / STATE
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.options.device, weights_only=True)
        with torch.no_grad():
            for name, share in state["shares"].items():
                self.shares[name].copy_(share)
        self.adam.load_state_dict(state["adam"])
        self.done = state["done"]

    @torch.no_grad()
    def save(self, out_dir: Path) -> None:
        """Write the layers with their new scales, and the output layer as it was."""
        out_dir.mkdir(exist_ok=True)
        for name in self.names:
            linear = self._linear(name)
            scales = scaled(torch.from_numpy(linear.weight.scales), self.shares[name].cpu()).numpy()
            save_linear(out_dir, name, replace(linear, weight=replace(linear.weight, scales=scales)))
        head = head_name(self.config)
        shutil.copyfile(self.scratch / f"{head}.npz", out_dir / f"{head}.npz")


def scaled(scales: Tensor, shares: Tensor) -> Tensor:
    """(out, blocks) scales moved by shares of themselves, as float16 numbers; gradients pass the rounding."""
    moved = scales * (1 + shares)
    stored = moved.half().float().clamp(min=SMALLEST_SCALE)
    return moved + (stored - moved).detach()


def dense(linear: QuantisedLinear, shares: Tensor) -> Tensor:
    """(out, in) float32 values of integers whose scales are moved by (out, blocks) `shares`."""
    weight, device = linear.weight, shares.device
    rows = len(weight.codes)
    codes = torch.from_numpy(weight.codes).to(device, torch.float32).view(rows, -1, weight.block)
    zeros = torch.from_numpy(weight.zero_points).to(device, torch.float32)[..., None]
    scales = scaled(torch.from_numpy(weight.scales).to(device), shares)[..., None]
    values = ((codes - zeros) * scales).reshape(rows, -1)[:, : weight.columns]
    if linear.order is None:
        return values
    return values[:, torch.from_numpy(np.argsort(linear.order)).to(device)]


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Sum of KL(wanted, found) over rows of logits, in nats."""
    aim, log = functional.log_softmax(wanted, -1), functional.log_softmax(found, -1)
    return functional.kl_div(log, aim, reduction="sum", log_target=True)


def _order(samples: int, options: TuneOptions) -> list[list[int]]:
    """Which samples each step sees: all of them once before any comes again."""
    drawn, waiting, found = random.Random(options.seed), list[int](), []
    for _ in range(options.steps):
        while len(waiting) < options.batch:
            waiting += drawn.sample(range(samples), samples)
        found.append(waiting[: options.batch])
        del waiting[: options.batch]
    return found


def _share_of_rate(step: int, steps: int) -> float:
    """Of the full rate, at a step from 0."""
    return min(1.0, (step + 1) / WARM_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
