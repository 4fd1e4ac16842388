"""What every peer is asked: token ids of one scene, eight questions and their answers.

Layout    `prefix` is a prompt up to the question (system turn, picture tokens, hint), `questions` its eight
          endings, `answers` what is answered. Weights are random, so nobody's own words mean anything: where
          a peer lets its caller choose tokens the answers are replayed, and drafting meets real text.
Contract  With a tokenizer: a held-out workbench scene with true traces, in Rex-Thinker's form. Without one:
          random ids of the same lengths, and `replay` is false.
Elsewhere how it is timed: measure.py; the shape: shape.py.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.calibration.workbench.items import hint_boxes, item_trace, make_items_for_scene
from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.tokens import TextTokenizer

QUESTIONS = 8
QUESTION_TOKENS = 16  # where there is no tokenizer
STEPS = {
    "token": "one token behind that prompt",
    "second": "first token of another question over the same prompt",
    "prefill": "the prompt up to the question, from nothing",
    "one": "one question over the same prompt, read and answered",
    "eight": "eight questions over the same prompt, read and answered",
}


@dataclass(frozen=True)
class Work:
    """Token ids and plain values, for they cross into other interpreters."""

    prefix: list[int]
    questions: list[list[int]]
    answers: list[list[int]]  # all of one length
    tokens: int  # decoded behind each other where one token is timed
    replay: bool  # whether `answers` are text
    category: str = ""
    hints: tuple[tuple[int, ...], ...] = ()
    expressions: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def random_work(vocab: int, prefix: int, answer: int, tokens: int) -> Work:
    """Ids that mean nothing."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return [int(v) for v in rng.integers(0, vocab - 512, length)]

    questions = [ids(QUESTION_TOKENS) for _ in range(QUESTIONS)]
    return Work(ids(prefix), questions, [ids(answer) for _ in range(QUESTIONS)], tokens, replay=False)


def workbench_work(tokenizer: Path, prefix: int, answer: int, tokens: int) -> Work:
    """A held-out scene of the full level with eight questions, padded with picture tokens to `prefix` tokens.

    Raises:
        OptionError: the prompt is longer than `prefix` without a picture, or `answer` than all traces.
    """
    text = TextTokenizer(tokenizer)
    for index in range(100):
        scene = make_scene(Level.FULL, EVALUATION_SEED, index)
        items = make_items_for_scene(scene, np.random.default_rng([EVALUATION_SEED, index]), 2 * QUESTIONS)
        size = (scene.width, scene.height)
        said = {item: text.encode_plain(item_trace(item, size, index)) for item in items}
        chosen = [item for item in items if len(said[item]) >= answer][:QUESTIONS]
        if len(chosen) == QUESTIONS:
            break
    else:
        raise OptionError(f"--answer {answer}: no scene has {QUESTIONS} traces so long. Give fewer tokens.")
    category = items[0].category
    hints = hint_boxes(scene, items[0].candidates, size).tolist()
    read = [
        text.encode_parts(prompt.prefix(prompt.SYSTEM, prompt.Wording.DETECT, category, hints, pads))
        for pads in (0, 1)
    ]
    pads = prefix - len(read[0])
    if pads < 1:
        raise OptionError(f"--prompt {prefix}: the words alone are {len(read[0])} tokens. Give more.")
    pad = text.special_id(prompt.IMAGE_PAD.name)
    at = read[1].index(pad)
    expressions = tuple(item.question.expression for item in chosen)
    questions = [text.encode_parts(prompt.suffix(prompt.Wording.DETECT, words)) for words in expressions]
    return Work(
        read[1][:at] + [pad] * pads + read[1][at + 1 :], questions, [said[item][:answer] for item in chosen],
        tokens, True, category, tuple(tuple(box) for box in hints), expressions,
    )  # fmt: skip
