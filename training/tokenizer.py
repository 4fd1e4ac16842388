"""The small model's own byte-level BPE, with Qwen's special tokens.

Layout    ids: specials, 256 bytes, learnt words, then every number of 0…447 in three forms:
          "57", " 57", ", 57".
Contract  Splits as Qwen's pre-tokeniser does, but for numbers: a coordinate is one token, so that the tie
          between a box and a place is one embedding look-up and not a sum over digits. Larger numbers fall
          into pieces of up to three digits, each made of bytes if it must. `]]}` + newline stays one piece.
Elsewhere how the runtime uses it: runtime/tokens.py.
Source    docs/sources.md#tokenizer
"""

import json
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rexthinker_edge.calibration.workbench import items
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.runtime.prompt import SYSTEM

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
NUMBERS = 448  # 0…447: no side of a picture within the pixel limits and an aspect ratio of 2 is longer
NUMBER_FORMS = ("{}", " {}", ", {}")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|,? ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], words: int) -> Tokenizer:
    """Learn `words` pieces beyond specials and bytes from texts, then add the numbers."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIALS) + 256 + words,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    digits = str.maketrans("", "", "0123456789")
    tokenizer.train_from_iterator((text.translate(digits) for text in texts), trainer)
    return with_numbers(tokenizer)


def with_numbers(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with one piece for every number in every form."""
    data = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = data["model"]["vocab"]
    for form in NUMBER_FORMS:
        for number in range(NUMBERS):
            vocab.setdefault(form.format(number).replace(" ", "Ġ"), len(vocab))
    return Tokenizer.from_str(json.dumps(data))


def number_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """{token id: number} of all number pieces, in any form."""
    vocab = tokenizer.get_vocab()
    return {vocab[f.format(n).replace(" ", "Ġ")]: n for f in NUMBER_FORMS for n in range(NUMBERS)}


def workbench_texts(seed: int, count: int) -> Iterator[str]:
    """What a model of the workbench reads and writes: `count` questions of each level, with traces."""
    for level in Level:
        for index in range(count):
            item = items.make_item(level, seed, index)
            yield from (SYSTEM, "system\n user\n assistant\n")
            yield f'Hint: Object and its coordinates in this image: {{"{item.category}": [[], []]}}\n'
            yield f"Please detect {item.question.expression} in the image."
            yield f"Please describe every {item.category} in the image."
            yield items.item_trace(item, (item.scene.width, item.scene.height), index)
            yield items.describe_things(item.scene, item.candidates, items.ATTRIBUTES)
            yield f"{items.EVERYTHING} {items.EVERYTHING.capitalize()}"
