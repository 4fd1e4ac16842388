"""Gives a decoder's 4- and 8-bit products to our own operator: from a graph as stored to one as it runs here.

Contract  Only nodes change, and of those only MatMulNBits that rounds its activations (accuracy level 4), in
          sizes that the operator has, without a column order. The file in the bundle is untouched; weights
          stay where they are and are mapped.
Elsewhere the operator, and when a machine uses it: kernels/native_products.py; who opens it: opening.py.
Source    docs/native.md
"""

from pathlib import Path

from rexthinker_edge.kernels.native_products import DOMAIN, VERSION, serves, trouble
from rexthinker_edge.runtime.graph_file import Node, read_graph

ROUNDED = 4  # accuracy level: int8 activations
COLUMN_ORDER = 4  # place of the optional input g_idx


def native_graph(path: Path) -> bytes | None:
    """The graph at `path` with its products given to our operator; None where it has none, or they cannot be.

    Raises:
        BundleError: it is no ONNX graph.
    """
    if trouble():
        return None
    graph = read_graph(path)
    served = [node for node in graph.nodes if _served(node)]
    if not served:
        return None
    for node in served:
        node.domain = DOMAIN
    graph.import_domain(DOMAIN, VERSION)
    return graph.serialise()


def _served(node: Node) -> bool:
    if node.op != "MatMulNBits" or node.whole("accuracy_level") != ROUNDED:
        return False
    ordered = len(node.inputs) > COLUMN_ORDER and node.inputs[COLUMN_ORDER]
    return not ordered and serves(node.whole("bits"), node.whole("block_size"))
