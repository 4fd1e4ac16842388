"""Captions: one phrase per category, masks as transformers makes them, special tokens as plain text."""

import json
from pathlib import Path

import numpy as np
import pytest

from rexthinker_edge.runtime.caption import (
    CLS,
    DOT,
    QUESTION,
    SEP,
    CaptionTokenizer,
    caption_text,
    phrase_masks,
)
from rexthinker_edge.runtime.errors import BundleError, TextError

BERT = Path(__file__).parents[3] / "shared" / "tokenizers" / "bert-base-uncased" / "tokenizer.json"
PIECES = {
    "[PAD]": 0, "[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 103, "[": 1031, "]": 1033, ".": DOT,
    "?": QUESTION, "ball": 3608, "red": 2417, "sep": 19802, "##s": 2015, "fire": 2543, "hydrant": 26018,
}  # fmt: skip


def tokenizer_json():
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for piece, i in PIECES.items() if piece[0] == "[" and len(piece) > 1
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": PIECES},
    }  # fmt: skip


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json()))
    return CaptionTokenizer(path, 16)


def test_pinned_caption(small):
    caption = small.caption("  Red Balls ")
    assert caption.input_ids.tolist() == [[CLS, 2417, 3608, 2015, DOT, SEP]]
    assert caption.position_ids.tolist() == [[0, 0, 1, 2, 3, 0]]
    assert caption.token_type_ids.tolist() == [[0] * 6]
    assert caption.self_attention_mask[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("category", ["ball. red", "ball.red", "ball? red?", ".ball . red."])
def test_delimiters_inside_a_category_are_spaces(small, category):
    assert caption_text(category) == "ball red."
    assert small.caption(category).input_ids.tolist() == small.caption("ball red").input_ids.tolist()


@pytest.mark.parametrize("category", ["[SEP]", "[CLS] ball [SEP]", "ball [MASK] . [PAD]"])
def test_special_strings_are_plain_text(small, category):
    middle = small.caption(category).input_ids[0, 1:-2].tolist()
    assert not set(middle) & {0, CLS, SEP, 103, DOT, QUESTION}
    assert 1031 in middle
    assert 1033 in middle


@pytest.mark.parametrize("category", ["...", "?", " . ? "])
def test_no_word_is_refused(small, category):
    with pytest.raises(TextError, match="holds no word"):
        small.caption(category)


def test_too_many_tokens_are_refused(small):
    assert small.caption("ball " * 13).input_ids.shape == (1, 16)
    with pytest.raises(TextError, match="17 tokens, the detector reads 16"):
        small.caption("ball " * 14)


def test_masks_equal_transformers():
    import torch  # noqa: PLC0415
    from transformers.models.grounding_dino.modeling_grounding_dino import (  # noqa: PLC0415
        SPECIAL_TOKENS,
        generate_masks_with_special_tokens_and_transfer_map,
    )

    rng = np.random.default_rng(0)
    for _ in range(300):
        middle = rng.choice([2000, 2001, 2002, 2003, DOT, QUESTION, SEP], size=int(rng.integers(0, 14)))
        ids = [CLS, *middle.tolist(), *([DOT] if rng.random() < 0.8 else []), SEP]
        wanted = generate_masks_with_special_tokens_and_transfer_map(
            torch.tensor([ids]), torch.tensor(SPECIAL_TOKENS)
        )
        mask, positions = phrase_masks(ids)
        assert np.array_equal(mask, wanted[0][0].numpy()), ids
        assert np.array_equal(positions, wanted[1][0].numpy()), ids


@pytest.mark.skipif(not BERT.exists(), reason="the shared bert-base-uncased tokenizer is not here")
def test_real_tokenizer_reads_captions_as_transformers_does():
    from tokenizers import Tokenizer  # noqa: PLC0415

    whole, ours = Tokenizer.from_file(str(BERT)), CaptionTokenizer(BERT, 256)
    rng = np.random.default_rng(1)
    words = [
        "fire hydrant",
        "Café",
        "person",
        "助手",
        "red-haired girl",
        "N95 mask",
        "emoji 😀",
        "traffic light",
        "naïve",
    ]
    for _ in range(200):
        category = " ".join(rng.choice(words, size=int(rng.integers(1, 5))))
        assert ours.caption(category).input_ids[0].tolist() == whole.encode(caption_text(category)).ids


@pytest.mark.parametrize("damage", ["text", "ids", "model"])
def test_foreign_tokenizers_are_refused(tmp_path, damage):
    content = tokenizer_json()
    if damage == "ids":
        content["model"]["vocab"] = {**PIECES, ".": 7}
    if damage == "model":
        content["model"] = {"type": "WordPiece", "vocab": PIECES, "unk_token": 3}
    path = tmp_path / "tokenizer.json"
    path.write_text("{" if damage == "text" else json.dumps(content))
    with pytest.raises(BundleError, match=r"tokenizer\.json: .*bert-base-uncased's word pieces are needed"):
        CaptionTokenizer(path, 16)
