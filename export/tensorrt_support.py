"""What TensorRT's ONNX parser accepts, as a table, and whether a graph keeps to it.

What      TensorRT cannot be installed on the machines this project is built on, so its published list of
          operators stands in for it: every node of a graph is compared with the list before a builder is
          asked, here in a test and on the user's machine before minutes of building.
Contract  `problems` names each node that the list does not allow. Passing is necessary, not sufficient: what
          the builder makes of an allowed graph only the builder knows.
Elsewhere the lowering to standard operators: standard_graph.py; building: tensorrt.py.
Source    docs/sources.md#tensorrt-operators
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

PARSER_VERSION = "TensorRT 10.0 (onnx-tensorrt 10.1 GA, commit 96e78110)"
OLDEST_OPSET, NEWEST_OPSET = 9, 20
MOST_TOPK = 3839  # K must be less than 3840

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
BOOLS = frozenset({TensorProto.BOOL})
ALL = NUMBERS | BOOLS
HALF_OR_SINGLE = FLOATS - {TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Supported:
    """One row: element types of the data inputs, and inputs that must be constants."""

    types: frozenset[int]
    constant_inputs: tuple[int, ...] = ()


OPERATORS: dict[str, Supported] = {
    "Add": Supported(NUMBERS),
    "And": Supported(BOOLS),
    "ArgMax": Supported(NUMBERS),
    "Cast": Supported(ALL | {TensorProto.UINT8}),
    "Ceil": Supported(FLOATS),
    "Clip": Supported(FLOATS),
    "Concat": Supported(ALL),
    "ConstantOfShape": Supported(ALL),
    "Conv": Supported(FLOATS),
    "Cos": Supported(FLOATS),
    "CumSum": Supported(FLOATS, (1,)),
    "DequantizeLinear": Supported(frozenset({TensorProto.INT8})),
    "Div": Supported(NUMBERS),
    "Einsum": Supported(FLOATS),
    "Equal": Supported(NUMBERS),
    "Erf": Supported(FLOATS),
    "Exp": Supported(FLOATS),
    "Expand": Supported(ALL),
    "Flatten": Supported(ALL),
    "Floor": Supported(FLOATS),
    "Gather": Supported(ALL),
    "GatherElements": Supported(ALL),
    "GatherND": Supported(ALL),
    "Gelu": Supported(FLOATS),
    "Gemm": Supported(FLOATS),
    "Greater": Supported(NUMBERS),
    "GreaterOrEqual": Supported(NUMBERS),
    "GridSample": Supported(HALF_OR_SINGLE),
    "GroupNormalization": Supported(FLOATS),
    "Identity": Supported(ALL),
    "InstanceNormalization": Supported(FLOATS),
    "LayerNormalization": Supported(FLOATS),
    "Less": Supported(NUMBERS),
    "LessOrEqual": Supported(NUMBERS),
    "Log": Supported(FLOATS),
    "MatMul": Supported(FLOATS),
    "Max": Supported(NUMBERS),
    "Min": Supported(NUMBERS),
    "Mod": Supported(NUMBERS),
    "Mul": Supported(NUMBERS),
    "Neg": Supported(NUMBERS),
    "Not": Supported(BOOLS),
    "Or": Supported(BOOLS),
    "Pad": Supported(NUMBERS, (3,)),
    "Pow": Supported(FLOATS),
    "QuantizeLinear": Supported(FLOATS),
    "Range": Supported(NUMBERS),
    "Reciprocal": Supported(FLOATS),
    "ReduceMax": Supported(NUMBERS, (1,)),
    "ReduceMean": Supported(NUMBERS, (1,)),
    "ReduceMin": Supported(NUMBERS, (1,)),
    "ReduceProd": Supported(NUMBERS, (1,)),
    "ReduceSum": Supported(NUMBERS, (1,)),
    "Relu": Supported(NUMBERS),
    "Reshape": Supported(ALL),
    "ScatterElements": Supported(NUMBERS),
    "ScatterND": Supported(NUMBERS),
    "Shape": Supported(ALL),
    "Sigmoid": Supported(FLOATS),
    "Sin": Supported(FLOATS),
    "Size": Supported(ALL),
    "Slice": Supported(ALL, (3,)),
    "Softmax": Supported(FLOATS),
    "Split": Supported(ALL),
    "Sqrt": Supported(FLOATS),
    "Squeeze": Supported(ALL, (1,)),
    "Sub": Supported(NUMBERS),
    "Tanh": Supported(FLOATS),
    "Tile": Supported(ALL),
    "TopK": Supported(NUMBERS),
    "Transpose": Supported(ALL),
    "Trilu": Supported(ALL),
    "Unsqueeze": Supported(ALL, (1,)),
    "Where": Supported(ALL),
}
"""The rows that pictures and text need; the published list says "no" to DynamicQuantizeLinear,
MatMulInteger, QLinearMatMul, Unique, every sequence operator, and everything outside ONNX's own domain."""


DATA_INPUTS = {"ConstantOfShape": 0} | dict.fromkeys(
    ("CumSum", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "ReduceMax", "ReduceMean",
     "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Tile",
     "TopK", "Trilu", "Unsqueeze"),
    1,
)  # fmt: skip
"""How many of an operator's inputs are data; the rest are indices, sizes, axes. All, where none is named."""


@dataclass(frozen=True)
class Facts:
    """What is known of a graph's values without running it."""

    elements: dict[str, int]
    ranks: dict[str, int]
    constants: dict[str, TensorProto]


def problems(model: onnx.ModelProto) -> list[str]:
    """Everything in a standard graph that TensorRT's parser is not said to accept; empty when nothing is.

    Args:
        model: large constants may lack their bytes.
    """
    found = []
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        found.append(f"opset {opset}, {OLDEST_OPSET} to {NEWEST_OPSET} are read")
    facts = _facts(model)
    for node in model.graph.node:
        found += [f"{node.op_type} ({node.name}): {what}" for what in _node_problems(node, facts)]
    return found


def _facts(model: onnx.ModelProto) -> Facts:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    elements = {value.name: value.type.tensor_type.elem_type for value in values}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    elements |= {name: tensor.data_type for name, tensor in constants.items()}
    ranks |= {name: len(tensor.dims) for name, tensor in constants.items()}
    return Facts(elements, ranks, constants)


def _node_problems(node: NodeProto, facts: Facts) -> list[str]:
    row = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if row is None:
        return ["not on the list of supported operators"]
    found = []
    for place in _data_inputs(node):
        element = facts.elements.get(node.input[place])
        if element is None:
            found.append(f"the type of input {place} is not known")
        elif element not in row.types:
            found.append(f"input {place} is {TensorProto.DataType.Name(element)}, not on its list of types")
    for place in row.constant_inputs:
        if place < len(node.input) and node.input[place] and node.input[place] not in facts.constants:
            found.append(f"input {place} must be a constant")
    rule = RULES.get(node.op_type)
    return found + (rule(node, facts) if rule else [])


def _data_inputs(node: NodeProto) -> list[int]:
    """Places whose type the list is about; indices, shapes and conditions are not."""
    count = DATA_INPUTS.get(node.op_type, len(node.input))
    return [place for place in range(count) if node.input[place]]


def _attribute(node: NodeProto, name: str, default: object) -> object:
    found = [helper.get_attribute_value(item) for item in node.attribute if item.name == name]
    return found[0] if found else default


def _topk(node: NodeProto, facts: Facts) -> list[str]:
    found = [] if _attribute(node, "sorted", 1) == 1 else ["sorted must be 1"]
    tensor = facts.constants.get(node.input[1])
    if tensor is not None and int(numpy_helper.to_array(tensor).reshape(-1)[0]) > MOST_TOPK:
        found.append(f"K must be below {MOST_TOPK + 1}")
    return found


def _grid_sample(node: NodeProto, facts: Facts) -> list[str]:
    rank, mode = facts.ranks.get(node.input[0]), _attribute(node, "mode", b"bilinear")
    found = [] if rank == 4 else [f"input has {rank} axes, 4 are needed"]
    if mode not in (b"bilinear", b"nearest", b"bicubic"):  # the parser takes any other name for nearest
        found.append(f"mode {mode!r}, the name of opset 16 to 19 is needed")
    return found


def _layer_norm(node: NodeProto, _facts: Facts) -> list[str]:
    return ["only its first output is supported"] if any(node.output[1:]) else []


def _scatter_nd(node: NodeProto, _facts: Facts) -> list[str]:
    return [] if _attribute(node, "reduction", b"none") == b"none" else ["reduction is not supported"]


def _cast(node: NodeProto, _facts: Facts) -> list[str]:
    target = _attribute(node, "to", 0)
    assert isinstance(target, int)
    return [] if target in ALL else [f"to {TensorProto.DataType.Name(target)} is not on its list of types"]


RULES: dict[str, Callable[[NodeProto, Facts], list[str]]] = {
    "Cast": _cast,
    "GridSample": _grid_sample,
    "LayerNormalization": _layer_norm,
    "ScatterND": _scatter_nd,
    "TopK": _topk,
}
