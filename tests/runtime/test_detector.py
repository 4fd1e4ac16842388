"""The detector's post-processing, by hand and against transformers'; its session on a graph made here."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rexthinker_edge.runtime.detector import Detector, DetectorGeometry, keep_candidates
from rexthinker_edge.runtime.errors import TextError

GEOMETRY = DetectorGeometry(
    shortest_px=64, longest_px=96, least_px=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    queries=2, max_text_len=8, box_threshold=0.25,
)  # fmt: skip


def test_pinned_candidates():
    logits = np.array([[-9.0, 0.0, -9.0], [-9.0, -9.0, -2.0], [3.0, -9.0, -9.0]], np.float32)
    shares = np.array([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4], [0.05, 0.9, 0.2, 0.4]], np.float32)
    boxes, scores = keep_candidates(logits, shares, (200, 100), 0.25)
    np.testing.assert_allclose(boxes, [[80, 30, 120, 70], [0, 70, 30, 100]], rtol=1e-6)
    np.testing.assert_allclose(scores, [0.5, 0.95257413], rtol=1e-6)
    assert boxes.dtype == scores.dtype == np.float32


def test_the_threshold_itself_is_not_kept_and_neither_is_a_box_without_area():
    logits = np.zeros((2, 1), np.float32)
    shares = np.array([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2]], np.float32)
    assert len(keep_candidates(logits, shares, (10, 10), 0.5)[0]) == 0
    assert len(keep_candidates(logits, shares, (10, 10), 0.49)[0]) == 1


def test_nothing_above_the_threshold():
    boxes, scores = keep_candidates(
        np.full((3, 4), -20, np.float32), np.full((3, 4), 0.5, np.float32), (9, 9), 0.25
    )
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_equal_to_transformers_where_boxes_stay_inside():
    import torch  # noqa: PLC0415
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (  # noqa: PLC0415
        GroundingDinoImageProcessorPil,
    )
    from transformers.models.grounding_dino.modeling_grounding_dino import (  # noqa: PLC0415
        GroundingDinoObjectDetectionOutput,
    )

    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, (50, 6)).astype(np.float32)
    shares = np.concatenate([rng.uniform(0.3, 0.7, (50, 2)), rng.uniform(0.1, 0.5, (50, 2))], 1).astype(
        np.float32
    )
    outputs = GroundingDinoObjectDetectionOutput(
        logits=torch.from_numpy(logits)[None], pred_boxes=torch.from_numpy(shares)[None]
    )
    wanted = GroundingDinoImageProcessorPil().post_process_object_detection(
        outputs, threshold=0.25, target_sizes=[(480, 640)]
    )[0]
    boxes, scores = keep_candidates(logits, shares, (640, 480), 0.25)
    assert 5 < len(boxes) < 50
    np.testing.assert_allclose(boxes, wanted["boxes"].numpy(), atol=1e-4)
    np.testing.assert_allclose(scores, wanted["scores"].numpy(), atol=1e-6)


@pytest.fixture
def opened(tmp_path):
    """A graph that answers with the picture's size and the caption's length."""
    text = [("input_ids", TensorProto.INT64, [1, "T"]), ("token_type_ids", TensorProto.INT64, [1, "T"]),
            ("position_ids", TensorProto.INT64, [1, "T"]),
            ("text_self_attention_mask", TensorProto.BOOL, [1, "T", "T"])]  # fmt: skip
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, "H", "W"])]
    inputs += [helper.make_tensor_value_info(*one) for one in text]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["tokens"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["tokens", "axis"], ["row"]),
        helper.make_node("Concat", ["row", "row"], ["logits"], axis=1),
        helper.make_node("Shape", ["pixel_values"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["sides"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["sides", "form"], ["one"]),
        helper.make_node("Concat", ["one", "one"], ["pred_boxes"], axis=1),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("form", TensorProto.INT64, [3], [1, 1, 4]),
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, None]) for n in ("logits", "pred_boxes")
    ]
    graph = helper.make_graph(nodes, "stand-in", inputs, outputs, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "d.onnx",
    )
    pieces = {"[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029, "ball": 3608}
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": pieces},
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(tokenizer))
    return Detector(tmp_path / "d.onnx", tmp_path / "t.json", GEOMETRY)


def test_the_graph_gets_the_caption_and_the_picture_at_its_true_size(opened):
    logits, sides = opened.raw(np.zeros((50, 70, 3), np.uint8), "Ball")
    assert logits.tolist() == [[101, 3608, 1012, 102]] * 2
    assert sides[0].tolist() == [1, 3, 64, 89]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1)])
def test_odd_pictures_do_not_crash(opened, height, width):
    boxes, scores = opened.detect(np.zeros((height, width, 3), np.uint8), "ball")
    assert boxes.shape[1] == 4
    assert len(boxes) == len(scores)


def test_text_errors_pass_through(opened):
    with pytest.raises(TextError, match="holds no word"):
        opened.detect(np.zeros((9, 9, 3), np.uint8), "...")
