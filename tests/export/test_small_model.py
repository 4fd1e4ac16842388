"""The bundled model is what `checkpoints/small` exports to, and answers as it was recorded."""

from pathlib import Path

import pytest

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.thinker import load, small_bundle

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "small" / "vlm"


def test_the_bundle_is_what_the_checkpoint_exports_to(tmp_path):
    """Byte for byte, so a stale bundle cannot pass for the checkpoint beside it."""
    manifest = open_bundle(small_bundle()).manifest
    config, checkpoint = read_config(CHECKPOINT), Checkpoint(CHECKPOINT)
    vision = write_vision(checkpoint, config.vision, tmp_path, manifest.prompt.max_pixels)
    decoder = write_decoder(checkpoint, config.text, tmp_path, manifest.decoder.max_length, None)
    assert (vision, decoder) == (manifest.vision, manifest.decoder)
    for path in tmp_path.iterdir():
        if path.suffix != ".onnx":  # the graph files' bytes depend on the protobuf version
            assert path.read_bytes() == (small_bundle() / path.name).read_bytes(), path.name


@pytest.mark.parametrize("threads", [1, 2])
def test_golden_answers_replay(threads):
    thinker = load(threads=threads)
    manifest = open_bundle(small_bundle()).manifest
    assert len(manifest.golden) == 3
    for golden in manifest.golden:
        scene = thinker.look(small_bundle() / golden.picture, golden.category, golden.candidates)
        assert scene.refer(golden.expression).token_ids == golden.token_ids
