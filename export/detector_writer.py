"""Writes the layers of a loaded Grounding DINO into a graph: weights by the module they sit in.

Layout    Everything is rows by channels; there is no batch axis.
Contract  A weight that bfloat16 holds without loss is stored so and cast at load: half the bytes, the same
          numbers. Linear layers named in `int8` get 8-bit weights instead; asking for a layer that does not
          exist is our mistake. A graph with switches holds every layer in both precisions and takes the one
          or the other as its input `rounded` (layers,) says, in the order of `linears`: to measure with.
Elsewhere what is written: detector_swin.py, detector_text.py, detector_encoder.py, detector_decoder.py;
          operations: kernels/.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.export.graph import GraphWriter
from rexthinker_edge.kernels.gelu import lower_gelu
from rexthinker_edge.kernels.int8_linear import lower_int8_linear, round_channels
from rexthinker_edge.kernels.layer_norm import lower_layer_norm
from rexthinker_edge.kernels.linear import lower_rows_linear

INLINE_BYTES = 4096  # smaller arrays stand in the graph file itself
SMALLEST_STORED = 1024  # of fewer values a Cast costs more at load than it saves


def values(parameter: torch.Tensor) -> NDArray[np.float32]:
    """A parameter as a float32 array."""
    return np.asarray(parameter.detach().to(torch.float32).numpy(), np.float32)


class DetectorWriter:
    """A graph under construction, and which of its linear layers are 8-bit."""

    def __init__(
        self, graph: GraphWriter, exact_halves: bool, int8: Collection[str] = (), switches: bool = False
    ) -> None:
        """`exact_halves` stores in two bytes what bfloat16 holds exactly."""
        self.graph, self._halves, self._int8 = graph, exact_halves, frozenset(int8)
        self._rounded = graph.input("rounded", "float32", ["layers"]) if switches else None
        self.linears: dict[str, int] = {}  # each linear layer and its weights

    def array(self, name: str, array: NDArray[np.float32]) -> str:
        """Store a weight and return the name of its float32 value."""
        bits = np.ascontiguousarray(array).view(np.uint32)
        if self._halves and bits.size >= SMALLEST_STORED and not np.any(bits & 0xFFFF):
            raw = (bits >> 16).astype(np.uint16).reshape(-1).view(np.uint8)
            return self.graph.weight(Tensor(name, "bfloat16", array.shape, raw))
        if array.nbytes <= INLINE_BYTES:
            return self.graph.constant(np.ascontiguousarray(array))
        return self.graph.array(name, array)

    def shape(self, *sides: int) -> str:
        """A constant for Reshape."""
        return self.graph.constant(np.array(sides, np.int64))

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.graph.constant(np.array(value, np.float32))

    def norm(self, x: str, layer: Any) -> str:
        """A `torch.nn.LayerNorm`."""
        weight, bias = (self.graph.constant(values(p)) for p in (layer.weight, layer.bias))
        return lower_layer_norm(self.graph, x, weight, bias, layer.eps)

    def linear(self, x: str, name: str, *layers: Any, order: NDArray[np.int64] | None = None) -> str:
        """One or more `torch.nn.Linear` side by side, as one matrix product over (rows, in).

        Args:
            name: of this product in recipes and in the file.
            order: which output channels come first, second, …; None keeps them.
        """
        weight = np.concatenate([values(layer.weight) for layer in layers])
        biases = [values(layer.bias) for layer in layers if layer.bias is not None]
        bias = np.concatenate(biases) if biases else None
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        return self.product(x, name, weight, bias)

    def product(
        self, x: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None
    ) -> str:
        """x @ weightᵀ + bias with weight (out, in), 8-bit where the recipe says so."""
        assert name not in self.linears, name
        index, shift = len(self.linears), None if bias is None else self.graph.constant(bias)
        self.linears[name] = weight.size
        if name in self._int8:
            return self._integers(x, name, weight, shift)
        exact = lower_rows_linear(self.graph, x, self.array(name, np.ascontiguousarray(weight)), shift)
        if self._rounded is None:
            return exact
        switch = self.graph.node("Gather", [self._rounded, self.graph.constant(np.array(index, np.int64))])
        change = self.graph.node("Sub", [self._integers(x, name, weight, shift), exact])
        return self.add(exact, self.graph.node("Mul", [change, switch]))

    def _integers(self, x: str, name: str, weight: NDArray[np.float32], shift: str | None) -> str:
        rounded = round_channels(weight)
        codes = self.graph.array(f"{name}.codes", rounded.codes)
        return lower_int8_linear(self.graph, x, codes, self.graph.constant(rounded.scales), shift)

    def mlp(self, x: str, name: str, first: Any, second: Any, activation: str) -> str:
        """Two linear layers with "relu" or "gelu" between."""
        inner = self.linear(x, f"{name}.fc1", first)
        inner = lower_gelu(self.graph, inner) if activation == "gelu" else self.graph.node("Relu", [inner])
        return self.linear(inner, f"{name}.fc2", second)

    def perceptron(self, x: str, name: str, layers: Sequence[Any]) -> str:
        """transformers' box heads: linear layers with Relu between."""
        for index, layer in enumerate(layers):
            x = self.linear(self.graph.node("Relu", [x]) if index else x, f"{name}.{index}", layer)
        return x

    def add(self, x: str, y: str) -> str:
        """Their sum."""
        return self.graph.node("Add", [x, y])
