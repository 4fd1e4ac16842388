"""Quantises a decoder layer by layer on samples, holding one layer and the samples' activations.

Layout    A layer is done in four steps: query/key/value, attention output, gate/up, down. Each reads what
          the quantised steps before it produce, and is rounded before the next one runs. Results go to files
          in a scratch directory, one a linear layer; activations stay in memory up to a limit, then in a
          bfloat16 file there.
Contract  With `correct`, every linear layer aims at what the *original* model puts out at this place, on its
          own inputs, and not at what the old weight would make of inputs that have drifted.
Elsewhere the rounding: calibration/gptq.py; a layer's arithmetic: torch_layer.py; who reads the results:
          quantize.py.
Source    docs/sources.md#gptq
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rexthinker_edge.calibration.gptq import GptqOptions, Gram, Solver
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.quantize import (
    QuantisedLinear,
    column_codes,
    head_name,
    linear_shapes,
    load_linear,
    regrouped,
    save_linear,
)
from rexthinker_edge.export.torch_layer import (
    ATTENTION_IN,
    ATTENTION_OUT,
    FEED_IN,
    FEED_OUT,
    Rotations,
    TorchLayer,
    rms_norm,
)

IN_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True)
class Sequence:
    """A sample as the decoder reads it: (S, hidden), (3, S) M-RoPE, and (S,) how much each token counts.

    `first` is the row that the assistant's first token is read from; 0 where there is no assistant's turn.
    """

    embeds: NDArray[np.float32]
    positions: NDArray[np.int64]
    weights: NDArray[np.float32]
    first: int = 0


@dataclass(frozen=True)
class LayerwiseOptions:
    """How the walk is done; `rounding` holds for the layers, the head takes `head_bits`.

    `wide` names linear layers, such as "v_proj", that take 8 bits whatever `rounding` says.
    """

    rounding: GptqOptions
    head_bits: int = 8
    correct: bool = False
    device: str = "cpu"
    wide: tuple[str, ...] = ()


class Activations:
    """What flows between layers: one (S, hidden) per sample, float32 in memory or bfloat16 in a file."""

    def __init__(self, lengths: list[int], width: int, spill: Path, device: str) -> None:
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        self._device = device
        shape = (self._starts[-1], width)
        if shape[0] * width * 4 <= IN_MEMORY_BYTES:
            self._rows = torch.empty(shape)
        else:
            self._rows = torch.from_file(str(spill), True, shape[0] * width, dtype=torch.bfloat16).view(shape)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Tensor:
        return self._rows[self._starts[number] : self._starts[number + 1]].to(self._device, torch.float32)

    def __setitem__(self, number: int, rows: Tensor) -> None:
        self._rows[self._starts[number] : self._starts[number + 1]] = rows.to("cpu", self._rows.dtype)


class _Stream:
    """One model on its way through the samples: what it has added up so far and its present layer."""

    def __init__(self, lengths: list[int], width: int, scratch: Path, name: str, device: str) -> None:
        self.residual = Activations(lengths, width, scratch / f"{name}.residual", device)
        self.attended = Activations(lengths, width, scratch / f"{name}.attended", device)
        self.layer: TorchLayer

    def inputs(self, step: tuple[str, ...], number: int) -> Tensor:
        """What the linear layers of `step` read for one sample."""
        if step is ATTENTION_IN:
            return self.layer.attention_in(self.residual[number])
        if step is ATTENTION_OUT:
            return self.attended[number]
        x = self.residual[number]
        return self.layer.feed_in(x) if step is FEED_IN else self.layer.gated(x)


Report = Callable[[str, float], None]  # a linear layer's name and its relative loss


@torch.inference_mode()
def quantise_decoder(
    checkpoint: Checkpoint, config: TextConfig, sequences: Iterable[Sequence], lengths: list[int],
    options: LayerwiseOptions, scratch: Path, report: Report | None = None,
) -> None:  # fmt: skip
    """Round every linear layer and the output layer, and leave them in `scratch` as `save_linear` writes.

    Args:
        sequences: the samples, asked for once; `lengths` their tokens.
        scratch: a directory with room for the codes and, for many samples, the activations. Layers that an
            interrupted walk with the same arguments left there are not rounded again.
    """
    layers = [f"model.layers.{n}.{name}" for n in range(config.layers) for name in linear_shapes(config)]
    if all((scratch / f"{name}.npz").is_file() for name in [*layers, head_name(config)]):
        return
    walk = _Walk(checkpoint, config, lengths, options, scratch, report)
    walk.begin(sequences)
    for number in range(config.layers):
        walk.layer(number)
    walk.head()


class _Walk:
    """The state between layers."""

    def __init__(
        self, checkpoint: Checkpoint, config: TextConfig, lengths: list[int], options: LayerwiseOptions,
        scratch: Path, report: Report | None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.config, self.options = checkpoint, config, options
        self.scratch, self.report = scratch, report
        self.rotations = Rotations(config, max(lengths), options.device)
        self.quantised, *originals = (
            _Stream(lengths, config.hidden, scratch, name, options.device)
            for name in (("quantised", "original") if options.correct else ("quantised",))
        )
        self.original = originals[0] if originals else None
        self.streams = [self.quantised, *originals]
        self.positions: list[NDArray[np.int64]] = []
        self.weights: list[Tensor] = []

    def begin(self, sequences: Iterable[Sequence]) -> None:
        """Read the samples in."""
        for number, sequence in enumerate(sequences):
            for stream in self.streams:
                stream.residual[number] = torch.from_numpy(sequence.embeds)
            self.positions.append(sequence.positions)
            self.weights.append(torch.from_numpy(sequence.weights).to(self.options.device))

    def layer(self, number: int) -> None:
        """Quantise one layer and move every sample through it."""
        layer = TorchLayer.load(self.checkpoint, self.config, number, self.options.device)
        self.quantised.layer = layer
        if self.original is not None:
            self.original.layer = TorchLayer(self.config, dict(layer.weights))
        prefix = f"model.layers.{number}"
        self._step(ATTENTION_IN, prefix)
        for k, positions in enumerate(self.positions):
            for stream in self.streams:
                stream.attended[k] = stream.layer.attended(stream.residual[k], self.rotations.of(positions))
        self._step(ATTENTION_OUT, prefix)
        self._advance(ATTENTION_OUT)
        self._step(FEED_IN, prefix)
        self._step(FEED_OUT, prefix)
        self._advance(FEED_OUT)

    def _advance(self, step: tuple[str, ...]) -> None:
        """Add a branch to the residual streams."""
        for k in range(len(self.positions)):
            for stream in self.streams:
                branch = stream.layer.linear(step[0], stream.inputs(step, k))
                stream.residual[k] = stream.residual[k] + branch

    def _step(self, step: tuple[str, ...], prefix: str) -> None:
        """Round the linear layers that read the same inputs, or take them from an interrupted walk."""
        layer = self.quantised.layer
        if all((self.scratch / f"{prefix}.{name}.npz").is_file() for name in step):
            for name in step:
                made = load_linear(self.scratch, f"{prefix}.{name}")
                layer.weights[f"{name}.weight"] = torch.from_numpy(made.dense()).to(self.options.device)
            return
        weights = {name: layer.weights[f"{name}.weight"] for name in step}
        columns = next(iter(weights.values())).shape[1]
        gram = Gram(columns, self.options.device)
        pulls = {
            name: torch.zeros_like(weight) for name, weight in weights.items() if self.original is not None
        }
        for k, weight_of_token in enumerate(self.weights):
            inputs = self.quantised.inputs(step, k)
            gram.add(inputs, weight_of_token)
            if self.original is not None:
                apart = self.original.inputs(step, k) - inputs
                for name, pull in pulls.items():
                    missed = apart @ weights[name].T
                    pull.addmm_((missed * weight_of_token[:, None]).T, inputs)
        count = max(gram.count, 1.0)
        solver = Solver(gram.mean(), self.options.rounding)
        for name, weight in weights.items():
            aim = solver.pulled(weight, pulls[name] / count) if pulls else weight
            bits = 8 if name.rpartition(".")[2] in self.options.wide else None
            made = self._round(solver, f"{prefix}.{name}", aim, bits)
            layer.weights[f"{name}.weight"] = torch.from_numpy(made.dense()).to(self.options.device)

    def _round(self, solver: Solver, name: str, weight: Tensor, bits: int | None = None) -> QuantisedLinear:
        rounded = solver.round(weight.cpu().numpy(), bits=bits)
        made = QuantisedLinear(rounded.weight, rounded.order)
        if rounded.order is not None:
            # Within a group, columns stand in the checkpoint's order: that is all that files keep.
            codes, block_of = column_codes(made)
            found = rounded.weight
            made = regrouped(codes, block_of, found.scales, found.zero_points, found.bits, found.block)
        save_linear(self.scratch, name, made)
        if self.report is not None:
            self.report(name, rounded.loss)
        return made

    def head(self) -> None:
        """Round the output layer, whose inputs are the last norm's outputs."""
        config, options = self.config, self.options
        norm = torch.from_numpy(self.checkpoint.tensor("model.norm.weight", (config.hidden,)).float32())
        gram = Gram(config.hidden, options.device)
        for k, weight_of_token in enumerate(self.weights):
            final = rms_norm(self.quantised.residual[k], norm.to(options.device), config.rms_norm_eps)
            gram.add(final, weight_of_token)
        solver = Solver(gram.mean(), replace(options.rounding, bits=options.head_bits))
        name = head_name(config)
        stored = self.checkpoint.tensor(f"{name}.weight", (config.vocab, config.hidden))
        self._round(solver, name, torch.from_numpy(stored.float32()))
