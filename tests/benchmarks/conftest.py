"""Stand-ins for judging: subjects that answer as they are told, and items made by hand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rexthinker_edge.benchmarks.run_file import Item
from rexthinker_edge.benchmarks.subjects import Question, Reply, Subject
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Record
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.errors import ImageError

BOXES = ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0))
VOCABULARY = 5


class Scripted(Subject):
    """Answers with the candidate whose number (from 1) ends the expression; "nothing" is absent."""

    def __init__(
        self, name: str = "scripted", change: Callable[[Question, Reply], Reply] | None = None
    ) -> None:
        self.name, self.change = name, change
        self.identity: dict[str, Any] = {"kind": "scripted", "name": name, "digest": name}
        self.details: dict[str, Any] = {}
        self.asked: list[str] = []
        self.temperature = 1.0

    def ask(self, question: Question) -> Reply:
        """By the script."""
        self.asked.append(question.expression)
        if "broken" in question.expression:
            raise ImageError("picture: not to be read, a picture is needed. Give another.")
        boxes = question.boxes or ()
        number = question.expression.split()[-1]
        wanted = [k for k, box in enumerate(boxes) if number.isdigit() and box == BOXES[int(number) - 1]]
        verdicts = tuple("match" if k in wanted else "no_match" for k in range(len(boxes)))
        status = Status.FOUND if wanted else Status.ABSENT
        told = (1, 2, 3) if wanted else (4, 3)
        reply = Reply(
            status, tuple(wanted), boxes, verdicts, f"said {number}", told,
            {"prompt": 9, "generated": len(told), "passes": 2}, {"generate": 4.0, "total": 5.0},
        )  # fmt: skip
        return self.change(question, reply) if self.change else reply

    def force(self, question: Question, token_ids: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits that favour the token of one's own answer, in pieces of two."""
        own = self.ask(question).token_ids
        rows = np.zeros((len(token_ids), VOCABULARY), np.float32)
        for place, row in enumerate(rows):
            row[own[min(place, len(own) - 1)]] = 3.0 / self.temperature
        for start in range(0, len(rows), 2):
            yield rows[start : start + 2]


class Listed(Dataset):
    """Records from a list; None is a line that cannot be read."""

    def __init__(self, records: Sequence[Record | None]) -> None:
        super().__init__("listed:all")
        self.listed = list(records)

    def __len__(self) -> int:
        return len(self.listed)

    def place(self, number: int) -> tuple[str, int]:
        return "list", number + 1

    def read(self, number: int) -> Record:
        record = self.listed[number]
        if record is None:
            raise ValueError("the line is gone")
        return record

    def picture(self, number: int, record: Record) -> np.ndarray:
        return np.zeros((20, 60, 3), np.uint8)


def record(number: int, answers: Sequence[int] = (0,), domain: str = "attribute", said: str = "") -> Record:
    """A record over `BOXES`; the expression ends in the first answer's number."""
    last = str(answers[0] + 1) if answers else "nothing"
    answer_boxes = tuple(BOXES[k] for k in answers)
    domain = domain if answers else "rejection"
    return Record(
        number, f"{number}.png", f"{said} {last}".strip(), domain, "color", "ball", BOXES, answer_boxes
    )


def item(number: int, answers: Sequence[int] = (0,), **fields: Any) -> Item:
    """An item that was answered rightly, but for `fields`."""
    made = record(number, answers)
    right = Item(
        number=number, id=number, image_name=made.image_name, referring=made.referring, domain=made.domain,
        sub_domain=made.sub_domain, category="ball", candidates=3, truth=tuple(answers),
        answers=made.answer_boxes, status="found" if answers else "absent", indices=tuple(answers),
        boxes=made.answer_boxes, verdicts=tuple("match" if k in answers else "no_match" for k in range(3)),
        text="thought", token_ids=(1, 2, 3), tokens={"prompt": 9, "generated": 3, "passes": 3},
        pass_tokens=(1, 1, 1),
        ms={"generate": 6.0, "total": 7.0},
    )  # fmt: skip
    return replace(right, **fields)


@pytest.fixture
def listed() -> Listed:
    """Eight records: three answerable kinds, rejections, one unreadable line and one that cannot be asked."""
    return Listed(
        [
            record(0), record(1, (1,)), record(2, ()), None, record(4, (2, 0), "position"),
            record(5, (0,), said="broken"), record(6, ()), record(7, (1,), "position"),
        ]
    )  # fmt: skip
