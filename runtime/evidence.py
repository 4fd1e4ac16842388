"""What a picture of a trace shows: candidates, which are the answer, and the thought line by line.

Layout    `Evidence` is plain data for one question, from a dataset's record or from a result; `lines` cuts
          the thought into lines that know their step and the candidates (from 0) they speak of.
Elsewhere pages: evidence_page.py; pictures: evidence_picture.py; reading traces: trace.py.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.trace import Verdict, read_trace


@dataclass(frozen=True)
class Evidence:
    """One question as it is shown.

    Attributes:
        pixels_HWC: (height, width, 3) uint8, the upright picture; None draws boxes alone.
        boxes: candidates, (x0, y0, x1, y1) in its pixels.
        answers: candidates (from 0) that are the answer.
        thought: what stands between <think> and </think>; "" where there is none.
        notes: (name, value) lines told beside it, such as the domain.
        size_px: (width, height), needed without pixels.
        confidences: per candidate, of its verdict, from 0 to 1; () where none is known.
    """

    title: str
    category: str
    pixels_HWC: NDArray[np.uint8] | None
    boxes: tuple[tuple[float, float, float, float], ...]
    answers: frozenset[int]
    thought: str
    notes: tuple[tuple[str, str], ...] = ()
    size_px: tuple[int, int] | None = None
    confidences: tuple[float | None, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        if self.pixels_HWC is not None:
            return self.pixels_HWC.shape[1], self.pixels_HWC.shape[0]
        assert self.size_px is not None, "neither pixels nor a size"
        return self.size_px

    def verdicts(self) -> tuple[Verdict, ...]:
        """What the thought says of each candidate."""
        return read_trace(self.thought, self.category, len(self.boxes)).verdicts

    def name(self, index: int) -> str:
        """ "Person 3" for candidate 2."""
        return f"{self.category[:1].upper()}{self.category[1:]} {index + 1}"


@dataclass(frozen=True)
class Line:
    """One line of a thought; `step` counts headings from 1, 0 before the first."""

    text: str
    step: int
    is_heading: bool
    candidates: tuple[int, ...]


def lines(evidence: Evidence) -> Iterator[Line]:
    """The thought's lines; a heading has its whole step's candidates, a line those it names itself."""
    category, count = evidence.category, len(evidence.boxes)
    sections = read_trace(evidence.thought, category, count).sections
    step = 0
    for raw in evidence.thought.splitlines():
        text = plain(raw).rstrip()
        is_heading = text.lstrip().startswith("#")
        if is_heading:
            step += 1
            found: Sequence[int] = sections[step - 1].mentioned if step <= len(sections) else ()
        else:
            alone = read_trace(f"# \n{text}", category, count).sections
            found = alone[0].mentioned if alone else ()
        yield Line(text.lstrip("# ") if is_heading else text, step, is_heading, tuple(found))


def plain(text: str) -> str:
    """Text without control characters, direction overrides and the like; joiners and newlines stay."""
    return "".join(
        c
        for c in text
        if c in "\n\t" or c in "\u200d\ufe0f" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
