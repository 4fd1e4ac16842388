"""A trace as far as it is written, followed line by line: the plan, the step at hand, facts and marks so far.

Layout    A plan gives the steps' headings; a section gives the candidates that are left, by the marks of the
          one before; the summary names every candidate with the last thing said of it; then the answer.
Contract  What does not have the form is followed all the same: it changes nothing but what is expected.
Elsewhere what follows from it: draft_grammar.py; reading a finished trace: trace.py; words: prompt.py.
Source    docs/sources.md#traces
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from rexthinker_edge.runtime.trace import REFERENCE, THINK_END, YES

CANDIDATE = re.compile(r"- (.{1,60}?) (\d{1,4}):(.*)", re.DOTALL)
MARK = re.compile(r"( →)? (✅|❌|⚠️?)")
_PLANNED = re.compile(r"- Step (\d+): (.*)")


@dataclass(frozen=True)
class Ground:
    """What a scene's traces speak of.

    Attributes:
        name: what candidates are called, "Ball".
        hints: a box per candidate in resized pixels.
        encode: text to token ids; remembers what it was asked.
        token_bytes: what a token stands for.
    """

    name: str
    hints: tuple[tuple[int, int, int, int], ...]
    encode: Callable[[str], tuple[int, ...]]
    token_bytes: Callable[[int], bytes]
    facts: dict[tuple[str, int], str] = field(default_factory=dict)  # of earlier answers, by title and number


def make_ground(
    category: str, hints: Sequence[Sequence[int]], encode: Callable[[str], list[int]],
    token_bytes: Callable[[int], bytes],
) -> Ground:  # fmt: skip
    """The ground of one scene; `hints` (N, 4) as the prompt states them."""
    remembered = lru_cache(maxsize=4096)(lambda text: tuple(encode(text)))
    boxes = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in hints)
    return Ground(category.capitalize(), boxes, remembered, token_bytes)


@dataclass
class Section:
    """A step as far as it is written: a fact and a mark per candidate."""

    title: str
    expected: list[int]
    facts: dict[int, str] = field(default_factory=dict)
    marks: dict[int, str] = field(default_factory=dict)
    last: int = 0  # the candidate whose line was written last, 0 before the first


class Form:
    """One answer, followed line by line. Candidates count from 1 here, as in the text.

    Attributes:
        everyone: all candidates.
        line, line_tokens: what is written of the last line. No tokens though there is a line: they came with
            the newline before it and are not told apart.
        titles: of the steps, as planned; `number` of them have begun, the summary counts as one more.
        section: the step that is being written; None before the first.
        last_facts: of each candidate, what the steps before said last.
        survivors: of the summary, those that the last step marked ✅.
        blank: the line above is empty.
        answering: the thought is closed.
        repeats: the summary repeats the last fact, or else says the same of all alike.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.everyone = list(range(1, len(ground.hints) + 1))
        self.line = b""
        self.line_tokens: list[int] = []
        self.titles: list[str] = []
        self.section: Section | None = None
        self.number = 0
        self.last_facts: dict[int, str] = {}
        self.survivors: set[int] = set()
        self.blank = False
        self.answering = False
        self.repeats = True

    def push(self, token: int) -> None:
        """One more token of the answer is known."""
        self.line += self.ground.token_bytes(token)
        self.line_tokens.append(token)
        if b"\n" in self.line:
            *lines, rest = self.line.split(b"\n")
            for line in lines:
                self._read(line.decode("utf-8", errors="replace"))
            self.line = rest
            # tokens of the next line that came with the newline are not told apart: then nothing is drafted
            self.line_tokens = []

    def _read(self, line: str) -> None:
        """A whole line."""
        self.blank = not line
        if line.startswith("#"):
            self._begin_section(line)
        elif line.startswith(THINK_END):
            self._end_section()
            self.answering = True
        elif self.section is None:
            planned = _PLANNED.match(line)
            if planned is not None and int(planned[1]) == len(self.titles) + 1:
                self.titles.append(planned[2])
        else:
            self._read_candidate(line, self.section)

    def _begin_section(self, line: str) -> None:
        self._end_section()
        before, title = self.section, line.partition(": ")[2]
        self.number += 1
        summary = line.startswith("# Summar")
        if before is None or summary:
            expected = self.everyone
        elif REFERENCE in before.marks.values():
            expected = [i for i in before.expected if before.marks.get(i) != REFERENCE]
        elif before.marks:
            expected = [i for i in before.expected if before.marks.get(i, YES) == YES]
        else:
            expected = before.expected
        if summary:
            self.number, title = len(self.titles) + 1, ""
            self.survivors = {i for i in self.everyone if before.marks.get(i) == YES} if before else set()
        self.section = Section(title, expected)

    def _end_section(self) -> None:
        if self.section is not None and not self.summing:
            for index, fact in self.section.facts.items():
                self.ground.facts[self.section.title, index] = fact
            self.last_facts.update(self.section.facts)

    @property
    def summing(self) -> bool:
        """The section that is being written is the summary."""
        return self.section is not None and not self.section.title

    def _read_candidate(self, line: str, section: Section) -> None:
        match = CANDIDATE.match(line)
        mark = MARK.search(match[3]) if match else None
        if match is None or mark is None or match[1] != self.ground.name:
            return
        index, fact = int(match[2]), match[3][: mark.start()]
        if index not in self.everyone:
            return
        if not self.summing and index not in section.expected:
            section.expected = self.everyone
        section.facts[index], section.last = fact, index
        section.marks[index] = REFERENCE if mark[2].startswith("⚠") else mark[2]
        if self.summing:
            self.repeats = fact == self.last_facts.get(index, fact)
