"""Results for people: coloured on a terminal, plain elsewhere.

Contract  No control character of the model's or the caller's reaches the terminal.
Elsewhere results for programs: runtime/result.py.
"""

import unicodedata
from typing import TextIO

from rich.console import Console
from rich.text import Text

from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.result import Candidate, Result
from rexthinker_edge.runtime.trace import MARKS

STYLES = {"✅": "green", "❌": "red", "⚠": "yellow"}
MEANINGS = {
    Status.FOUND: "found",
    Status.ABSENT: "absent: none of the candidates matches",
    Status.NO_CANDIDATES: "no candidates: the detector found none, so the model was not asked",
    Status.MALFORMED: "malformed: the model ended without a readable answer",
    Status.TRUNCATED: "truncated: the limit of tokens came before the answer",
    Status.TIMEOUT: "timeout: the deadline came before the answer",
    Status.UNGROUNDED: "ungrounded: the model named a box that is no candidate",
}
STATUS_STYLES = {Status.FOUND: "bold green", Status.ABSENT: "bold yellow"}


class Painter:
    """Writes a thought piece by piece; headings, marks and the answer in their colours."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self._line = ""  # what the current line holds so far

    def write(self, text: str) -> None:
        """Write a piece of the output, whole characters."""
        for line in printable(text).splitlines(keepends=True):
            self._line += line
            style = "bold" if self._line.lstrip().startswith("#") else ""
            piece = Text(
                line, style="cyan" if "<answer>" in self._line or self._line.startswith("[{") else style
            )
            for mark, color in STYLES.items():
                piece.highlight_words([mark], color)
            self.console.print(piece, end="")
            if line.endswith("\n"):
                self._line = ""

    def end(self) -> None:
        """End the last line, if one is open."""
        if self._line:
            self.console.print()
        self._line = ""


def show_result(painter: Painter, result: Result, steps: bool) -> None:
    """Print status, boxes, and optionally what was checked."""
    console = painter.console
    if steps:
        for step in result.steps:
            console.print(Text(f"# {printable(step.title)}", style="bold"))
            painter.write(step.text)
            painter.end()
    withheld = result.abstention
    meaning = MEANINGS[result.status] if withheld is None else f"withheld: {withheld.reason}"
    head = Text(meaning, style=STATUS_STYLES.get(result.status, "bold red"))
    head.append(f"  {result.expression}", style="default")
    sure = "" if result.confidence is None else f", confidence {result.confidence:.2f}"
    head.append(f"  ({len(result.candidates)} candidates, {result.ms.total:,.0f} ms{sure})", style="dim")
    console.print(head)
    chosen = set(result.indices)
    for candidate in sorted(result.candidates, key=lambda candidate: candidate.index not in chosen):
        console.print(_candidate_line(result.category, candidate, candidate.index in chosen))


def _candidate_line(category: str, candidate: Candidate, chosen: bool) -> Text:
    box = ", ".join(f"{value:.1f}" for value in candidate.box)
    score = "" if candidate.score is None else f"  score {candidate.score:.2f}"
    arrow, mark = "→" if chosen else " ", MARKS[candidate.verdict]
    name = f"{category[:1].upper()}{category[1:]} {candidate.index + 1}"
    return Text(f"{arrow} {mark} {name}  [{box}]{score}", style="bold" if chosen else "dim")


def printable(text: str) -> str:
    """The text without control characters, but for newlines and tabs."""
    return "".join(
        c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf") or c == "\u200d"
    )
