"""detector.onnx against transformers: any size, any caption, the same boxes; and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from rexthinker_edge.calibration.workbench.items import make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.export.detector_graph import read_geometry, write_detector
from rexthinker_edge.export.detector_writer import DetectorWriter
from rexthinker_edge.export.graph import GraphWriter
from rexthinker_edge.runtime.caption import phrase_masks
from rexthinker_edge.runtime.detector import Detector, whole_patches
from rexthinker_edge.runtime.detector_tables import TableRules, make_tables
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError, OptionError

SMALL = Path(__file__).parents[2] / "checkpoints" / "small" / "detector"
PIXELS = {
    "size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3
}  # fmt: skip


def one_thread():
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory):
    """Four Swin stages, an odd window, more levels than maps: what the small model does not have."""
    from transformers import (  # noqa: PLC0415
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(embed_dim=16, depths=[2, 1, 2, 2], num_heads=[1, 2, 2, 4], window_size=3,
                          out_indices=[2, 3, 4])  # fmt: skip
    text = BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=80,
        num_queries=12, num_feature_levels=4,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():  # nothing at zero: offsets, box heads and window biases must count
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("odd")
    model.save_pretrained(folder, state_dict={n: t.bfloat16() for n, t in model.state_dict().items()})
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder


@pytest.fixture(scope="module")
def odd_model(odd_checkpoint):
    return reference(odd_checkpoint)


@pytest.fixture(scope="module")
def odd_graph(odd_checkpoint):
    path = odd_checkpoint / "detector.onnx"
    geometry = write_detector(odd_checkpoint, path)
    return path, geometry


def reference(folder):
    from transformers import GroundingDinoForObjectDetection  # noqa: PLC0415

    return GroundingDinoForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()


class Opened(Detector):
    """A detector fed with pixels and token ids instead of pictures and words."""

    def __init__(self, path, geometry):
        self.text = ort.InferenceSession(str(path.with_name("detector-text.onnx")), one_thread())
        self.graph = ort.InferenceSession(str(path), one_thread())
        self.geometry, self.asked = geometry, {given.name for given in self.graph.get_inputs()}

    def run(self, pixels, ids):
        mask, positions = phrase_masks(ids)
        bias = np.where(mask, np.float32(0), np.finfo(np.float32).min)
        text, places = self.text.run(
            None, {"input_ids": np.array(ids), "position_ids": positions, "text_bias": bias}
        )
        padded = whole_patches(pixels, self.geometry.tables.patch)
        tables = make_tables(*padded.shape[2:], self.geometry.tables)
        feeds = {name: table for name, table in tables.items() if name in self.asked}
        words = {"text": text, "text_positions": places, "text_bias": bias}
        return self.graph.run(["logits", "pred_boxes"], feeds | words | {"pixel_values": padded})


SIZES = [(64, 64, 1), (61, 96, 2), (96, 33, 3), (50, 51, 1), (32, 96, 9), (7, 90, 1), (90, 7, 1), (48, 24, 4)]


@pytest.mark.parametrize(("height", "width", "words"), SIZES)
def test_any_size_and_caption_equals_transformers(odd_model, odd_graph, height, width, words):
    ids = [101, *range(1040, 1040 + words), 1012, 102]
    pixels = torch.from_numpy(np.random.default_rng(height).normal(size=(1, 3, height, width))).float()
    with torch.no_grad():
        wanted = odd_model(pixel_values=pixels, input_ids=torch.tensor([ids]))
    logits, boxes = Opened(*odd_graph).run(pixels.numpy(), ids)
    # some 200 layers of float32 rounding, 2**-24 each, on values up to 20
    np.testing.assert_allclose(logits, wanted.logits[0, :, : len(ids)].numpy(), atol=5e-4)
    np.testing.assert_allclose(boxes, wanted.pred_boxes[0].numpy(), atol=1e-5)


def test_geometry_and_files(odd_checkpoint, odd_graph):
    _, geometry = odd_graph
    assert (geometry.shortest_px, geometry.longest_px, geometry.least_px) == (64, 96, 32)
    assert (geometry.queries, geometry.max_text_len, geometry.box_threshold) == (12, 256, 0.25)
    assert geometry.mean == (0.5, 0.4, 0.3)
    assert geometry.tables == TableRules(4, 3, 4, (1, 2, 3), 4, 64, 20.0)
    stored = (odd_checkpoint / "model.safetensors").stat().st_size
    weights = sum(p.stat().st_size for p in odd_checkpoint.glob("detector*.onnx.data"))
    assert weights < 1.4 * stored  # two bytes each, but for the small ones and the tables
    assert sorted(p.name for p in odd_checkpoint.glob("detector*")) == [
        "detector-text.onnx", "detector-text.onnx.data", "detector.onnx", "detector.onnx.data",
    ]  # fmt: skip


def test_the_graph_stays_small_and_its_operators_standard(odd_graph):
    """What the size decides is fed, not computed: shapes are read nowhere in the graph."""
    model = onnx.load(odd_graph[0], load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "Where", "Range", "Expand", "ScatterND", "Loop", "If"}
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.graph.node) < 850  # the traced graph of this model had 4,500


def test_only_what_loses_nothing_is_stored_as_bfloat16(tmp_path):
    exact, other = np.full((32, 64), 1.5, np.float32), np.full((32, 64), 1.1, np.float32)
    with GraphWriter(tmp_path / "g.onnx") as graph:
        writer = DetectorWriter(graph, exact_halves=True)
        graph.output("y", "float32", [32, 64], writer.add(writer.array("a", exact), writer.array("b", other)))
        graph.save()
    kept = {w.name: w.data_type for w in onnx.load(tmp_path / "g.onnx").graph.initializer}
    assert kept == {"a": onnx.TensorProto.BFLOAT16, "b": onnx.TensorProto.FLOAT}
    (given,) = ort.InferenceSession(str(tmp_path / "g.onnx"), one_thread()).run(None, {})
    assert np.array_equal(given, exact + other)


def test_a_layer_in_eight_bits_is_stored_so_and_stays_near(odd_checkpoint, odd_graph, tmp_path):
    path = tmp_path / "detector.onnx"
    geometry = write_detector(odd_checkpoint, path, int8=["encoder.0.mlp.fc1"])
    nodes = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert nodes.count("DynamicQuantizeMatMul") == 1
    pixels = np.random.default_rng(3).normal(size=(1, 3, 64, 64)).astype(np.float32)
    ids = [101, 1040, 1012, 102]
    exact, rounded = Opened(*odd_graph).run(pixels, ids)[1], Opened(path, geometry).run(pixels, ids)[1]
    assert 0 < np.abs(exact - rounded).max() < 0.02


@pytest.fixture(scope="module")
def small_detector(tmp_path_factory):
    if not SMALL.exists():
        pytest.skip("the small checkpoint is not here")
    path = tmp_path_factory.mktemp("small") / "detector.onnx"
    geometry = write_detector(SMALL, path)
    return Detector(path, SMALL / "tokenizer.json", geometry, one_thread()), geometry


class Counted:
    """A session that counts its runs."""

    def __init__(self, session):
        self.session, self.runs = session, 0

    def run(self, *given):
        self.runs += 1
        return self.session.run(*given)


def test_a_category_is_read_once_whatever_the_picture(small_detector, monkeypatch):
    detector, _ = small_detector
    counted = Counted(detector._text)
    monkeypatch.setattr(detector, "_text", counted)
    pictures = [render(make_item("full", 1_000_100, n).scene) for n in range(2)]
    cold = [detector.raw(picture, "Cup") for picture in pictures]
    assert counted.runs == 1
    detector.raw(pictures[0], "cup cup")  # another caption, the first one's tokens among its own
    assert counted.runs == 2
    warm = [detector.raw(picture, "cup.") for picture in pictures]
    assert counted.runs == 2
    for one, other in zip(cold, warm, strict=True):
        assert np.array_equal(one[1], other[1])
    assert len(detector._captions) == 2
    assert len(detector._sizes) <= 4


def test_small_model_finds_transformers_boxes_on_workbench_items(small_detector):
    """30 items through both, files to boxes: ours from pixels, transformers' from its own processor."""
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (  # noqa: PLC0415
        GroundingDinoImageProcessorPil,
    )

    detector, geometry = small_detector
    tokenizer = Tokenizer.from_file(str(SMALL / "tokenizer.json"))
    processor = GroundingDinoImageProcessorPil.from_pretrained(SMALL)
    model, found = reference(SMALL), 0
    for n in range(30):
        item = make_item(("easy", "full")[n % 2], 1_000_000, n)
        picture = render(item.scene)
        ids = tokenizer.encode(item.category + ".").ids
        inputs = processor(Image.fromarray(picture), return_tensors="pt")
        with torch.no_grad():
            outputs = model(pixel_values=inputs["pixel_values"], input_ids=torch.tensor([ids]))
        wanted = processor.post_process_object_detection(
            outputs, threshold=geometry.box_threshold, target_sizes=[picture.shape[:2]]
        )[0]
        boxes, scores = detector.detect(picture, item.category)
        limit = [item.scene.width, item.scene.height] * 2
        np.testing.assert_allclose(boxes, np.clip(wanted["boxes"].numpy(), 0, limit), atol=1e-3)
        np.testing.assert_allclose(scores, wanted["scores"].numpy(), atol=1e-4)
        found += len(boxes)
    assert found >= 30


@pytest.mark.parametrize(
    ("file", "change", "error", "message"),
    [
        ("config.json", {"two_stage": False}, ConfigError, r"two_stage is False, only \(True,\)"),
        ("config.json", {"position_embedding_type": "learned"}, ConfigError, "_type is 'learned'"),
        ("config.json", {"model_type": "dab-detr"}, ConfigError, "model_type is 'dab-detr'"),
        ("config.json", {"num_queries": 9000}, ConfigError, "9000 queries"),
        ("preprocessor_config.json", {"resample": 3}, ConfigError, "resample is 3, the runtime"),
        ("preprocessor_config.json", {"size": {"height": 3}}, ConfigError, "'shortest_edge' is missing"),
        ("preprocessor_config.json", None, CheckpointError, "it cannot be read"),
    ],
)
def test_what_is_not_honoured_is_refused(odd_checkpoint, tmp_path, file, change, error, message):
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((odd_checkpoint / name).read_text())
        if name == file:
            content |= change or {}
        (tmp_path / name).write_text("[" if name == file and change is None else json.dumps(content))
    with pytest.raises(error, match=message):
        read_geometry(tmp_path)


def test_missing_weights_and_unknown_options_are_refused(odd_checkpoint, tmp_path):
    with pytest.raises(OptionError, match="weights: 'int3'"):
        write_detector(odd_checkpoint, tmp_path / "d.onnx", weights="int3")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((odd_checkpoint / name).read_text())
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        write_detector(tmp_path, tmp_path / "d.onnx")
    assert not (tmp_path / "d.onnx").exists()
