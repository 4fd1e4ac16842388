"""The answer in the model's output: which candidates it names, or why there is none.

Layout    `<think>…</think><answer>…</answer>`. The answer is JSON, a list of {"bbox_2d": [x0, y0, x1, y1],
          "label": …} in resized pixels, bare, after `json` or fenced; or one sentence: nothing fits.
Contract  Only a complete `<answer>` that reaches the end of the output counts, and only as a whole: no box is
          picked out of the thought, and a failure is never an empty answer. Of several `<answer>` strings the
          first whose content reads as an answer is the model's: one quoted from an expression does not.
          A complete answer counts whatever ended the generation.
Elsewhere the thought's steps and verdicts: trace.py; box maths: boxes.py; the words: prompt.py.
Source    docs/sources.md#answers
"""

import json
import math
import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.boxes import iou
from rexthinker_edge.runtime.generate import Finish

OPEN, CLOSE = "<answer>", "</answer>"
# One wrong digit of a copied box; two distinct candidates overlap this much only when doubled.
SAME_BOX_IOU = 0.9
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_NAMED = re.compile(r"json\s*(?=[\[{])")
_NOTHING = re.compile(r"there is no such thing in (?:the|this) image\.?", re.IGNORECASE)


class Status(StrEnum):
    """How a question ended; nothing in between."""

    FOUND = "found"
    ABSENT = "absent"  # the model looked and says that none matches
    NO_CANDIDATES = "no_candidates"  # the detector found nothing, so the model was not asked
    MALFORMED = "malformed"  # it ended, but with no readable answer
    TRUNCATED = "truncated"  # max_new_tokens came first
    TIMEOUT = "timeout"  # the deadline came first
    UNGROUNDED = "ungrounded"  # a box of the answer is no candidate


@dataclass(frozen=True)
class Answer:
    """Status, and the candidates named, in the order of the answer, each once; empty unless FOUND."""

    status: Status
    indices: tuple[int, ...] = ()


def read_answer(text: str, finish: Finish, hints: NDArray[np.int64]) -> Answer:
    """Read the whole output of one generation.

    Args:
        text: everything generated, without the end token.
        finish: why the generation ended.
        hints: (N, 4) candidates in resized pixels, as the prompt gave them.
    """
    boxes = answer_boxes(text)
    if boxes is None:
        endings = {
            Finish.LENGTH: Status.TRUNCATED,
            Finish.DEADLINE: Status.TIMEOUT,
            Finish.STOP: Status.MALFORMED,
        }
        return Answer(endings[finish])
    if not boxes:
        return Answer(Status.ABSENT)
    indices = ground(boxes, hints)
    return Answer(Status.UNGROUNDED) if indices is None else Answer(Status.FOUND, indices)


def answer_boxes(text: str) -> list[list[float]] | None:
    """The boxes of the answer in resized pixels; empty when nothing fits, None when unreadable."""
    body = text.rstrip()
    if not body.endswith(CLOSE):
        return None
    end = len(body) - len(CLOSE)
    for start in re.finditer(re.escape(OPEN), body):
        boxes = _read_content(body[start.end() : end].strip())
        if boxes is not None:
            return boxes
    return None


def ground(boxes: list[list[float]], hints: NDArray[np.int64]) -> tuple[int, ...] | None:
    """The candidate behind each box: the exact copy, else the one that overlaps it by `SAME_BOX_IOU`.

    Two candidates with equal hints are taken in turn. A box named twice counts once.

    Returns:
        Candidate indices, or None when a box is no candidate.
    """
    found: list[int] = []
    for box in boxes:
        exact = (
            np.flatnonzero((hints == np.asarray(box)).all(axis=1)) if len(hints) else np.zeros(0, np.int64)
        )
        if len(exact):
            unused = [int(index) for index in exact if int(index) not in found]
            found += unused[:1]
            continue
        overlap = iou([box], hints)[0]
        best = int(overlap.argmax()) if len(overlap) else -1
        if best < 0 or overlap[best] < SAME_BOX_IOU:
            return None
        if best not in found:
            found.append(best)
    return tuple(found)


def _read_content(content: str) -> list[list[float]] | None:
    if _NOTHING.fullmatch(content):
        return []
    fenced = _FENCED.fullmatch(content)
    content = (
        fenced.group(1) if fenced else _NAMED.sub("", content, count=1) if _NAMED.match(content) else content
    )
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        return None
    boxes = [_read_box(item) for item in items]
    return None if None in boxes else [box for box in boxes if box is not None]


def _read_box(item: object) -> list[float] | None:
    box = item.get("bbox_2d") if isinstance(item, dict) else None
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box):
        return None
    if (
        not all(abs(value) < 1e6 and math.isfinite(value) for value in box)
        or box[2] < box[0]
        or box[3] < box[1]
    ):
        return None
    return [float(value) for value in box]
