"""Idle rows in 8 bits: bytes by the definition, and a comparison that sees what differs."""

import numpy as np

from rexthinker_edge.benchmarks.idle_kv import Asked, ask, costs, summary
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.thinker import load


def test_bytes_are_those_of_codes_and_scales():
    """A float32 for every 16 codes, keys and values of three layers and two heads."""
    geometry = DecoderGeometry(3, 64, 4, 2, 16, 100, (2, 3, 3), 1e4, 64, "float32")
    found = costs(geometry, 10)
    values = 3 * 2 * 2 * 10 * 16
    assert found["cache_bytes"] == found["float32"]["bytes"] == values * 4
    assert found["int8"]["bytes"] == values + values // 16 * 4
    assert all(
        found[storage][name] >= 0 for storage in ("float32", "int8") for name in ("rest_ms", "back_ms")
    )


def test_one_item_is_compared_token_for_token():
    """Rows in 8 bits do differ, by little: the small model's distributions move and no more."""
    one = ask(load(threads=1), 0)
    assert len(one.divergences) == len(one.answers[0])
    assert one.divergences.min() > -1e-9
    assert 0 < one.divergences.max() < 0.1
    assert one.flips <= len(one.answers[0])


def test_summary_by_hand():
    asked = [Asked(np.array([0.0, 2.0]), 1, ((1, 2), (1, 3))), Asked(np.array([1.0]), 0, ((4,), (4,)))]
    found = summary(asked)
    assert (found["items"], found["tokens"], found["flips"], found["answers_that_differ"]) == (2, 3, 1, 1)
    assert (found["kl_mean"], found["kl_most"], found["answer_tokens"]) == (1.0, 2.0, 1.5)
