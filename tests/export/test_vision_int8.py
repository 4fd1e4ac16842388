"""The vision tower in 8 bits: near the float32 one, smaller, and refused by another name."""

import numpy as np
import onnx
import pytest

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.qwen_pixels import VisionInput
from rexthinker_edge.runtime.vision import VisionTower

from .conftest import MAX_PIXELS, one_thread


@pytest.mark.parametrize("grid", [(4, 6), (10, 18)])
def test_eight_bits_stay_near_for_any_grid(exported, tmp_path, rng, grid):
    made = exported()
    geometry = write_vision(
        Checkpoint(made.directory), made.config.vision, tmp_path, MAX_PIXELS, precision="int8"
    )
    assert geometry == made.vision.geometry
    patches = rng.standard_normal((grid[0] * grid[1], 1176)).astype(np.float32)
    seen = VisionInput(patches, (1, *grid), (grid[1] * 14, grid[0] * 14))
    exact = made.vision.encode(seen)
    rounded = VisionTower(tmp_path / "vision.onnx", geometry, one_thread()).encode(seen)
    # each product strays by some 1 % (7 bits of weight, 8 of activation); a dozen of them follow one another
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.06
    model = onnx.load(tmp_path / "vision.onnx", load_external_data=False)
    linears = 6 * made.config.vision.depth + 2 - made.config.vision.depth
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == linears
    codes = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(codes) == linears


def test_tables_of_a_grid_are_made_once(exported, rng, monkeypatch):
    made = exported()
    seen = VisionInput(rng.standard_normal((16, 1176)).astype(np.float32), (1, 4, 4), (56, 56))
    cold = made.vision.encode(seen)
    monkeypatch.setattr("rexthinker_edge.runtime.vision.grid_tables", lambda *_: pytest.fail("made again"))
    assert np.array_equal(made.vision.encode(seen), cold)


def test_another_precision_is_refused(exported, tmp_path):
    made = exported()
    with pytest.raises(OptionError, match="vision: 'int3', one of"):
        write_vision(Checkpoint(made.directory), made.config.vision, tmp_path, MAX_PIXELS, precision="int3")
