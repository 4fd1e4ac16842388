"""Chooses which operators of a standard graph compute in float16, and writes the casts between the two.

What      The engine is built strongly typed: precision stands in the graph, not in builder hints, so that
          what will run can be read, and its rounding measured, without the device.
Contract  Weights of a half operator are stored as float16. Everything else stays float32. A rule that names
          no operator of the graph is an error: a renamed layer must not lose its protection in silence.
Elsewhere the graph: standard_graph.py; measured drift: docs/tensorrt.md.
Source    docs/sources.md#tensorrt
"""

import re
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from rexthinker_edge.export.standard_graph import StandardGraph, Weight
from rexthinker_edge.runtime.errors import ConfigError

MOST_HALF = 65504.0


@dataclass(frozen=True)
class Rule:
    """Operators that stay in float32: those whose own or whose weight's name matches, and why."""

    pattern: str
    why: str


@dataclass(frozen=True)
class Policy:
    """`half` matches operators that may run in float16 though they have no constant factor; products with a
    layer's matrix always may. `single` is stronger than both."""

    single: tuple[Rule, ...]
    half: str = "(?!)"


VISION = Policy(
    single=(
        Rule(r"patch_embed", "reads raw pixels: its rounding reaches every layer, for 0.2 % of the work"),
        Rule(r"mlp\.down_proj", "its input is a product of two activations, whose range may leave float16"),
        Rule(r"merger", "the last layers: their error goes to the language model undamped"),
    ),
    # the attention core as one block, so that the builder can fuse it and never stores N x N scores
    half=r"MultiHeadAttention",
)
DETECTOR = Policy(  # each pattern in the names of bundles since 0.2, and of those before
    single=(
        Rule(r"\.offsets|sampling_offsets", "places in the picture: float16 steps are 0.5 px at 1,000 px"),
        Rule(r"\.scores|attention_weights", "weighs the sampled places; tiny"),
        Rule(r"\.places\.|reference_points_head", "places in the picture"),
        Rule(r"boxes\.|bbox_embed", "box corrections are added to places in the picture"),
        Rule(r"proposals\.cells|enc_output", "ranks all cells to choose queries: near ties change the boxes"),
        Rule(r"text_proj|fusion_layer", "scores are clamped at 50,000, float16 ends at 65,504"),
        Rule(r"\.words\.|text_projection", "the text that every logit is a product with; tiny"),
    ),
)


def halve(graph: StandardGraph, policy: Policy) -> int:
    """Rewrite `graph` in place.

    Returns:
        How many operators compute in float16 now.

    Raises:
        ConfigError: a rule matches nothing, or a weight leaves float16's range.
    """
    elements = _elements(graph.skeleton())
    chosen = {id(node) for node in graph.nodes_list if _is_half(node, graph, policy)}
    for rule in policy.single:
        if not any(re.search(rule.pattern, _key(node, graph)) for node in graph.nodes_list):
            raise ConfigError(
                f"{graph.name}: no operator is called {rule.pattern!r}, the precision rules protect one "
                f"({rule.why}). Export the bundle with this version, or build with --precision fp32."
            )
    Casts(graph, elements, chosen).write()
    return len(chosen)


def _is_half(node: NodeProto, graph: StandardGraph, policy: Policy) -> bool:
    key = _key(node, graph)
    if any(re.search(rule.pattern, key) for rule in policy.single):
        return False
    if re.search(policy.half, node.name):
        return node.op_type in ("Reshape", "Transpose", "Mul", "MatMul", "Where", "Softmax")
    return node.op_type in ("MatMul", "Gemm") and any(_is_layer(name, graph) for name in node.input)


def _is_layer(name: str, graph: StandardGraph) -> bool:
    """Whether a value is the matrix of a layer that has a name; constants that have none stay as they are."""
    weight = graph.weights.get(name)
    return weight is not None and len(weight.shape) == 2 and "constant_" not in name


def _key(node: NodeProto, graph: StandardGraph) -> str:
    return " ".join([node.name, *(name for name in node.input if name in graph.weights)])


def _elements(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


class Casts:
    """Writes the nodes again, with a cast wherever a value crosses from one precision to the other."""

    def __init__(self, graph: StandardGraph, elements: dict[str, int], chosen: set[int]) -> None:
        self.graph, self.elements, self.chosen = graph, elements, chosen
        self.halves: set[str] = set()  # values that a half operator makes; `NAME.half` is their true name
        self.cast: dict[str, str] = {}
        self.out: list[NodeProto] = []

    def write(self) -> None:
        """Replace the graph's nodes."""
        for node in self.graph.nodes_list:
            if id(node) in self.chosen:
                self._half(node)
            else:
                node.input[:] = [self._single(name) for name in node.input]
                self.out.append(node)
        for output in self.graph.outputs:
            if output.name in self.halves:
                self._single(output.name)
        self.graph.nodes_list[:] = self.out
        self.graph.drop_unused()

    def _half(self, node: NodeProto) -> None:
        node.input[:] = [
            self._to_half(name) if self.elements.get(name) == TensorProto.FLOAT else name
            for name in node.input
        ]
        self.halves.update(node.output)
        node.output[:] = [f"{name}.half" for name in node.output]
        self.out.append(node)

    def _to_half(self, name: str) -> str:
        if name in self.halves:
            return f"{name}.half"
        if (weight := self.graph.weights.get(name)) is not None:
            self.graph.weights[f"{name}.half"] = Weight(
                weight.shape, TensorProto.FLOAT16, lambda: _rounded(name, weight.read())
            )
            return f"{name}.half"
        return self._casted(name, f"{name}.to_half", TensorProto.FLOAT16)

    def _single(self, name: str) -> str:
        if name in self.halves and name not in self.cast:
            self.out.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.back", to=1))
            self.cast[name] = name
        return name

    def _casted(self, name: str, made: str, to: int) -> str:
        if made not in self.cast:
            self.out.append(helper.make_node("Cast", [name], [made], made, to=to))
            self.cast[made] = made
        return made


def _rounded(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    if values.size and float(np.abs(values).max()) > MOST_HALF:
        raise ConfigError(f"{name}: a weight beyond {MOST_HALF:,.0f}, float16 has none. Build with fp32.")
    return values.astype(np.float16)
