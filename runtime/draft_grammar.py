"""Drafts from the form of a trace: what the plan, the candidates and the verdicts so far make certain.

Layout    Lines are made of pieces that are tokenised apart: each begins with a space or stands behind a
          newline, where byte-level BPE never joins across. The answer has the boxes of those marked ✅, as
          the hint wrote them.
Contract  A guess, never a rule. Nothing is drafted where the text does not have the form.
Elsewhere following the text: draft_form.py; the words of the prompt: prompt.py; the choice: draft.py.
Source    docs/sources.md#traces
"""

import json
import re
from collections.abc import Sequence
from enum import IntEnum

from rexthinker_edge.runtime.draft_form import CANDIDATE, MARK, Form, Ground, Section
from rexthinker_edge.runtime.trace import NO, NOTHING, REFERENCE, SUMMARY, THINK_END, YES

ARROW = " →"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
_OBJECT = re.compile(r'\{"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\], "label": "(?:[^"\\]|\\.)*"\}')

Piece = tuple[Sequence[int], int]  # tokens and their kind


class Kind(IntEnum):
    """What a guess rests on."""

    HEADING = 0  # the plan's next step, or the summary
    FIRST_LINE = 1  # a section's first line is a candidate's
    NEXT_LINE = 2  # the next candidate that is left, or that none is
    FACT_REPEATED = 3  # the summary repeats what was last said
    FACT_USUAL = 4  # what most candidates of the section got
    FACT_SIBLING = 5  # what another answer said of this candidate in a step of the same title
    MARK_SEEN = 6  # the same fact got it in this section
    MARK_WORDS = 7  # the fact's words are, or are not, in the expression
    MARK_KNOWN = 8  # the summary's, from the sections before
    ANSWER = 9  # the boxes of those marked ✅
    ANSWER_BEGUN = 10  # the same, when some of it has been written as foreseen


BELIEFS = (0.95, 0.6, 0.9, 0.8, 0.3, 0.6, 0.9, 0.7, 0.9, 0.9, 0.97)


class Grammar:
    """What one answer's form makes likely."""

    def __init__(self, ground: Ground, expression: str) -> None:
        self._ground, self._form = ground, Form(ground)
        self._words = set(expression.casefold().split())
        self._expression = expression

    def push(self, token: int) -> None:
        """One more token of the answer is known."""
        self._form.push(token)

    def propose(self, most: int) -> tuple[list[int], list[int]]:
        """What the form makes likely, and the kind of each guess."""
        if self._form.line and not self._form.line_tokens:
            return [], []
        pieces = self._pieces(most + len(self._form.line_tokens))
        tokens: list[int] = []
        kinds: list[int] = []
        for piece, kind in pieces:
            tokens += piece
            kinds += [int(kind)] * len(piece)
        begun = len(self._form.line_tokens)
        if tokens[:begun] != self._form.line_tokens:
            return [], []
        return tokens[begun : begun + most], kinds[begun : begun + most]

    def _pieces(self, most: int) -> list[Piece]:
        """Lines from the beginning of this one, until enough or unsure."""
        text = self._form.line.decode("utf-8", errors="replace")
        if self._form.answering or text.startswith("</"):
            return self._answer(text)
        section = self._form.section
        if section is None or (self._form.blank and not text.startswith("- ")):
            return self._heading() if self._form.titles and self._form.blank else []
        return self._lines(section, text, most)

    def _heading(self) -> list[Piece]:
        """The next step's heading, or the summary's, and its first line's beginning."""
        encode = self._ground.encode
        if self._form.number < len(self._form.titles):
            line = f"# Step {self._form.number + 1}: {self._form.titles[self._form.number]}\n"
            return [(encode(line), Kind.HEADING)]
        first = self._start(self._form.everyone[0]) if self._form.everyone else ()
        return [(encode(SUMMARY + "\n"), Kind.HEADING), (first, Kind.HEADING)]

    def _start(self, index: int) -> tuple[int, ...]:
        return self._ground.encode(f"- {self._ground.name} {index}:")

    def _lines(self, section: Section, text: str, most: int) -> list[Piece]:
        """This line and those after it, while facts can be guessed."""
        pieces: list[Piece] = []
        count, last, marks = 0, section.last, dict(section.marks)
        match = CANDIDATE.match(text)
        begun = match is not None and match[1] == self._ground.name
        index = int(match[2]) if match is not None and begun else self._next(section, last)
        if index is None and self._form.summing and not text:
            return self._answer("", marks)
        if index is None or (text and not begun and not self._is_start(text, index)):
            return []
        partial = match[3] if match is not None and begun else ""
        if begun and index not in self._form.everyone:
            return []
        while index is not None and count < most:
            kind = Kind.FIRST_LINE if last == 0 else Kind.NEXT_LINE
            line = self._line_pieces(section, marks, index, partial)
            pieces += [(self._start(index), kind), *line]
            if len(line) < 2:  # the fact or the mark cannot be guessed
                return pieces
            count += sum(len(piece) for piece, _ in pieces[-3:])
            last, partial = index, ""
            index = self._next(section, last)
        if index is None and count < most and not self._form.summing:
            pieces += self._heading()
        elif index is None and count < most:
            pieces += self._answer("", marks)
        return pieces

    def _is_start(self, text: str, index: int) -> bool:
        return f"- {self._ground.name} {index}:".startswith(text)

    def _next(self, section: Section, last: int) -> int | None:
        """The candidate after `last`, None when it was the last one."""
        if last == 0:
            return section.expected[0] if section.expected else None
        rest = [i for i in section.expected if i > last]
        return rest[0] if rest else None

    def _line_pieces(self, section: Section, marks: dict[int, str], index: int, partial: str) -> list[Piece]:
        """A candidate's fact and mark; empty when the fact cannot be guessed."""
        fact, kind = self._fact(section, index, partial)
        if fact is None:
            return []
        encode = self._ground.encode
        mark, sure = self._mark(section, index, fact)
        marks[index] = mark
        final = self._next(section, index) is None
        if self._form.summing:
            made = encode(fact), encode(ARROW), encode(f" {mark}\n")
            return [(made[0], kind), (made[1] + made[2], sure)]
        return [(encode(fact), kind), (encode(f" {mark}\n\n" if final else f" {mark}\n"), sure)]

    def _fact(self, section: Section, index: int, partial: str) -> tuple[str | None, int]:
        """What is said of a candidate, given what of it is written, with its leading space."""
        written = MARK.split(partial)[0]
        if written != partial or partial.endswith((ARROW, " ")):
            return written.removesuffix(ARROW).rstrip(), Kind.FACT_REPEATED
        for fact, kind in self._guesses(section, index):
            if fact is not None and fact.startswith(partial):
                return fact, kind
        return (partial, Kind.FACT_USUAL) if partial else (None, 0)

    def _guesses(self, section: Section, index: int) -> list[tuple[str | None, int]]:
        if self._form.summing:
            if self._form.repeats:
                return [(self._form.last_facts.get(index), Kind.FACT_REPEATED)]
            mark = YES if index in self._form.survivors else NO
            alike = (section.facts[i] for i, m in section.marks.items() if m == mark)
            return [(next(alike, None), Kind.FACT_REPEATED)]
        guesses: list[tuple[str | None, int]] = [
            (self._ground.facts.get((section.title, index)), Kind.FACT_SIBLING)
        ]
        said = list(section.facts.values())
        for fact in sorted(dict.fromkeys(reversed(said)), key=lambda f: -said.count(f)):
            guesses.append((fact, Kind.FACT_USUAL))
        return guesses

    def _mark(self, section: Section, index: int, fact: str) -> tuple[str, int]:
        if self._form.summing:
            return (YES if index in self._form.survivors else NO), Kind.MARK_KNOWN
        for other, said in section.facts.items():
            if said == fact and section.marks[other] != REFERENCE:
                return section.marks[other], Kind.MARK_SEEN
        fits = set(fact.casefold().split()) <= self._words
        return (YES if fits else NO), Kind.MARK_WORDS

    def _answer(self, text: str, marks: dict[int, str] | None = None) -> list[Piece]:
        """From `</think>` to the end, or from where the text of this line begins."""
        section = self._form.section
        marks = marks if marks is not None else (section.marks if section is not None else {})
        named = [i for i in self._form.everyone if marks.get(i) == YES]
        if not self._form.answering:
            opening = THINK_END + ANSWER_OPEN
            if not named:
                return [(self._ground.encode(opening + NOTHING + ANSWER_CLOSE), Kind.ANSWER)]
            whole = self._boxes("", named)
            return [
                (self._ground.encode(opening + "json\n"), Kind.ANSWER),
                (self._ground.encode(whole + "\n"), Kind.ANSWER),
                (self._ground.encode(ANSWER_CLOSE), Kind.ANSWER_BEGUN),
            ]
        if text.startswith(ANSWER_CLOSE[: max(1, len(text))]) and not text.startswith("["):
            return [(self._ground.encode(ANSWER_CLOSE), Kind.ANSWER_BEGUN)]
        whole = self._boxes(text, named)
        if not whole.startswith(text):
            return []
        return [
            (self._ground.encode(whole + "\n"), Kind.ANSWER_BEGUN),
            (self._ground.encode(ANSWER_CLOSE), Kind.ANSWER_BEGUN),
        ]

    def _boxes(self, text: str, named: list[int]) -> str:
        """The answer's JSON line that goes on from `text`."""
        written = list(_OBJECT.finditer(text))
        kept = [match[0] for match in written]
        tail = text[written[-1].end() :] if written else text
        rest = [self._object(i) for i in named]
        rest = [made for made in rest if made not in kept]
        lead = ", " if kept else "["
        if len(tail) > len(lead) and not any((lead + made).startswith(tail) for made in rest[:1]):
            others = [self._object(i) for i in self._form.everyone]
            rest = [made for made in others if (lead + made).startswith(tail) and made not in kept][:1]
        return "[" + ", ".join([*kept, *rest]) + "]"

    def _object(self, index: int) -> str:
        label = json.dumps(self._expression, ensure_ascii=False)
        return f'{{"bbox_2d": {list(self._ground.hints[index - 1])}, "label": {label}}}'
