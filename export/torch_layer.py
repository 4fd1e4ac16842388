"""One decoder layer in torch, in the four steps between which its linear layers are quantised.

Layout    x is (S, hidden) float32, one sequence; weights by the names they have inside a layer.
Contract  Equal to transformers' Qwen2_5_VLDecoderLayer. Holds one layer's weights and nothing else.
Elsewhere the same as a graph: decoder_graph.py; who calls it: gptq_layers.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.quantize import linear_shapes
from rexthinker_edge.kernels.mrope import rotary_table

ATTENTION_IN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_OUT = ("self_attn.o_proj",)
FEED_IN = ("mlp.gate_proj", "mlp.up_proj")
FEED_OUT = ("mlp.down_proj",)


@dataclass
class TorchLayer:
    """A decoder layer whose weights can be replaced one by one."""

    config: TextConfig
    weights: dict[str, Tensor]

    @classmethod
    def load(cls, checkpoint: Checkpoint, config: TextConfig, number: int, device: str) -> "TorchLayer":
        """Layer `number` in float32."""
        layer = cls.load_vectors(checkpoint, config, number, device)
        matrices = {f"{name}.weight": shape for name, shape in linear_shapes(config).items()}
        layer.weights |= _read(checkpoint, f"model.layers.{number}.", matrices, device)
        return layer

    @classmethod
    def load_vectors(
        cls, checkpoint: Checkpoint, config: TextConfig, number: int, device: str
    ) -> "TorchLayer":
        """Norms and biases of layer `number` in float32; its linear layers are still to be given."""
        linear = linear_shapes(config)
        shapes = {f"{name}.bias": linear[name][:1] for name in ATTENTION_IN}
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{name}.weight": (config.hidden,) for name in norms}
        return cls(config, _read(checkpoint, f"model.layers.{number}.", shapes, device))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One of the layer's linear layers."""
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def attention_in(self, x: Tensor) -> Tensor:
        """What the query, key and value layers read."""
        return rms_norm(x, self.weights["input_layernorm.weight"], self.config.rms_norm_eps)

    def attended(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """What the output layer of the attention reads; `turns` are the cosines and sines of `rotations`."""
        config, count = self.config, len(x)
        normed = self.attention_in(x)
        query, key, value = (
            self.linear(name, normed).view(count, -1, config.head_dim).transpose(0, 1)
            for name in ATTENTION_IN
        )
        mixed = functional.scaled_dot_product_attention(
            rotate(query, turns)[None], rotate(key, turns)[None], value[None], is_causal=True, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).reshape(count, config.hidden)

    def feed_in(self, x: Tensor) -> Tensor:
        """What the gate and up layers read, after the attention was added to x."""
        return rms_norm(x, self.weights["post_attention_layernorm.weight"], self.config.rms_norm_eps)

    def gated(self, x: Tensor) -> Tensor:
        """What the down layer reads."""
        normed = self.feed_in(x)
        return functional.silu(self.linear("mlp.gate_proj", normed)) * self.linear("mlp.up_proj", normed)

    def whole(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """What the next layer reads: both branches added to x."""
        x = x + self.linear(ATTENTION_OUT[0], self.attended(x, turns))
        return x + self.linear(FEED_OUT[0], self.gated(x))


def _read(
    checkpoint: Checkpoint, prefix: str, shapes: Mapping[str, tuple[int, ...]], device: str
) -> dict[str, Tensor]:
    """Tensors of these shapes, by their names without `prefix`."""
    return {
        name: torch.from_numpy(checkpoint.tensor(f"{prefix}{name}", shape).float32()).to(device)
        for name, shape in shapes.items()
    }


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x over the root of its mean square, times a weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


class Rotations:
    """Cosines and sines for M-RoPE positions."""

    def __init__(self, config: TextConfig, rows: int, device: str) -> None:
        """For positions below `rows`."""
        self._cos, self._sin = rotary_table(config.rope_theta, config.head_dim, rows)
        self._axis = np.repeat(np.arange(3), config.mrope_section)
        self._device = device

    def of(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Both (S, head_dim / 2) for positions (3, S)."""
        pair = np.arange(len(self._axis))
        rows = positions[self._axis].T
        return (
            torch.from_numpy(self._cos[rows, pair]).to(self._device),
            torch.from_numpy(self._sin[rows, pair]).to(self._device),
        )


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """(heads, S, head_dim), its halves a and b turned: see kernels/mrope.py."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = turns
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
