"""Random weights all the way: export, open, look without boxes, ask. Answers mean nothing, paths do."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rexthinker_edge.export.options import ExportOptions
from rexthinker_edge.export.pipeline import export_bundle
from rexthinker_edge.export.quantize import Precision
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.thinker import load

from .test_pipeline import make_vlm

SMALL = Path(__file__).parents[2] / "checkpoints" / "small" / "detector"


@pytest.fixture
def detector(tmp_path):
    """The small detector's shape, none of its weights."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection  # noqa: PLC0415

    torch.manual_seed(2)
    model = GroundingDinoForObjectDetection(GroundingDinoConfig.from_pretrained(SMALL))
    directory = tmp_path / "detector"
    model.save_pretrained(directory)
    for file in SMALL.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copyfile(file, directory / file.name)
    return directory


def test_looking_without_boxes_from_a_random_bundle(detector, tmp_path, capfd):
    make_vlm(tmp_path / "vlm", {"max_position_embeddings": 4096})
    options = ExportOptions(precision=Precision.INT4, golden_questions=1, golden_tokens=4)
    manifest = export_bundle(tmp_path / "vlm", detector, tmp_path / "bundle", options)
    assert "Loading weights" not in capfd.readouterr().err  # transformers' bar is not the export's
    thinker = load(tmp_path / "bundle", threads=1)
    pixels_HWC = np.random.default_rng(1).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    scene = thinker.look(pixels_HWC, "ball")
    boxes = np.array([candidate.box for candidate in scene.candidates]).reshape(-1, 4)
    assert ((boxes >= 0) & (boxes <= [140, 90, 140, 90])).all()
    result = scene.refer("the red ball", max_new_tokens=3)
    expected = {Status.TRUNCATED, Status.MALFORMED} if len(boxes) else {Status.NO_CANDIDATES}
    assert result.status in expected
    assert len(result.candidates) == len(boxes)
    recorded = manifest.golden[0]
    again = thinker.look(tmp_path / "bundle" / recorded.picture, recorded.category)
    assert (
        np.abs(np.array([c.box for c in again.candidates]) - np.array(recorded.detected)).max(initial=0)
        <= 0.5
    )
