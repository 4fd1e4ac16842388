"""Special tokens stay where the prompt puts them, and the cut of the prompt is invisible to the model."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Regex as TokenRegex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rexthinker_edge.runtime.errors import BundleError, TextError
from rexthinker_edge.runtime.prompt import IM_END, IM_START, SYSTEM, Special, Wording, prefix, suffix
from rexthinker_edge.runtime.tokens import MAX_TEXT_CHARACTERS, TextTokenizer, check_text
from rexthinker_edge.training.tokenizer import train_tokenizer

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "tokenizers" / "qwen2.5-vl" / "tokenizer.json"
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
]
# Qwen's own pre-tokeniser
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def small_tokenizer(path: Path) -> Path:
    """A small byte-level BPE of Qwen's kind, with its special tokens and one that is not marked so."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(TokenRegex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [
        "Please detect the red ball in the image.",
        "- Ball 1: red ✅",
        "[[12, 20, 31, 44]]}\n",
        SYSTEM,
    ] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module", params=["small", "bundled", "real"])
def tokenizer_file(request, tmp_path_factory):
    if request.param == "real":
        if not REAL.is_file():
            pytest.skip("shared/tokenizers is not here")
        return REAL
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    if request.param == "small":
        return small_tokenizer(path)
    # the form of the bundled model's: numbers are single pieces
    trained = train_tokenizer(["Please detect the red ball.", "- Ball 1: red ✅", "]]}\n"] * 3, 40)
    trained.add_tokens(["<tool_call>"])
    trained.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file):
    return TextTokenizer(tokenizer_file)


def test_special_strings_are_plain_text(tokenizer):
    specials = {tokenizer.special_id(name) for name in [*SPECIALS, "<tool_call>"]}
    text = "the <|im_end|> ball <|image_pad|> <tool_call> </think><|im_start|>"
    ids = tokenizer.encode_plain(text)
    assert not specials & set(ids)
    assert tokenizer.decode(ids) == text
    parts = suffix(Wording.DETECT, text)
    ids = tokenizer.encode_parts(parts)
    wanted = [tokenizer.special_id("<|im_end|>"), tokenizer.special_id("<|im_start|>")]
    assert [id_ for id_ in ids if id_ in specials] == wanted


def test_real_ids_pinned():
    if not REAL.is_file():
        pytest.skip("shared/tokenizers is not here")
    tokenizer = TextTokenizer(REAL)
    assert tokenizer.encode_parts([IM_START, "user", "\n", IM_END]) == [151644, 872, 198, 151645]
    assert tokenizer.special_id("<|image_pad|>") == 151655


def test_parts_that_touch_are_joined(tokenizer):
    joined = tokenizer.encode_parts([IM_START, "as", "sis", "tant\n"])
    assert joined == tokenizer.encode_parts([IM_START, "assistant\n"])


def test_equal_to_the_library_where_nothing_is_hidden(tokenizer, tokenizer_file):
    """With specials as the prompt puts them, ids equal those of the whole prompt's text."""
    library = Tokenizer.from_file(str(tokenizer_file))
    parts = [
        *prefix(SYSTEM, Wording.LOCATE, "ball", [[1, 2, 3, 4]], 5),
        *suffix(Wording.LOCATE, "the red ball"),
    ]
    text = "".join(part.name if isinstance(part, Special) else part for part in parts)
    assert tokenizer.encode_parts(parts) == library.encode(text, add_special_tokens=False).ids


def random_text(rng: random.Random) -> str:
    pieces = [
        "ball", "the red ball", "second", "左から二番目", "猫", "한국", "👩‍🚀", "🏳️‍🌈", "é", "e\u0301",
        "\u0301", "<|im_end|>", "</think>", "]]}", "{", '"', "\\", "'s", "1", "42", ".", ",", " ", "  ",
        "\u3000", "→", "✅", "ß", "٣", "<tool_call>", "\u200d", "\u00a0", "Ω", "#", "- ", "?!", "\ufe0f",
    ]  # fmt: skip
    while True:
        text = "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randint(1, 6)))
        try:
            return check_text("expression", text)
        except TextError:
            continue


def test_merges_as_text_mean_the_same_as_pairs(tmp_path):
    """Older libraries wrote "a b" for ["a", "b"]; both are read, whichever way the library is given them."""
    path = small_tokenizer(tmp_path / "tokenizer.json")
    content = json.loads(path.read_text())
    assert all(len(pair) == 2 for pair in content["model"]["merges"])
    pairs = TextTokenizer(path)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content))
    text = "Please detect the red ball: Ball 1 ✅ ñ [[12, 20]]}\n"
    assert TextTokenizer(path).encode_plain(text) == pairs.encode_plain(text)


def test_the_cut_is_invisible(tokenizer):
    """Prefix ids + suffix ids = ids of the whole, 1,000 times."""
    rng = random.Random(20)
    for _ in range(1000):
        boxes = [[rng.randint(0, 999) for _ in range(4)] for _ in range(rng.randint(0, 4))]
        wording = rng.choice(list(Wording))
        before = prefix("S", wording, random_text(rng), boxes, rng.randint(1, 3))
        after = suffix(wording, random_text(rng))
        assert tokenizer.encode_parts(before) + tokenizer.encode_parts(after) == tokenizer.encode_parts(
            before + after
        )


def test_streaming_never_emits_half_a_character(tokenizer):
    text = "✅ 猫 👩‍🚀 ⚠️ plain é"
    stream, pieces = tokenizer.stream(), []
    for id_ in tokenizer.encode_plain(text):
        pieces.append(stream.push(id_))
    assert stream.finish() == ""
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    ids = [id_ for byte in "✅".encode() for id_ in [one_byte(tokenizer, byte)]]
    stream = tokenizer.stream()
    assert [stream.push(id_) for id_ in ids] == ["", "", "✅"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"
    assert tokenizer.decode([ids[0], *tokenizer.encode_plain("a")]) == "\ufffda"


def one_byte(tokenizer: TextTokenizer, value: int) -> int:
    return next(id_ for id_ in range(600) if tokenizer.token_bytes(id_) == bytes([value]))


def test_special_and_unused_ids_have_text(tokenizer):
    assert tokenizer.decode([tokenizer.special_id("<|im_end|>")]) == "<|im_end|>"
    assert tokenizer.token_bytes(10**7) == b""


def test_unknown_special(tokenizer):
    with pytest.raises(
        BundleError, match=r"tokenizer: no special token <\|nothing\|>, the prompt needs it\."
    ):
        tokenizer.encode_parts([Special("<|nothing|>")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "its decoder is not ByteLevel"),
        ({"added_tokens": [{"content": "a", "id": 64}]}, "plain text yields the special token a"),
        ({"model": {"type": "Nonsense"}}, "it cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "it cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 1]]}}, "it cannot be read"),
        ({"added_tokens": None}, "it cannot be read"),
    ],
)
def test_not_our_tokenizer(tmp_path, change, message):
    path = small_tokenizer(tmp_path / "tokenizer.json")
    content = json.loads(path.read_text())
    if change.get("added_tokens"):
        change["added_tokens"][0]["id"] = content["model"]["vocab"]["a"]
    path.write_text(json.dumps(content | change))
    with pytest.raises(BundleError, match=r"tokenizer\.json: ") as caught:
        TextTokenizer(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "category: empty, a word or more is needed. Say what to look for."),
        ("  \u3000 ", "category: empty"),
        ("ball\n", "category: it holds the control character U+000A, plain text is needed. Remove it."),
        ("a\x00b", "U+0000"),
        ("a\x1b[31mb", "U+001B"),
        ("a\ud800b", "U+D800"),
        ("a\u2028b", "U+2028"),
        ("x" * 100_000, "category: 100,000 characters, the limit is 2,000. Shorten it."),
        (b"ball", "category: a bytes, but text is needed. Pass a string."),
    ],
)
def test_text_refused(text, message):
    with pytest.raises(TextError) as caught:
        check_text("category", text)
    assert message in str(caught.value)


def test_text_accepted():
    assert check_text("expression", "  the red ball \u3000") == "the red ball"
    assert check_text("expression", "x" * MAX_TEXT_CHARACTERS) == "x" * MAX_TEXT_CHARACTERS
    assert check_text("category", "hard hat. helmet 👷‍♀️") == "hard hat. helmet 👷‍♀️"
