"""A category as the detector reads it: one phrase, its tokens, and who of them sees whom.

Layout    [CLS] words . [SEP]; a phrase ends with its delimiter. Tokens of one phrase see each other and count
          their positions from 0; [CLS] and [SEP] see themselves.
Contract  A category is one phrase: "." and "?" inside it, which would end the phrase, are read as spaces.
          Special-token strings such as "[SEP]" are read as their characters. Masks and positions equal
          transformers' `generate_masks_with_special_tokens_and_transfer_map`, which does not export.
Elsewhere the language model's tokens: tokens.py; the graph they go into: detector.py.
Source    docs/sources.md#caption
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rexthinker_edge.runtime.errors import BundleError, TextError
from rexthinker_edge.runtime.tokens import read_tokenizer_json

CLS, SEP, DOT, QUESTION = 101, 102, 1012, 1029
"""bert-base-uncased's ids; the model's code knows them by number."""
DELIMITERS = (CLS, SEP, DOT, QUESTION)


@dataclass(frozen=True)
class Caption:
    """What the detector takes as text; T tokens."""

    input_ids: NDArray[np.int64]  # (1, T)
    token_type_ids: NDArray[np.int64]  # (1, T), all 0: one sentence
    position_ids: NDArray[np.int64]  # (1, T), from 0 in each phrase
    self_attention_mask: NDArray[np.bool_]  # (1, T, T), True where row sees column


def caption_text(category: str) -> str:
    """Lower case, delimiters and runs of space as one space, ended by "."."""
    words = category.lower().replace(".", " ").replace("?", " ").split()
    return " ".join(words) + "."


def phrase_masks(input_ids: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Who sees whom, and where in its phrase each token stands.

    Args:
        input_ids: T ids, [CLS] first and [SEP] last.

    Returns:
        (T, T) bool and (T,) int64. What follows the last delimiter but one belongs to no phrase.
    """
    ids = np.asarray(input_ids)
    count = len(ids)
    ends = np.flatnonzero(np.isin(ids, DELIMITERS))
    mask, positions = np.eye(count, dtype=bool), np.zeros(count, dtype=np.int64)
    previous = -1
    for end in ends:
        if end not in (0, count - 1):
            mask[previous + 1 : end + 1, previous + 1 : end + 1] = True
            positions[previous + 1 : end + 1] = np.arange(end - previous)
        previous = int(end)
    return mask, positions


class CaptionTokenizer:
    """The detector's word pieces, loaded without special tokens."""

    def __init__(self, path: Path, max_text_len: int) -> None:
        """Read a BERT `tokenizer.json`.

        Args:
            max_text_len: most tokens of a caption, [CLS] and [SEP] included.

        Raises:
            BundleError: no WordPiece tokenizer, or other ids for [CLS], [SEP], "." and "?" than BERT's.
        """
        try:
            content = read_tokenizer_json(path)
            vocabulary = content["model"]["vocab"]
            ids = tuple(vocabulary[piece] for piece in ("[CLS]", "[SEP]", ".", "?"))
            plain = json.dumps({**content, "added_tokens": [], "post_processor": None})
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise _not_ours(path, f"it cannot be read ({error})") from error
        if ids != DELIMITERS:
            raise _not_ours(path, f'[CLS], [SEP], "." and "?" have the ids {ids} instead of {DELIMITERS}')
        self._tokenizer = _load(plain, path)
        self._max_text_len = max_text_len

    def caption(self, category: str) -> Caption:
        """The model's text input for one category.

        Raises:
            TextError: no word is left of the category, or it has too many tokens.
        """
        words = self._tokenizer.encode(caption_text(category).removesuffix("."), add_special_tokens=False).ids
        words = [token for token in words if token not in DELIMITERS]
        if not words:
            raise TextError(
                f"category: {category[:40]!r} holds no word, one or more are needed. Say what to look for."
            )
        ids = [CLS, *words, DOT, SEP]
        if len(ids) > self._max_text_len:
            raise TextError(
                f"category: {len(ids):,} tokens, the detector reads {self._max_text_len:,}. Shorten it."
            )
        mask, positions = phrase_masks(ids)
        input_ids = np.array([ids], dtype=np.int64)
        return Caption(input_ids, np.zeros_like(input_ids), positions[None], mask[None])


def _load(content: str, path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more precise
        raise _not_ours(path, f"it cannot be read ({error})") from error


def _not_ours(path: Path, seen: str) -> BundleError:
    return BundleError(
        f"{path.name}: {seen}, bert-base-uncased's word pieces are needed. "
        "Use the tokenizer.json that belongs to the detector and export again."
    )
