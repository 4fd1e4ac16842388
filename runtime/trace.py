"""The thought, taken apart: which step checked which candidates, and the verdict on each.

Layout    Planning, then sections headed `# …`; in them lines `- NAME i: …` that end in a mark; the summary
          is the last section. Candidates count from 1 in the text, from 0 here.
Contract  Only structure is relied on: headings, candidate lines, marks. A trace that lacks any of it still
          yields what it has. The verdict is the summary's where it speaks of a candidate, else the last
          one given; ⚠ may come with or without U+FE0F.
Elsewhere the answer: answer.py; the traces that taught the form: calibration/workbench/traces.py.
Source    docs/sources.md#traces
"""

import re
from dataclasses import dataclass
from enum import StrEnum

_HEADING = re.compile(r"^\s*#+\s*(.*?)\s*#*\s*$")
# "- Ball 3: …", "- **Person 12** (left): …"; without a bullet only when the name is the category's
_LINE = re.compile(r"^\s*([-•]\s*|\*\s+)?\**([^\W\d][^:#\n]{0,60}?)\s+(\d{1,4})\**\s*(?:\([^)]*\)\s*)?:")
_MARK = re.compile("[✅❌⚠]")


class Verdict(StrEnum):
    """What the thought says of one candidate."""

    MATCH = "match"  # ✅
    NO_MATCH = "no_match"  # ❌
    REFERENCE = "reference"  # ⚠️: not asked for, but the expression is measured against it
    UNKNOWN = "unknown"  # the thought gives no mark


_VERDICTS = {"✅": Verdict.MATCH, "❌": Verdict.NO_MATCH, "⚠": Verdict.REFERENCE}


@dataclass(frozen=True)
class Check:
    """One candidate line of a section."""

    index: int  # 0-based
    verdict: Verdict


@dataclass(frozen=True)
class Section:
    """One step of the thought."""

    title: str
    text: str
    checks: tuple[Check, ...]
    mentioned: tuple[int, ...]  # 0-based candidates, in order of first mention

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """This section's verdict on each of `mentioned`."""
        given = {check.index: check.verdict for check in self.checks}
        return tuple(given.get(index, Verdict.UNKNOWN) for index in self.mentioned)


@dataclass(frozen=True)
class Trace:
    """A thought and what it says."""

    thought: str
    sections: tuple[Section, ...]
    verdicts: tuple[Verdict, ...]  # one per candidate


def read_trace(text: str, category: str, candidates: int) -> Trace:
    """Take the thought out of an output and read it.

    Args:
        text: the whole output, complete or cut short.
        category: what the candidates are called in it.
        candidates: how many there are; numbers beyond are ignored.
    """
    thought = thought_of(text)
    sections = tuple(_sections(thought, category, candidates))
    return Trace(thought, sections, _verdicts(sections, candidates))


def thought_of(text: str) -> str:
    """What stands between `<think>` and the `</think>` before the answer, or all of it when cut short."""
    before, opened, after = text.partition("<think>")
    rest = after if opened else before
    matches = list(re.finditer(r"</think>\s*<answer>", rest))
    if matches:
        return rest[: matches[0].start()].strip()
    return rest.partition("<answer>")[0].removesuffix("</think>").strip()


def _sections(thought: str, category: str, candidates: int) -> list[Section]:
    made: list[Section] = []
    title, lines = None, list[str]()
    for line in [*thought.splitlines(), None]:
        heading = _HEADING.match(line) if line is not None else None
        if line is not None and heading is None:
            lines.append(line)
            continue
        if title is not None:
            made.append(_section(title, lines, category, candidates))
        title, lines = heading.group(1) if heading else None, []
    return made


def _section(title: str, lines: list[str], category: str, candidates: int) -> Section:
    checks: dict[int, Verdict] = {}
    current = -1  # lines before the first candidate's
    for line in lines:
        named = _named(line, category)
        current = current if named is None else named
        if current in range(candidates):
            marks = _MARK.findall(line)
            checks.setdefault(current, Verdict.UNKNOWN)
            if marks:
                checks[current] = _VERDICTS[marks[-1]]
    text = "\n".join(lines).strip()
    mentioned = tuple(checks) or _mentioned(text, category, candidates)
    return Section(title, text, tuple(Check(index, verdict) for index, verdict in checks.items()), mentioned)


def _named(line: str, category: str) -> int | None:
    """The candidate a line is about, which may not exist; None for a line that begins no candidate."""
    match = _LINE.match(line)
    if match is None:
        return None
    bullet, name, number = match.groups()
    is_category = name.casefold() == category.casefold()
    if not is_category and (bullet is None or name.casefold() == "step" or len(name.split()) > 3):
        return None
    return int(number) - 1


def _mentioned(text: str, category: str, candidates: int) -> tuple[int, ...]:
    numbers = re.findall(rf"\b{re.escape(category)}\s+(\d{{1,4}})\b", text, re.IGNORECASE)
    indices = (int(number) - 1 for number in numbers)
    return tuple(dict.fromkeys(index for index in indices if 0 <= index < candidates))


def _verdicts(sections: tuple[Section, ...], candidates: int) -> tuple[Verdict, ...]:
    """The last verdict on each candidate; a summary comes last, so where it speaks it decides."""
    verdicts = [Verdict.UNKNOWN] * candidates
    for section in sections:
        for check in section.checks:
            if check.verdict is not Verdict.UNKNOWN:
                verdicts[check.index] = check.verdict
    return tuple(verdicts)
