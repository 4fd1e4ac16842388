"""The whole export: what the bundle says, that it runs, and that failures leave nothing behind."""

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from rexthinker_edge.calibration.sources import choose_calibration
from rexthinker_edge.commands.data import data
from rexthinker_edge.commands.export import export
from rexthinker_edge.commands.info import info
from rexthinker_edge.export import golden, parts, pipeline
from rexthinker_edge.export.options import ExportOptions
from rexthinker_edge.export.pipeline import check_checkpoint, export_bundle
from rexthinker_edge.export.quantize import Precision
from rexthinker_edge.export.source_files import PUBLISHED_PROMPT, end_tokens, read_settings
from rexthinker_edge.runtime import parts as opened_parts
from rexthinker_edge.runtime import thinker as thinkers
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.errors import BundleError, CheckpointError, ConfigError, OptionError
from rexthinker_edge.runtime.manifest import ModelCard
from tests.conftest import SPECIALS, FakeDetector, write_tokenizer

from .conftest import make_model

SETTINGS = {
    "system": "Look.", "wording": "locate", "min_pixels": 16 * 784, "max_pixels": 64 * 784,
    "max_new_tokens": 9,
    "model": {"name": "tiny", "source": "tests", "revision": "1", "licence": "Apache-2.0", "notice": "None."},
}  # fmt: skip
GEOMETRY = DetectorGeometry(800, 1333, 32, (0.5,) * 3, (0.5,) * 3, 9, 256, 0.25)


@pytest.fixture
def vlm(tmp_path):
    """A random checkpoint with its tokenizer and settings."""
    directory = tmp_path / "vlm"
    make_vlm(directory)
    return directory


def make_vlm(directory, text=None):
    make_model(directory, {"vocab_size": 400} | (text or {}), {}, tied=True)
    write_tokenizer(directory / "tokenizer.json")
    config = json.loads((directory / "config.json").read_text())
    for key in ("image_pad", "vision_start", "vision_end"):
        config[f"{key.removesuffix('_pad')}_token_id"] = SPECIALS.index(f"<|{key}|>")
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "rexthinker.json").write_text(json.dumps(SETTINGS))


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """A stand-in for the detector's export and for the detector: both have tests of their own."""
    directory = tmp_path / "detector"
    directory.mkdir()
    write_tokenizer(directory / "tokenizer.json")

    def write_detector(checkpoint: Path, out: Path, int8: tuple[str, ...] = ()) -> DetectorGeometry:
        assert checkpoint == directory
        sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_graph([node], "stand-in", sides[:1], sides[1:])
        opsets = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, ir_version=9, opset_imports=opsets)
        out.write_bytes(model.SerializeToString())
        return GEOMETRY

    monkeypatch.setattr(parts, "write_detector", write_detector)
    for module in (opened_parts, golden):
        monkeypatch.setattr(module, "Detector", lambda *_, **__: FakeDetector())
    monkeypatch.setattr(pipeline, "read_geometry", lambda _: GEOMETRY)
    return directory


@pytest.mark.parametrize("precision", list(Precision))
def test_a_bundle_is_complete_and_answers_as_recorded(vlm, detector, tmp_path, precision):
    out = tmp_path / "bundle"
    reports = []
    options = ExportOptions(precision=precision)
    manifest = export_bundle(vlm, detector, out, options, lambda *r: reports.append(r))
    assert open_bundle(out, hashes=True).manifest == manifest
    assert manifest.model == ModelCard(**SETTINGS["model"])
    assert (manifest.name, manifest.prompt.system, manifest.prompt.max_new_tokens) == ("tiny", "Look.", 9)
    assert (manifest.tokens.image_pad, manifest.tokens.eos) == (SPECIALS.index("<|image_pad|>"), (2,))
    assert manifest.decoder.max_length == 512  # the model's own limit, below the default
    rounded = "{} round-to-nearest, block 32, accuracy level 4; output layer int8; embeddings bfloat16"
    words = {
        Precision.FP32: "fp32, weights stored as bfloat16",
        Precision.INT8: rounded.format("int8"),
        Precision.INT4: rounded.format("int4"),
    }
    assert manifest.quantisation["decoder.onnx"] == words[precision]
    done = [done for _, done, _ in reports]
    assert done == sorted(done)
    assert done[-1] == reports[-1][2]  # every byte of the checkpoint was asked for
    assert len(manifest.golden) == 3
    thinker = thinkers.load(out, threads=1)
    for recorded in manifest.golden:
        scene = thinker.look(out / recorded.picture, recorded.category, recorded.candidates)
        assert scene.refer(recorded.expression).token_ids == recorded.token_ids
        assert 0 < len(recorded.token_ids) <= 9
        assert len(recorded.detected) == 3


def test_a_failure_leaves_what_stood_there(vlm, detector, tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    export_bundle(vlm, detector, out, ExportOptions())
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def broken(*_: object, **__: object):
        raise CheckpointError("detector: broken")

    with pytest.raises(BundleError, match="exists already"):
        export_bundle(vlm, detector, out, ExportOptions())
    monkeypatch.setattr(parts, "write_detector", broken)
    with pytest.raises(CheckpointError, match="broken"):
        export_bundle(vlm, detector, out, ExportOptions(overwrite=True))
    with pytest.raises(CheckpointError, match="broken"):
        export_bundle(vlm, detector, tmp_path / "other", ExportOptions())
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    kept = [".bundle.partial", ".bundle.work", ".other.partial", ".other.work"]  # to go on from
    assert sorted(p.name for p in tmp_path.iterdir()) == [*kept, "bundle", "detector", "vlm"]


@pytest.mark.parametrize("layout", ["humanref-cot", "humanref"])
def test_calibrated_on_files_from_the_command_line(detector, tmp_path, layout):
    """`data make`, then `export --calibration KIND:DIR`: the manifest tells the choice."""
    checkpoint, source = tmp_path / "long", f"{layout}:{tmp_path / 'data'}"
    make_vlm(checkpoint, {"max_position_embeddings": 4096})
    made = CliRunner().invoke(
        data, ["make", str(tmp_path / "data"), "--seed", "3", "--count", "5", "--layout", layout]
    )
    assert made.exit_code == 0, made.output
    arguments = [str(checkpoint), "--detector", str(detector), "--out", str(tmp_path / "bundle")]
    options = ["--precision", "int4", "--calibration", source, "--samples", "2", "--golden-questions", "0"]
    drafts = ["--draft-traces", source, "--draft-count", "3"] if layout == "humanref-cot" else []
    done = CliRunner().invoke(export, [*arguments, *options, *drafts], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = open_bundle(tmp_path / "bundle").manifest
    card, choice = manifest.calibration, choose_calibration(source, 2, seed=0)
    assert card is not None
    assert (card.source, card.items, card.seed) == (source, 2, 0)
    assert card.ids == tuple(situation.id for situation in choice.situations)
    assert card.sha256 == choice.sha256()
    assert card.domains == choice.domains()
    assert card.traces == (2 if layout == "humanref-cot" else 0)  # HumanRef has none: none are made up
    assert card.tokens > 200
    assert "GPTQ on 2 samples" in manifest.quantisation["decoder.onnx"]
    told = CliRunner().invoke(info, [str(tmp_path / "bundle")]).output
    assert f"calibration {source}, 2 items, seed 0" in told
    if drafts:
        assert manifest.drafts is not None
        assert (manifest.drafts.source, manifest.drafts.traces, len(manifest.drafts.sha256)) == (
            source,
            3,
            64,
        )
        assert f"drafts      3 traces of {source}" in told


def test_dry_run(vlm, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert check_checkpoint(vlm, scratch).text.vocab == 400
    assert sum(p.stat().st_size for p in scratch.iterdir()) < 100_000
    config = json.loads((vlm / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 80
    (vlm / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"gate_proj.weight' has shape \[96, 64\]"):
        check_checkpoint(vlm, scratch)


def test_a_layer_too_many_is_refused(vlm, tmp_path):
    config = json.loads((vlm / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    (vlm / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"12 tensors have no place .* 'model.layers.1"):
        check_checkpoint(vlm, tmp_path)


def test_options(vlm, detector, tmp_path):
    out = tmp_path / "bundle"
    cases = [
        (ExportOptions(max_length=513), "max_length: 513, needed 1 to 512"),
        (ExportOptions(precision=Precision.INT4, block=48), "block: 48, needed 16, 32"),
        (ExportOptions(precision=Precision.INT4, accuracy_level=3), "accuracy_level: 3, needed 0 or 4"),
        (ExportOptions(licence=""), "licence: neither"),
    ]
    for options, message in cases:
        with pytest.raises(OptionError, match=message):
            export_bundle(vlm, detector, out, options)
    assert not out.exists()


def test_settings(vlm):
    (vlm / "rexthinker.json").unlink()
    prompt, card = read_settings(vlm)
    assert prompt == PUBLISHED_PROMPT
    assert card is None
    assert (prompt.min_pixels, prompt.max_pixels) == (12544, 1003520)
    for change, message in [
        ({"tone": "kind"}, "unknown key tone"),
        ({"wording": "shout"}, "wording: 'shout'"),
    ]:
        (vlm / "rexthinker.json").write_text(json.dumps(SETTINGS | change))
        with pytest.raises(CheckpointError, match=message):
            read_settings(vlm)


def test_end_tokens(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 5}}')
    assert end_tokens(tmp_path) == (5,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    assert end_tokens(tmp_path) == (151645, 151643)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="eos_token_id"):
        end_tokens(tmp_path)


def test_a_foreign_tokenizer_is_refused(vlm, tmp_path):
    config = json.loads((vlm / "config.json").read_text())
    (vlm / "config.json").write_text(json.dumps(config | {"image_token_id": 90}))
    with pytest.raises(CheckpointError, match=r"<\|image_pad\|> is token 5, config.json says 90"):
        check_checkpoint(vlm, tmp_path)
    (vlm / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(str(vlm / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"word{i}" for i in range(401 - size)])
    tokenizer.save(str(vlm / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="401 tokens, the model has 400"):
        check_checkpoint(vlm, tmp_path)
    (vlm / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        check_checkpoint(vlm, tmp_path)


def test_command(vlm, detector, tmp_path):
    arguments = [str(vlm), "--detector", str(detector), "--out", str(tmp_path / "bundle")]
    checked = CliRunner().invoke(export, [*arguments, "--dry-run"])
    assert checked.exit_code == 0, checked.output
    assert "every key honoured" in checked.output
    assert not (tmp_path / "bundle").exists()
    made = CliRunner().invoke(
        export, [*arguments, "--name", "other", "--licence", "MIT", "--max-length", "400"]
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["name"] == "other"
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.model.licence, manifest.decoder.max_length) == ("MIT", 400)
    (vlm / "config.json").write_text("{}")
    failed = CliRunner().invoke(export, [*arguments, "--overwrite"])
    assert isinstance(failed.exception, ConfigError)  # the entry point turns it into one line and exit code 1
