"""The plan of an export: its bytes are those of the files, at every shape; a small disk is told first."""

import json
import shutil
from collections import namedtuple

import pytest

from rexthinker_edge.benchmarks.make_random_checkpoint import SHAPES, write_language
from rexthinker_edge.export import plan as plans
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.embeddings import EmbeddingPrecision, write_embeddings
from rexthinker_edge.export.plan import check_disk, integer_bytes, plan_export
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime.errors import BundleError, ConfigError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint in several shards, with numbers in it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_language(directory, "tiny", shard_bytes=50_000_000)
    return directory


def planned(directory, **options):
    config, nothing = read_config(directory), directory / "no detector"
    chosen = {"recipe": None, "embeddings": EmbeddingPrecision.KEPT, "positions": 64} | options
    return plan_export(Checkpoint(directory), nothing, config.text, **chosen)


def part(plan, name):
    return next(p.bytes for p in plan.parts if p.name == name)


@pytest.mark.parametrize("recipe", [None, IntegerRecipe(head_bits=4), IntegerRecipe(head_bits=8, block=32)])
@pytest.mark.parametrize("embeddings", list(EmbeddingPrecision))
def test_bytes_are_those_of_the_files(tiny, tmp_path, recipe, embeddings):
    checkpoint, config = Checkpoint(tiny), read_config(tiny)
    write_decoder(checkpoint, config.text, tmp_path, 64, recipe)
    table = checkpoint.tensor("model.embed_tokens.weight", (config.text.vocab, config.text.hidden))
    write_embeddings(table, tmp_path / "embeddings.bin", embeddings)
    int8 = recipe is not None
    write_vision(checkpoint, config.vision, tmp_path, 784 * 64, precision="int8" if int8 else "fp32")
    plan = planned(tiny, recipe=recipe, embeddings=embeddings, int8=int8)
    decoder = part(plan, "decoder layers") + part(plan, "output layer")
    size = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert size["decoder.onnx.data"] == pytest.approx(decoder, rel=0.01)
    assert size["embeddings.bin"] == part(plan, "embeddings")
    # The tower's rotary table is not planned: some hundred kilobytes at most.
    assert size["vision.onnx.data"] == pytest.approx(part(plan, "vision tower"), rel=0.01, abs=400_000)


def test_a_pinned_weight():
    # 3 rows of 5 blocks of 32 four-bit codes: 80 bytes, 5 scales, 3 bytes of zero points.
    assert integer_bytes((3, 160), 4, 32) == 3 * (80 + 20 + 3)
    assert integer_bytes((1, 130), 8, 128) == 2 * 128 + 2 * 4 + 2


@pytest.mark.parametrize(
    ("shape", "parameters", "tied"),
    [("3b", 3_754_622_976, True), ("7b", 8_292_166_656, False), ("32b", 33_452_718_336, False)],
)
def test_published_shapes_by_configuration_alone(tmp_path, shape, parameters, tied):
    """Sparse files: real sizes and headers, no disk. The parameters are those the publisher counts."""
    assert write_language(tmp_path, shape, sparse=True) == 2 * parameters
    on_disk = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert on_disk < 50_000_000
    config = read_config(tmp_path)
    assert config.text.tied is tied
    checkpoint = Checkpoint(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    write_vision(checkpoint, config.vision, out, 1280 * 784, dry=True)
    write_decoder(checkpoint, config.text, out, 16, None, dry=True)
    checkpoint.refuse_unused()
    plan = planned(
        tmp_path, recipe=IntegerRecipe(head_bits=4), embeddings=EmbeddingPrecision.INT8, positions=8192,
        int8=True,
    )  # fmt: skip
    assert plan.read_bytes == pytest.approx(2 * parameters, rel=0.01)
    if shape == "7b":
        assert 4.9e9 < plan.bytes < 5.1e9  # without the detector, 0.35
        assert plan.memory_bytes < 12e9


def test_another_architecture_is_refused_by_name(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    values = json.loads((copy / "config.json").read_text())
    values |= {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"architecture \['Qwen2VLForConditionalGeneration'\]"):
        read_config(copy)
    assert set(SHAPES) == {"3b", "7b", "32b", "tiny"}


def test_a_small_disk_is_told(tiny, tmp_path, monkeypatch):
    plan = planned(tiny)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda _: usage(1, 1, 30_000_000))
    with pytest.raises(BundleError) as caught:
        check_disk(plan, tmp_path)
    needed = plan.bytes * 1.02 / 1e9
    assert str(caught.value) == (
        f"{tmp_path}: 0.03 GB free on this disk, the export needs {needed:,.2f} GB. Free some space, or name "
        "--out on another disk."
    )
    check_disk(plan, tmp_path, present=plan.bytes)
