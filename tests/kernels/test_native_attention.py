"""Our own GroupQueryAttention: its definition, ONNX Runtime's as oracle, the same bits however rows mix."""

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.kernels.builder import CONTRIB
from rexthinker_edge.kernels.grouped_query_attention import (
    grouped_query_attention,
    lower_grouped_query_attention,
)
from rexthinker_edge.kernels.native_operators import DOMAIN, attends, library_path, trouble
from rexthinker_edge.runtime.tiny_onnx import TinyGraph

pytestmark = pytest.mark.skipif(
    library_path() is None or "AVX2" in trouble(), reason=f"our attention does not run here: {trouble()}"
)
HIDDEN = np.float32(-1e30)


class Attention:
    """The operator in a session, over a cache of its own."""

    def __init__(self, heads, kv_heads, width, capacity, domain=DOMAIN, threads=1, bias=True):
        graph = TinyGraph()
        names = [graph.free_input(name) for name in ("query", "key", "value", "keys", "values")]
        last, total = graph.free_input("last", "int32"), graph.free_input("total", "int32")
        added = graph.free_input("bias") if bias else ""
        made = lower_grouped_query_attention(
            graph, *names[:3], (names[3], names[4], "new_keys", "new_values"), last, total, added,
            heads, kv_heads, domain,
        )  # fmt: skip
        for name in (made, "new_keys", "new_values"):
            graph.output(name)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.register_custom_ops_library(str(library_path()))
        self.session = ort.InferenceSession(graph.serialise(), options, providers=["CPUExecutionProvider"])
        self.made, self.bias = made, bias
        shape = (1, kv_heads, capacity, width)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.length = 0

    def read(self, query, key, value, bias=None):
        """(S, heads, d) and twice (S, kv_heads, d) in, (S, heads, d) out."""
        count = len(query)
        total = self.length + count
        feeds = {"query": query, "key": key, "value": value}
        feeds = {name: array.reshape(1, count, -1) for name, array in feeds.items()}
        feeds |= {"keys": self.keys, "values": self.values}
        feeds |= {"last": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
        if self.bias:
            bias = np.zeros((count, total), np.float32) if bias is None else bias
            feeds["bias"] = bias[None, None]
        out, self.keys, self.values = self.session.run([self.made, "new_keys", "new_values"], feeds)
        self.length = total
        return out.reshape(query.shape)


def numbers(rng, count, heads, kv_heads, width, size=1.0):
    shapes = ((count, heads, width), (count, kv_heads, width), (count, kv_heads, width))
    return [(size * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(28, 4, 128), (4, 2, 32), (3, 1, 96), (2, 2, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_its_definition_and_onnx_runtimes_operator(heads, kv_heads, width, bias):
    rng = np.random.default_rng(0)
    ours = Attention(heads, kv_heads, width, 200, bias=bias)
    theirs = Attention(heads, kv_heads, width, 200, CONTRIB, bias=bias)
    keys, values = (np.zeros((kv_heads, 200, width), np.float32) for _ in range(2))
    past = 0
    for count in (70, 1, 9):
        given = numbers(rng, count, heads, kv_heads, width)
        added = None
        if bias:
            added = rng.normal(size=(count, past + count)).astype(np.float32)
            added[:, : past // 3] = HIDDEN
        expected = grouped_query_attention(*given, keys, values, past, added)
        found = ours.read(*given, added)
        assert np.abs(found - expected).max() < 2e-6 * width**0.5
        assert np.abs(found - theirs.read(*given, added)).max() < 2e-6 * width**0.5
        past += count
        assert np.array_equal(ours.keys[0, :, :past], keys[:, :past])
        assert np.array_equal(ours.values[0, :, :past], values[:, :past])


def test_rows_give_the_same_bits_in_any_grouping_and_on_any_threads():
    rng = np.random.default_rng(1)
    given = numbers(rng, 90, 14, 2, 64)
    found = []
    for groups, threads in (([90], 1), ([1] * 90, 1), ([50, 1, 2, 3, 30, 4], 3), ([7] * 12 + [6], 2)):
        attention, start, rows = Attention(14, 2, 64, 100, threads=threads), 0, []
        for count in groups:
            rows.append(attention.read(*(array[start : start + count] for array in given)))
            start += count
        found.append(np.concatenate(rows))
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_rows_of_another_answer_between_change_no_bit():
    """Tokens of two answers alternate behind a prefix; each sees the prefix and itself."""
    rng = np.random.default_rng(2)
    prefix, first, second = (numbers(rng, count, 7, 1, 128) for count in (45, 12, 12))
    alone = []
    for answer in (first, second):
        attention = Attention(7, 1, 128, 100)
        attention.read(*prefix)
        alone.append(attention.read(*answer))
    mixed = Attention(7, 1, 128, 100)
    mixed.read(*prefix)
    rows = [
        np.stack(pair, axis=1).reshape(24, *pair[0].shape[1:]) for pair in zip(first, second, strict=True)
    ]
    owners = np.array([-1] * 45 + [0, 1] * 12)
    bias = np.where((owners[None] == -1) | (owners[None] == owners[45:, None]), np.float32(0), HIDDEN)
    found = mixed.read(*rows, bias)
    assert np.array_equal(found[0::2], alone[0])
    assert np.array_equal(found[1::2], alone[1])


def test_weights_far_below_the_largest_and_numbers_that_are_none():
    rng = np.random.default_rng(3)
    given = numbers(rng, 20, 4, 2, 32, size=12.0)  # scores differ by hundreds
    attention = Attention(4, 2, 32, 32)
    keys, values = (np.zeros((2, 32, 32), np.float32) for _ in range(2))
    expected = grouped_query_attention(*given, keys, values, 0)
    sane = attention.read(*given)
    assert np.abs(sane - expected).max() < 1e-4
    given[0][7, 1, 3] = np.nan
    attention = Attention(4, 2, 32, 32)
    found = attention.read(*given)
    assert np.isnan(found[7, 1]).all()
    found[7, 1] = sane[7, 1]
    assert np.array_equal(found, sane)


def test_who_sees_nothing_gets_nothing():
    rng = np.random.default_rng(4)
    given = numbers(rng, 3, 2, 1, 32)
    bias = np.zeros((3, 3), np.float32)
    bias[1] = HIDDEN
    found = Attention(2, 1, 32, 8).read(*given, bias)
    assert not found[1].any()
    assert np.abs(found[[0, 2]]).min() > 0


def test_what_it_has_not_is_refused():
    assert [attends(width) for width in (None, 0, 16, 32, 128)] == [False, False, False, True, True]
    rng = np.random.default_rng(5)
    with pytest.raises(refusals.InvalidArgument, match="sizes that do not fit each other"):
        Attention(2, 1, 16, 8).read(*numbers(rng, 2, 2, 1, 16))
    with pytest.raises(refusals.InvalidArgument, match="sizes that do not fit each other"):
        Attention(2, 1, 32, 4).read(*numbers(rng, 5, 2, 1, 32))
    other = Attention(4, 2, 32, 4)
    other.values = other.values[:, :1]
    with pytest.raises(refusals.InvalidArgument, match="one sequence and a cache of its key heads"):
        other.read(*numbers(rng, 2, 4, 2, 32))
    with pytest.raises(refusals.RuntimeException, match="heads do not divide"):
        Attention(3, 2, 32, 4)
