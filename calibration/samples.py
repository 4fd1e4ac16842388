"""Calibration samples: the tokens and the picture a model reads and writes when it answers.

Layout    A sample is system turn, picture, hint, expression, and the assistant's turn with its end token, as
          token ids with M-RoPE positions; the picture is kept as patches for the vision tower.
Contract  Prompts come from runtime/prompt.py, pixels and positions from runtime/: what calibrates is what
          runs. Data without traces gives prompts alone, never an answer without its thought.
Elsewhere what is chosen: selection.py, sources.py; who runs it: export/gptq_layers.py.
"""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.records import Record
from rexthinker_edge.calibration.sources import Situation
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.boxes import Size, to_resized_px
from rexthinker_edge.runtime.errors import DataError
from rexthinker_edge.runtime.positions import mrope_positions
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, VisionInput, qwen_pixels
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.trace import NOTHING


@dataclass(frozen=True)
class Sample:
    """One sequence; S tokens.

    Attributes:
        id: the situation's.
        ids: (S,) int64.
        positions: (3, S) int64 M-RoPE.
        vision: the picture, or None for text alone.
        image_pad: the token that stands for a piece of the picture.
        answer_start: index of the first token the assistant writes; S where it writes none.
    """

    id: str
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    vision: VisionInput | None
    image_pad: int
    answer_start: int


@dataclass(frozen=True)
class Reader:
    """How a model reads: its tokenizer, picture limits, system turn and wording."""

    tokenizer: TextTokenizer
    limits: PixelLimits
    system: str = prompt.SYSTEM
    wording: prompt.Wording = prompt.Wording.DETECT
    max_tokens: int = 8192  # a longer turn is cut at its end

    def sample(self, situation: Situation) -> Sample:
        """The whole sequence of one situation."""
        record = situation.record
        pixels_HWC = situation.pixels()
        vision = qwen_pixels(pixels_HWC, self.limits)
        size = (pixels_HWC.shape[1], pixels_HWC.shape[0])
        candidates = np.array(record.candidate_boxes, np.float64).reshape(-1, 4)
        boxes = to_resized_px(candidates, size, vision.resized)
        asked = prompt.prefix(
            self.system, self.wording, record.category, boxes.tolist(), vision.merged_tokens()
        ) + prompt.suffix(self.wording, record.referring)
        if situation.turn is not None:
            return self.sequence(situation.id, asked, situation.turn(vision.resized), vision)
        return self.sequence(situation.id, asked, written_turn(record, size, vision.resized), vision)

    def sequence(
        self, name: str, asked: list[prompt.Part], said: str | None, vision: VisionInput | None
    ) -> Sample:
        """Any prompt and turn as a sample; `said` None leaves the turn out.

        Raises:
            DataError: the prompt alone is too long.
        """
        question = self.tokenizer.encode_parts(asked)
        answer = [] if said is None else self.tokenizer.encode_parts([said, prompt.IM_END])
        if len(question) > self.max_tokens:
            raise DataError(
                f"{name}: its prompt has {len(question):,} tokens, at most {self.max_tokens:,} fit. Leave it "
                "out, or allow more with --max-length."
            )
        ids = np.array((question + answer)[: self.max_tokens], np.int64)
        pad = self.tokenizer.special_id(prompt.IMAGE_PAD.name)
        positions, _ = mrope_positions(ids, pad, [] if vision is None else [vision.grid_thw])
        return Sample(name, ids, positions, vision, pad, min(len(question), len(ids)))


def written_turn(record: Record, original: Size, resized: Size) -> str | None:
    """The assistant's turn of a record with a trace, as Rex-Thinker writes it; None without one.

    Args:
        original, resized: (width, height) of the picture; the answer's boxes are the hint's.
    """
    if record.trace is None:
        return None
    boxes = np.array(record.answer_boxes, np.float64).reshape(-1, 4)
    found = [
        {"bbox_2d": box, "label": record.referring}
        for box in to_resized_px(boxes, original, resized).tolist()
    ]
    answer = f"json\n{json.dumps(found, ensure_ascii=False)}\n" if found else NOTHING
    thought = record.trace.removeprefix("<think>").removesuffix("</think>").strip("\n")
    return f"<think>{thought}\n</think><answer>{answer}</answer>"
