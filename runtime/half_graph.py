"""Rewrites a bundle's graphs for a GPU: float16 where that is safe, and operators that CUDA has kernels for.

Why       One file of weights serves every device: the graphs are 0.2 to 1.6 MB and are changed in memory when
          a bundle is opened, the gigabytes beside them are read as they are. So every bundle ever made runs,
          and no second copy of anything has to be made, listed, hashed or kept in step.
What      `half_decoder`: all of it in float16, keys and values included; logits leave as float32. The
          attention bias goes: with it ONNX Runtime leaves the flash-decoding kernels. `accuracy_level` is 0.
          `half_vision`: the rows stay float32, products and attention compute in float16 between casts.
          `whole_integers`: 8-bit weights times their scales, where only the CPU has the operator.
Contract  Weights keep their names and places; a weight that was float32 or is cast to it gets a cast to
          float16, which ONNX Runtime folds when it opens the graph. An operator outside `CUDA_KERNELS` is an
          error by name: it would run on the CPU without a word.
Elsewhere reading and writing graphs: graph_file.py; who runs them: cuda_decoder.py, providers.py.
Source    docs/cuda.md#operators
"""

from collections.abc import Iterable

from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.graph_file import FLOAT, FLOAT16, GraphFile, Node

# Operators of our graphs: the types their CUDA kernels have in onnxruntime-gpu 1.31.1, read from the symbols
# of its libonnxruntime_providers_cuda.so (docs/cuda.md#operators). "any": it only moves numbers.
CUDA_KERNELS: dict[str, tuple[str, ...]] = {
    "Add": ("float16", "float32"),
    "Cast": ("any",),
    "Clip": ("float16", "float32"),
    "Concat": ("any",),
    "Conv": ("float16", "float32"),
    "Cos": ("float16", "float32"),
    "Div": ("float16", "float32"),
    "FusedMatMul": ("float16", "float32"),
    "Gather": ("any",),
    "Gelu": ("float16", "float32"),
    "Gemm": ("float16", "float32"),
    "GridSample": ("float32",),
    "GroupQueryAttention": ("float16",),
    "Identity": ("any",),
    "InstanceNormalization": ("float16", "float32"),
    "LayerNormalization": ("float16", "float32"),
    "Log": ("float16", "float32"),
    "MRotaryEmbedding": ("float16", "float32"),
    "MatMul": ("float16", "float32"),
    "MatMulNBits": ("float16", "float32"),
    "Max": ("float16", "float32"),
    "Mul": ("float16", "float32"),
    "MultiHeadAttention": ("float16", "float32"),
    "Neg": ("float16", "float32"),
    "ReduceMax": ("float16", "float32"),
    "ReduceMin": ("float16", "float32"),
    "ReduceSum": ("float16", "float32"),
    "Relu": ("float16", "float32"),
    "Reshape": ("any",),
    "Sigmoid": ("float16", "float32"),
    "SimplifiedLayerNormalization": ("float16", "float32"),
    "Sin": ("float16", "float32"),
    "SkipSimplifiedLayerNormalization": ("float16", "float32"),
    "Softmax": ("float16", "float32"),
    "Split": ("any",),
    "Sub": ("float16", "float32"),
    "TopK": ("float16", "float32"),
    "Transpose": ("any",),
    "Unsqueeze": ("any",),
}
# The vision tower's products; rows between them stay float32 (export/half.py says which layers are delicate).
HALF_OF_VISION = ("FusedMatMul", "MatMul", "MultiHeadAttention")
DELICATE = ("patch_embed", "mlp.down_proj", "merger")
ATTENTION_BIAS = 10  # input of GroupQueryAttention


def half_decoder(graph: GraphFile) -> None:
    """The decoder in float16, without an attention bias.

    Raises:
        DeviceError: an operator has no CUDA kernel in float16.
    """
    check_kernels(graph, "decoder.onnx", "float16")
    for node in graph.nodes:
        if node.op == "Cast" and node.whole("to") == FLOAT:
            node.set_whole("to", FLOAT16)
        elif node.op == "GroupQueryAttention":
            node.inputs = _trimmed(node.inputs[:ATTENTION_BIAS])
        elif node.op == "MatMulNBits":
            node.set_whole("accuracy_level", 0)
    graph.inputs.pop("attention_bias", None)
    _halve_weights(graph)
    for values in (graph.inputs, graph.outputs):
        for name, value in values.items():
            if value.element == FLOAT:
                values[name] = value.retyped(FLOAT16)
    graph.outputs["logits"] = graph.outputs["logits"].retyped(FLOAT)
    last = next(node for node in graph.nodes if "logits" in node.outputs)
    last.outputs = ["logits.half" if name == "logits" else name for name in last.outputs]
    graph.nodes.append(_cast("logits.half", "logits", FLOAT))


def half_vision(graph: GraphFile) -> None:
    """The vision tower with its products and attention in float16 between casts, all else in float32.

    Raises:
        DeviceError: an operator has no CUDA kernel.
    """
    whole_integers(graph)
    check_kernels(graph, "vision.onnx", "float32")
    stored = {node.outputs[0]: node.inputs[0] for node in graph.nodes if node.op == "Cast"}
    nodes: list[Node] = []
    for count, node in enumerate(graph.nodes):
        if node.op in HALF_OF_VISION and not _is_delicate(node, stored):
            nodes += _in_half(node, count)
        else:
            nodes.append(node)
    graph.nodes = nodes


def whole_integers(graph: GraphFile) -> None:
    """Put a product with codes times scales where `DynamicQuantizeMatMul` stood, which only the CPU has.

    The activations are then not rounded to 8 bits, so the outcome is nearer to the float model's.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op != "DynamicQuantizeMatMul":
            nodes.append(node)
            continue
        x, codes, scales = node.inputs[:3]
        bias = node.inputs[4] if len(node.inputs) > 4 else ""
        product = f"{node.outputs[0]}.product" if bias else node.outputs[0]
        nodes += [  # the first two are folded when the graph is opened
            _cast(codes, f"{codes}.float", FLOAT),
            Node("Mul", "", [f"{codes}.float", scales], [f"{codes}.whole"], f"{node.name}/whole"),
            Node("MatMul", "", [x, f"{codes}.whole"], [product], node.name),
        ]
        if bias:
            nodes.append(Node("Add", "", [product, bias], [node.outputs[0]], f"{node.name}/bias"))
    graph.nodes = nodes


def check_kernels(graph: GraphFile, name: str, element: str) -> None:
    """DeviceError where an operator would have to run on the CPU."""
    wrong = sorted({node.op for node in graph.nodes if not _has_kernel(node.op, element)})
    if wrong:
        raise DeviceError(
            f"device 'cuda': {name} holds {', '.join(wrong)}, for which ONNX Runtime has no CUDA kernel in "
            f"{element}. Use device='cpu', or export the bundle again with this version."
        )


def _has_kernel(op: str, element: str) -> bool:
    return bool({"any", element} & set(CUDA_KERNELS.get(op, ())))


def _halve_weights(graph: GraphFile) -> None:
    """Cast every float32 weight; bfloat16 ones have their cast already."""
    halved = {name: f"{name}.half" for name, weight in graph.weights.items() if weight.element == FLOAT}
    for node in graph.nodes:
        node.inputs = [halved.get(name, name) for name in node.inputs]
    graph.nodes = [*(_cast(name, half, FLOAT16) for name, half in halved.items()), *graph.nodes]


def _in_half(node: Node, count: int) -> Iterable[Node]:
    """The node between casts. Whole-number inputs, such as key lengths, are the fifth and later."""
    casts, inputs = list[Node](), list[str]()
    for place, name in enumerate(node.inputs):
        if name and place < 4:
            casts.append(_cast(name, f"{name}.half.{count}", FLOAT16))
            inputs.append(f"{name}.half.{count}")
        else:
            inputs.append(name)
    given = node.outputs[0]
    inner = Node(node.op, node.domain, inputs, [f"{given}.half"], node.name, node.attributes)
    return [*casts, inner, _cast(f"{given}.half", given, FLOAT)]


def _is_delicate(node: Node, stored: dict[str, str]) -> bool:
    """Whether it is a product with a layer that stays float32, by the name its weight is stored under."""
    names = [stored.get(name, name) for name in node.inputs]
    return any(part in name for part in DELICATE for name in names)


def _cast(name: str, made: str, element: int) -> Node:
    node = Node("Cast", "", [name], [made], f"cast/{made}")
    node.set_whole("to", element)
    return node


def _trimmed(names: list[str]) -> list[str]:
    """Without the empty names at the end."""
    while names and not names[-1]:
        names = names[:-1]
    return names
