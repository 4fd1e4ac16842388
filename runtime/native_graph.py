"""Gives a decoder's products and attention to our own operators: a graph as stored in, as it runs here out.

Contract  Only nodes change: MatMulNBits that rounds its activations (accuracy level 4), in sizes that our
          operator has and without a column order; and, where all products are ours, GroupQueryAttention.
          Then a row's numbers depend on that row and on what it sees, not on the rows beside it:
          `rows_alike`. The file in the bundle is untouched; weights stay where they are and are mapped.
Elsewhere the operators, and when a machine uses them: kernels/native_operators.py; who asks: decoder.py.
Source    docs/native.md
"""

from dataclasses import dataclass
from pathlib import Path

from rexthinker_edge.kernels.native_operators import DOMAIN, VERSION, attends, serves, trouble
from rexthinker_edge.runtime.graph_file import GraphFile, Node, read_graph

ROUNDED = 4  # accuracy level: int8 activations
COLUMN_ORDER = 4  # place of the optional input g_idx
PAST_KEYS, BIAS = 3, 10  # places of inputs of GroupQueryAttention
HEADS = {"num_heads", "kv_num_heads"}  # its attributes that ours has
# What computes every row by itself already.
BY_ROWS = {
    "Cast", "Gather", "Identity", "Mul", "MRotaryEmbedding", "QuickGelu", "Sigmoid",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
}  # fmt: skip


@dataclass(frozen=True)
class NativeGraph:
    """A graph with our operators in it; `rows_alike` as above."""

    model: bytes
    rows_alike: bool


def native_graph(path: Path) -> NativeGraph | None:
    """The graph at `path` with its products given to our operator; None where it has none, or they cannot be.

    Raises:
        BundleError: it is no ONNX graph.
    """
    if trouble():
        return None
    graph = read_graph(path)
    products = [node for node in graph.nodes if _multiplies(node)]
    if not products:
        return None
    attentions = [node for node in graph.nodes if _attends(node, graph)]
    ours = {id(node) for node in products + attentions}
    rows_alike = {node.op for node in graph.nodes if id(node) not in ours} <= BY_ROWS
    for node in products + (attentions if rows_alike else []):
        node.domain = DOMAIN
    graph.import_domain(DOMAIN, VERSION)
    return NativeGraph(graph.serialise(), rows_alike)


def _multiplies(node: Node) -> bool:
    if node.op != "MatMulNBits" or node.whole("accuracy_level") != ROUNDED:
        return False
    ordered = len(node.inputs) > COLUMN_ORDER and node.inputs[COLUMN_ORDER]
    return not ordered and serves(node.whole("bits"), node.whole("block_size"))


def _attends(node: Node, graph: GraphFile) -> bool:
    if node.op != "GroupQueryAttention" or set(node.attributes) != HEADS:
        return False
    rotation = [name for place, name in enumerate(node.inputs) if 7 <= place < BIAS and name]
    keys = graph.inputs.get(node.inputs[PAST_KEYS])
    return not rotation and len(node.inputs) <= BIAS + 1 and keys is not None and attends(keys.side(3))
