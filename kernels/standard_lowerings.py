"""The definitions of this folder in standard ONNX operators, for targets that know no others (TensorRT).

Contract  Each equals the lowering of the same name without `standard_` in the operation's own file: same
          inputs, same value, up to float32 rounding. Axes and shapes are constants wherever the operation
          allows it, because TensorRT's parser wants most of them so.
Elsewhere the definitions: the operation's own file; who replaces operators in a finished graph:
          export/standard_graph.py.
Source    docs/sources.md#tensorrt-operators
"""

import math

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import Builder

HIDDEN_SCORE = -6e4  # float16 holds it, and exp() of anything near it is 0


def _ints(graph: Builder, *values: int) -> str:
    return graph.constant(np.array(values, np.int64))


def lower_standard_linear(graph: Builder, x: str, weight: str, transposed: bool = True) -> str:
    """x Wᵀ for a weight (out, in), or x W for one (in, out) when not `transposed`."""
    right = graph.node("Transpose", [weight], perm=[1, 0]) if transposed else weight
    return graph.node("MatMul", [x, right])


def lower_standard_rms_norm(graph: Builder, x: str, weight: str, epsilon: float) -> str:
    """kernels/rms_norm.py over the last axis, from opset 18 on."""
    square = graph.node("Mul", [x, x])
    mean = graph.node("ReduceMean", [square, _ints(graph, -1)], keepdims=1)
    root = graph.node("Sqrt", [graph.node("Add", [mean, graph.constant(np.array(epsilon, np.float32))])])
    return graph.node("Mul", [graph.node("Div", [x, root]), weight])


def lower_standard_mrope(
    graph: Builder, x: str, positions: str, cos: str, sin: str, section: tuple[int, int, int], heads: int
) -> str:
    """kernels/mrope.py on (B, S, heads * head_dim) with positions (3, B, S)."""
    half = sum(section)
    turn_cos, turn_sin = (_angles(graph, positions, table, section) for table in (cos, sin))
    split = graph.node("Reshape", [x, _ints(graph, 0, 0, heads, 2 * half)])
    a = graph.node("Slice", [split, _ints(graph, 0), _ints(graph, half), _ints(graph, 3)])
    b = graph.node("Slice", [split, _ints(graph, half), _ints(graph, 2 * half), _ints(graph, 3)])
    first = graph.node("Sub", [graph.node("Mul", [a, turn_cos]), graph.node("Mul", [b, turn_sin])])
    second = graph.node("Add", [graph.node("Mul", [b, turn_cos]), graph.node("Mul", [a, turn_sin])])
    turned = graph.node("Concat", [first, second], axis=3)
    return graph.node("Reshape", [turned, _ints(graph, 0, 0, heads * 2 * half)])


def _angles(graph: Builder, positions: str, table: str, section: tuple[int, int, int]) -> str:
    """(B, S, 1, head_dim / 2): each pair's entry at the position on its own axis."""
    parts, start = [], 0
    for axis, count in enumerate(section):
        if count == 0:
            continue
        stop = start + count
        own = graph.node("Slice", [table, _ints(graph, start), _ints(graph, stop), _ints(graph, 1)])
        where = graph.node("Gather", [positions, graph.constant(np.array(axis, np.int64))], axis=0)
        parts.append(graph.node("Gather", [own, where], axis=0))
        start = stop
    joined = parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=2)
    return graph.node("Unsqueeze", [joined, _ints(graph, 2)])


def lower_standard_attention(
    graph: Builder, q: str, k: str, v: str, heads: int, width: int, lengths: str | None = None
) -> str:
    """Attention in both directions on (B, N, width), as kernels/window_attention.py.

    Args:
        width: heads * d.
        lengths: (B,) int32, how many of each row's keys are real; all when None.
    """
    size = width // heads
    query, key, value = (
        graph.node("Transpose", [graph.node("Reshape", [part, _ints(graph, 0, 0, heads, size)])], perm=perm)
        for part, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
    )
    # The query is scaled, not the scores: in float16 they could overflow before they shrink.
    scale: NDArray[np.float32] = np.array(1 / math.sqrt(size), np.float32)
    scores = graph.node("MatMul", [graph.node("Mul", [query, graph.constant(scale)]), key])
    if lengths is not None:
        hidden = graph.constant(np.array(HIDDEN_SCORE, np.float32))
        scores = graph.node("Where", [_real_keys(graph, k, lengths), scores, hidden])
    seen = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), value])
    return graph.node(
        "Reshape", [graph.node("Transpose", [seen], perm=[0, 2, 1, 3]), _ints(graph, 0, 0, width)]
    )


def _real_keys(graph: Builder, k: str, lengths: str) -> str:
    """(B, 1, 1, M) bool: whether a key is one of its row's first `lengths`."""
    count = graph.node("Gather", [graph.node("Shape", [k]), graph.constant(np.array(1, np.int64))], axis=0)
    zero, one = (graph.constant(np.array(value, np.int64)) for value in (0, 1))
    number = graph.node("Range", [zero, count, one])
    wide = graph.node("Cast", [lengths], to=7)  # to int64
    return graph.node("Less", [number, graph.node("Unsqueeze", [wide, _ints(graph, 1, 2, 3)])])
