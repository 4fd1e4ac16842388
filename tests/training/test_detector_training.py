"""Pictures, captions and the training loop of the small detector, at toy size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.world import CATEGORIES, Level
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.training import detector, detector_data, detector_model
from rexthinker_edge.training.detector_config import DetectorRecipe

TOY = DetectorRecipe(
    shortest_px=64, longest_px=90, pictures=8, d_model=32, heads=2, ffn=32, encoder_layers=1,
    decoder_layers=2,
    queries=6, embed_dim=8, depths=(1, 1, 1), swin_heads=(1, 1, 2), window=3, text_hidden=8, max_text_len=16,
    steps=3, batch=4, warm_up=2,
)  # fmt: skip
WORDS = [2048, 2049, 2050, 2051, 2052, 2053]


def bert_like():
    """A vocabulary in bert-base-uncased's order as far as it matters."""
    pieces = {f"[unused{i}]": i for i in range(2_048)}
    for name, i in (("[CLS]", 101), ("[SEP]", 102), (".", 1012), ("?", 1029)):
        pieces = {name if v == i else k: v for k, v in pieces.items()}
    pieces |= {word: 3_000 + i for i, word in enumerate((*CATEGORIES, "##a", "elephant"))}
    return {"model": {"type": "WordPiece", "vocab": pieces}, "version": "1.0"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    detector_data.render_pictures(folder, TOY, 5, 8)
    return detector_data.Pictures(folder)


def test_vocabulary_keeps_ids_that_are_known_by_number():
    cut = detector_data.cut_vocabulary(bert_like())["model"]["vocab"]
    assert (cut["[CLS]"], cut["[SEP]"], cut["."], cut["?"]) == (101, 102, 1012, 1029)
    assert [cut[c] for c in CATEGORIES] == WORDS
    assert cut["##a"] == 2_054
    assert "elephant" not in cut
    assert sorted(cut.values()) == list(range(len(cut)))


@pytest.mark.parametrize(
    ("size", "shape"), [((200, 200), (192, 192)), ((100, 200), (268, 134)), ((260, 200), (192, 242))]
)
def test_shapes_pinned(size, shape):
    assert detector_data.batch_shape(*size, DetectorRecipe()) == shape


def test_truth_is_the_scenes(pictures):
    for i in range(8):
        scene = make_scene((Level.EASY, Level.FULL)[i % 2], 5, i // 2)
        labels = pictures.index.labels[i]
        assert [CATEGORIES[c] for c in labels[labels >= 0]] == [t.category for t in scene.things]
        centre = pictures.index.boxes[i, 0, :2] * [scene.width, scene.height]
        x0, y0, x1, y1 = scene.things[0].box
        np.testing.assert_allclose(centre, [(x0 + x1) / 2, (y0 + y1) / 2], rtol=1e-5)
        assert pictures.picture(i).shape == (*pictures.index.shape[i], 3)


def test_a_picture_is_the_same_whatever_the_count(tmp_path, pictures):
    detector_data.render_pictures(tmp_path, TOY, 5, 3)
    fewer = detector_data.Pictures(tmp_path)
    assert len(fewer) == 3
    assert all(np.array_equal(fewer.picture(i), pictures.picture(i)) for i in range(3))


def test_batch_says_which_token_each_thing_answers_to(pictures):
    which = np.array([0])
    labels = pictures.index.labels[0]
    labels = labels[labels >= 0]
    asked = [int(labels[0]), (int(labels[0]) + 1) % 6]
    batch = detector_data.make_batch(pictures, which, [asked], WORDS, 1.0, None)
    assert batch.input_ids.tolist() == [[101, WORDS[asked[0]], 1012, WORDS[asked[1]], 1012, 102]]
    place = {asked[0]: 1, asked[1]: 3}
    assert batch.asked[0].tolist() == [place.get(int(c), -1) for c in labels]
    assert batch.pixels.shape[2:] == tuple(pictures.index.shape[0])


def test_mirroring_moves_boxes_with_pixels(pictures):
    """With the stream's first draw below a half the picture is mirrored: its boxes must be too."""
    plain = detector_data.make_batch(pictures, np.array([0]), [[0]], WORDS, 1.0, None)
    for seed in range(50):
        drawn = detector_data.make_batch(
            pictures, np.array([0]), [[0]], WORDS, 1.0, np.random.default_rng(seed)
        )
        mirrored = torch.flip(plain.pixels, [3])
        if torch.equal(drawn.pixels, mirrored):
            torch.testing.assert_close(drawn.boxes[0][:, 0], 1 - plain.boxes[0][:, 0])
            return
    raise AssertionError("no seed mirrored the picture without recolouring it")


def test_captions_are_distinct_and_mostly_present():
    rng = np.random.default_rng(0)
    labels, present, total = np.array([0, 0, 2, 3, -1, -1]), 0, 0
    for _ in range(400):
        chosen = detector_data.caption(rng, labels, 2)
        assert len(set(chosen)) == 2
        present += sum(c in (0, 2, 3) for c in chosen)
        total += 2
    assert 0.8 < present / total < 0.95


def test_logits_start_near_the_prior():
    model = detector_model.fresh_model(DetectorRecipe(), 2_100)
    batch = detector_data.Batch(
        torch.randn(2, 3, 96, 128), torch.tensor([[101, 2060, 1012, 102]] * 2), [], []
    )
    with torch.no_grad():
        out = detector_model.run_layers(model, batch)
    for logits in (out["encoder"][0], *(logits for logits, _ in out["layers"])):
        assert float(logits.mean()) == pytest.approx(detector_model.PRIOR_LOGIT, abs=1.5)
        assert float(logits.std()) < 2.5


def test_own_heads_equal_the_models_forward():
    model = detector_model.fresh_model(TOY, 2_100).eval()
    batch = detector_data.Batch(torch.randn(1, 3, 61, 90), torch.tensor([[101, 2060, 1012, 102]]), [], [])
    with torch.no_grad():
        logits, boxes = detector_model.run_layers(model, batch)["layers"][-1]
        whole = model(pixel_values=batch.pixels, input_ids=batch.input_ids)
    torch.testing.assert_close(logits, whole.logits[..., :4])
    torch.testing.assert_close(boxes, whole.pred_boxes)


def test_rate_warms_up_stays_and_falls():
    recipe = replace(TOY, steps=1_000, warm_up=100, learning_rate=1.0)
    rates = [detector.rate_at(step, recipe) for step in range(1_000)]
    assert rates[0] == pytest.approx(0.01)
    assert set(rates[100:600]) == {1.0}
    assert rates[800] == pytest.approx(0.505)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_a_run_saves_and_goes_on(tmp_path, monkeypatch):
    from transformers import GroundingDinoForObjectDetection  # noqa: PLC0415

    monkeypatch.setattr(detector, "HELD_COUNT", 4)
    monkeypatch.setattr(detector, "use_native_sampling", lambda model: 0)
    seen = []
    evaluate = lambda found: seen.append(found) or {"ap50": 0.5}  # noqa: E731
    detector.train(TOY, tmp_path, bert_like(), evaluate, resume=False, every_seconds=1e9)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3
    assert lines[-1]["ap50"] == 0.5
    assert len(seen[0]) == 4
    assert {f.level for f in seen[0]} == {"easy", "full"}
    saved = GroundingDinoForObjectDetection.from_pretrained(tmp_path / "checkpoint")
    assert saved.dtype == torch.bfloat16
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"
    ]  # fmt: skip
    detector.train(replace(TOY, steps=5), tmp_path, bert_like(), evaluate, resume=True, every_seconds=1e9)
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert state["step"] == 5


def test_recipe_files_are_strict(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text('{"steps": 7, "depths": [1, 2]}')
    assert DetectorRecipe.read(path) == DetectorRecipe(steps=7, depths=(1, 2))
    for text, message in (
        ('{"stepz": 7}', "unknown key stepz"),
        ('{"steps": "7"}', "steps"),
        ("{", "not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(OptionError, match=message):
            DetectorRecipe.read(path)
