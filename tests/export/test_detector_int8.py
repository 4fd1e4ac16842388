"""Choosing 8-bit layers: the greedy rule by hand, and the whole way on the small model."""

from pathlib import Path

import numpy as np
import pytest

from rexthinker_edge.export.detector_int8 import candidates, choose, choose_int8, distances, may_be_rounded

SMALL = Path(__file__).parents[2] / "checkpoints" / "small" / "detector"


class Stand:
    """Drifts that add up."""

    def __init__(self, drifts):
        self.drifts, self.names = drifts, list(drifts)

    def drift_px(self, layers):
        return sum(self.drifts[name] for name in layers)


@pytest.mark.parametrize(
    ("limit", "taken"),
    [(1.0, ["swin.a", "swin.b", "swin.c", "swin.d"]), (0.61, ["swin.a", "swin.b", "swin.c"]), (0.0, [])],
)
def test_as_many_of_the_quietest_as_fit(limit, taken):
    stand = Stand({"swin.c": 0.3, "swin.a": 0.1, "swin.d": 0.4, "swin.b": 0.2, "boxes.0": 0.0})
    choice = choose(stand, limit)
    assert list(choice.layers) == taken
    assert choice.drift_px == pytest.approx(sum(stand.drifts[name] for name in taken))
    assert "boxes.0" not in choice.alone_px


def test_only_what_cells_go_through_is_tried():
    assert may_be_rounded("encoder.3.mlp.fc1")
    assert may_be_rounded("decoder.0.value")
    assert not may_be_rounded("encoder.3.words.mlp.fc1")
    assert not may_be_rounded("decoder.0.mlp.fc1")


def test_pinned_distance():
    wanted = np.array([[0.5, 0.5, 0.2, 0.2]], np.float32)
    found = np.array([[0.9, 0.9, 0.1, 0.1], [0.51, 0.5, 0.2, 0.2]], np.float32)
    # 400 x 200 px, so 1600 x 800: x edges off by 16 px, y edges by none
    np.testing.assert_allclose(distances(wanted, found, np.array([400, 200], np.float32)), [8.0], rtol=1e-5)
    assert len(candidates(np.full((40, 3), -9.0, np.float32), np.zeros((40, 4), np.float32), 0.5)) == 10
    assert len(candidates(np.full((40, 3), 9.0, np.float32), np.zeros((40, 4), np.float32), 0.5)) == 40


@pytest.mark.skipif(not SMALL.exists(), reason="the small checkpoint is not here")
def test_the_small_detector_gets_layers_within_the_limit(monkeypatch):
    monkeypatch.setattr(
        "rexthinker_edge.export.detector_int8.may_be_rounded", lambda name: name.endswith("mlp.fc1")
    )
    choice = choose_int8(SMALL, limit_px=0.5, pictures=2)
    assert choice.drift_px <= 0.5
    assert set(choice.layers) <= choice.alone_px.keys()
    assert "encoder.0.mlp.fc1" in choice.alone_px
    assert all(0 < drift < 50 for drift in choice.alone_px.values())
