"""All words the model was trained to read: the system turn, the box hint, the question.

Layout    <|im_start|>system … <|im_end|> <|im_start|>user <|vision_start|> <|image_pad|>×N <|vision_end|>
          Hint: … \\n | question <|im_end|> <|im_start|>assistant \\n
          The bar marks the cut: left of it is the prefix, shared by every expression on a scene.
Contract  A prompt is a list of parts; a `str` part is plain text (special-token strings inside it are
          text), a `Special` part is one special token. `prefix + suffix` tokenised apart equals the whole
          tokenised at once, because the cut stands after a newline and both neighbours are plain text.
Elsewhere turning parts into token ids: tokens.py. Boxes in resized pixels: boxes.py.
Source    docs/sources.md#prompt
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
    "tags, respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>."
)


class Wording(StrEnum):
    """Which of the two published questions the model was trained on."""

    DETECT = "detect"  # demo and GRPO data
    LOCATE = "locate"  # HumanRef evaluation


@dataclass(frozen=True)
class Special:
    """One special token, named by its string."""

    name: str


Part = str | Special

IM_START, IM_END = Special("<|im_start|>"), Special("<|im_end|>")
VISION_START, VISION_END = Special("<|vision_start|>"), Special("<|vision_end|>")
IMAGE_PAD = Special("<|image_pad|>")


def hint(category: str, boxes: Sequence[Sequence[int]]) -> str:
    """The candidates as the model reads them: JSON of {category: boxes}, integers in resized pixels."""
    return json.dumps({category: [[int(v) for v in box] for box in boxes]})


def prefix(
    system: str, wording: Wording, category: str, boxes: Sequence[Sequence[int]], image_tokens: int
) -> list[Part]:
    """Everything up to the cut: system turn, picture, hint.

    Args:
        system: the system turn of the bundle's manifest (`SYSTEM` for Rex-Thinker).
        boxes: (N, 4) integers (x0, y0, x1, y1) in resized pixels.
        image_tokens: number of merged vision tokens, grid_h * grid_w / 4.
    """
    lead = "Hint: Object and its coordinates in this image: " if wording is Wording.DETECT else "Hint: "
    return [
        IM_START, f"system\n{system}", IM_END, "\n",
        IM_START, "user\n", VISION_START, *[IMAGE_PAD] * image_tokens, VISION_END,
        f"{lead}{hint(category, boxes)}\n",
    ]  # fmt: skip


def suffix(wording: Wording, expression: str) -> list[Part]:
    """Everything after the cut: the question and the opening of the assistant's turn."""
    if wording is Wording.DETECT:
        question = f"Please detect {expression} in the image."
    else:
        question = f"Locate {expression} in the image and answer the question in json format."
    return [question, IM_END, "\n", IM_START, "assistant\n"]
