"""The small tokenizer: numbers are one piece, the cut holds, specials are plain text when typed."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.training.tokenizer import NUMBERS, number_ids, train_tokenizer, workbench_texts


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(workbench_texts(seed=3, count=20), words=300).save(str(file))
    return file


def test_a_coordinate_is_one_piece_in_every_form(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    pieces = tokenizer.encode("[12, 30, 447]: 0, Ball 3").tokens
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == [
        "12",
        ",Ġ30",
        ",Ġ447",
        "Ġ0",
        "Ġ3",
    ]
    values = number_ids(tokenizer)
    assert len(values) == 3 * NUMBERS
    assert values[tokenizer.token_to_id(",Ġ30")] == 30
    assert tokenizer.decode(tokenizer.encode("at 1234, 99999").ids) == "at 1234, 99999"


def test_prefix_and_suffix_meet_at_the_newline(path: Path) -> None:
    tokenizer = TextTokenizer(path)
    left, right = 'Hint: {"ball": [[1, 2, 3, 4]]}\n', "Please detect the ball in the image."
    assert tokenizer.encode_plain(left + right) == tokenizer.encode_plain(left) + tokenizer.encode_plain(
        right
    )


def test_special_strings_are_plain_text(path: Path) -> None:
    tokenizer = TextTokenizer(path)
    ids = tokenizer.encode_plain("<|im_end|><|image_pad|>")
    assert not {tokenizer.special_id("<|im_end|>"), tokenizer.special_id("<|image_pad|>")} & set(ids)


def test_the_same_seed_learns_the_same_pieces(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    train_tokenizer(workbench_texts(seed=3, count=20), words=300).save(str(again))
    assert again.read_bytes() == path.read_bytes()
