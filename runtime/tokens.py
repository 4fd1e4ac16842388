"""Text to token ids and back, with special tokens only where the prompt puts them.

Layout    A `tokenizer.json` as the `tokenizers` library writes it: byte-level BPE plus added tokens.
Contract  Plain text never yields an added token: `<|im_end|>` or `<tool_call>` in an expression is read as
          its characters. Adjacent text parts are joined before they are tokenised, so parts mean what the
          joined text means. Streaming never emits half a character.
Elsewhere what the parts are: prompt.py; the detector's word pieces: caption.py.
Source    docs/sources.md#tokens
"""

import codecs
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from rexthinker_edge.runtime.errors import BundleError, TextError
from rexthinker_edge.runtime.prompt import Part, Special

MAX_TEXT_CHARACTERS = 2_000
MAX_TOKENIZER_BYTES = 64_000_000  # Qwen2.5-VL's has 7 MB
# What a BPE model has beside tokens and merges; a file with anything else is left to the library whole.
BPE_OPTIONS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges",
)  # fmt: skip


def read_tokenizer_json(path: Path) -> Any:
    """The parsed file; ValueError when it is too large or nested too deep to be a tokenizer."""
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, at most {MAX_TOKENIZER_BYTES:,} are read")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


class TextTokenizer:
    """The language model's tokenizer, loaded without its added tokens."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json`.

        Raises:
            BundleError: no byte-level BPE tokenizer, or its plain vocabulary yields a special token.
        """
        try:
            content = read_tokenizer_json(path)
            self._special_ids = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
            plain = {**content, "added_tokens": [], "post_processor": None}
            decoder = content["decoder"]["type"]
            self.largest_id = max(*content["model"]["vocab"].values(), *self._special_ids.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise _not_ours(path, f"it cannot be read ({error})") from error
        self._plain = _load(plain, path)
        self._special_bytes = {id_: text.encode() for text, id_ in self._special_ids.items()}
        self._alphabet = _byte_alphabet()
        if decoder != "ByteLevel" or any(self._plain.token_to_id(piece) is None for piece in self._alphabet):
            raise _not_ours(path, "not every byte has a token, or its decoder is not ByteLevel")
        for text, id_ in self._special_ids.items():
            if id_ in self.encode_plain(text):
                raise _not_ours(path, f"plain text yields the special token {text}")

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text`; special-token strings inside it are plain text."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Token ids of a prompt: text as `encode_plain` reads it, each `Special` as its one id.

        Raises:
            BundleError: the tokenizer has no such special token.
        """
        ids: list[int] = []
        pending = ""
        for part in parts:
            if isinstance(part, Special):
                ids += self.encode_plain(pending) if pending else []
                ids.append(self.special_id(part.name))
                pending = ""
            else:
                pending += part
        return ids + (self.encode_plain(pending) if pending else [])

    def special_id(self, name: str) -> int:
        """The id of one added token, by its string."""
        if name not in self._special_ids:
            raise BundleError(
                f"tokenizer: no special token {name}, the prompt needs it. "
                "Use the tokenizer.json of the exported model."
            )
        return self._special_ids[name]

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for; a special token stands for its string, an unused id for nothing."""
        if token_id in self._special_bytes:
            return self._special_bytes[token_id]
        piece = self._plain.id_to_token(token_id) or ""
        return bytes(self._alphabet[character] for character in piece)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def stream(self) -> "TextStream":
        """A fresh incremental decoder."""
        return TextStream(self)


class TextStream:
    """Token ids in, text out, one whole character at a time."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became complete with this token, often empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: an unfinished character as U+FFFD, else nothing."""
        return self._decoder.decode(b"", final=True)


def check_text(what: str, text: object) -> str:
    """A category or an expression with outer spaces removed, or a clear refusal.

    Args:
        what: "category" or "expression", for the message.

    Raises:
        TextError: not a string, empty, over `MAX_TEXT_CHARACTERS`, or with control characters.
    """
    if not isinstance(text, str):
        raise TextError(f"{what}: a {type(text).__name__}, but text is needed. Pass a string.")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise TextError(
            f"{what}: {len(text):,} characters, the limit is {MAX_TEXT_CHARACTERS:,}. Shorten it."
        )
    stripped = text.strip(" ")
    for character in stripped:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise TextError(
                f"{what}: it holds the control character U+{ord(character):04X}, plain text is needed. "
                "Remove it."
            )
    stripped = stripped.strip()
    if not stripped:
        raise TextError(f"{what}: empty, a word or more is needed. Say what to look for.")
    return stripped


def _load(content: dict[str, Any], path: Path) -> Tokenizer:
    try:
        return _with_model(content) if _is_handed_over(content["model"]) else _from_text(content)
    except Exception as error:  # the library raises nothing more precise
        raise _not_ours(path, f"it cannot be read ({error})") from error


def _is_handed_over(model: dict[str, Any]) -> bool:
    """Whether the model is BPE with merges as pairs; files of older libraries have them as text."""
    pairs = all(type(pair) is list and len(pair) == 2 for pair in model["merges"])
    return pairs and model.keys() <= {"type", "vocab", "merges", *BPE_OPTIONS} and model.get("type") == "BPE"


def _with_model(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer, its 150,000 tokens and merges handed over instead of written and parsed once more."""
    model = content["model"]
    made = _from_text({**content, "model": {**model, "vocab": {}, "merges": []}})
    options = {key: model[key] for key in BPE_OPTIONS if model.get(key) is not None}
    made.model = models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]], **options)
    return made


def _from_text(content: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(content))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes, as the ByteLevel pre-tokeniser writes them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    characters = [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
    return dict(zip(characters, [*printable, *others], strict=True))


def _not_ours(path: Path, seen: str) -> BundleError:
    return BundleError(
        f"{path.name}: {seen}, a byte-level BPE tokenizer is needed. "
        "Use the tokenizer.json that belongs to the model and export again."
    )
