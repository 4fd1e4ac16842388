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


YES, NO, REFERENCE = "✅", "❌", "⚠️"  # as a trace writes them
MARKS = {Verdict.MATCH: YES, Verdict.NO_MATCH: NO, Verdict.REFERENCE: REFERENCE, Verdict.UNKNOWN: "·"}
SUMMARY = "# Summarize and Re-Check answer"
NOTHING = "There is no such thing in the image."  # in place of boxes
THINK_END = "</think>"

_VERDICTS = {YES: Verdict.MATCH, NO: Verdict.NO_MATCH, REFERENCE[0]: Verdict.REFERENCE}


@dataclass(frozen=True)
class Check:
    """One candidate line of a section."""

    index: int  # 0-based
    verdict: Verdict
    start: int = 0  # of its first line, in characters of the thought
    at: int | None = None  # likewise, of the mark that gave the verdict


@dataclass(frozen=True)
class Mention:
    """A candidate's name where the thought says it: characters [start, end)."""

    start: int
    end: int
    index: int  # 0-based


@dataclass(frozen=True)
class Section:
    """One step of the thought."""

    title: str
    text: str
    checks: tuple[Check, ...]
    mentioned: tuple[int, ...]  # 0-based candidates, in order of first mention
    start: int = 0  # characters [start, end) of the thought, heading included
    end: int = 0

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
    start: int = 0  # of the thought, in characters of the text it was read from


def read_trace(text: str, category: str, candidates: int) -> Trace:
    """Take the thought out of an output and read it.

    Args:
        text: the whole output, complete or cut short.
        category: what the candidates are called in it.
        candidates: how many there are; numbers beyond are ignored.
    """
    start, thought = _thought(text)
    sections = tuple(_sections(thought, category, candidates))
    return Trace(thought, sections, _verdicts(sections, candidates), start)


def thought_of(text: str) -> str:
    """What stands between `<think>` and the `</think>` before the answer, or all of it when cut short."""
    return _thought(text)[1]


def mentions(thought: str, category: str, candidates: int) -> list[Mention]:
    """Every place of a thought that names a candidate which exists, in order, none over another.

    A candidate line's own name counts whatever it calls the candidate; elsewhere it is the category's.
    """
    found, place = list[Mention](), 0
    for line in thought.splitlines(keepends=True):
        own = _line_name(line, category)
        if own is not None and own[2] in range(candidates):
            found.append(Mention(place + own[0], place + own[1], own[2]))
        behind = own[1] if own is not None else 0
        for match in re.finditer(_named_elsewhere(category), line, re.IGNORECASE):
            index = int(match.group(1)) - 1
            if match.start() >= behind and index in range(candidates):
                found.append(Mention(place + match.start(), place + match.end(), index))
        place += len(line)
    return found


def _thought(text: str) -> tuple[int, str]:
    """The thought, and where in the text it begins."""
    before, opened, after = text.partition("<think>")
    rest = after if opened else before
    matches = list(re.finditer(r"</think>\s*<answer>", rest))
    cut_short = rest.partition("<answer>")[0].removesuffix("</think>")
    whole = rest[: matches[0].start()] if matches else cut_short
    leading = len(whole) - len(whole.lstrip())
    return len(text) - len(rest) + leading, whole.strip()


def _sections(thought: str, category: str, candidates: int) -> list[Section]:
    made: list[Section] = []
    title, lines, begun, place = None, list[str](), 0, 0
    for line in [*thought.splitlines(keepends=True), None]:
        heading = _HEADING.match(_bare(line)) if line is not None else None
        if line is not None and heading is None:
            lines.append(line)
            place += len(line)
            continue
        if title is not None:
            made.append(_section(title, lines, category, candidates, begun, place))
        title, lines, begun = heading.group(1) if heading else None, [], place
        place += len(line or "")
    return made


def _bare(line: str) -> str:
    """A line without what ends it."""
    return "".join(line.splitlines())


def _section(
    title: str, lines: list[str], category: str, candidates: int, start: int, end: int
) -> Section:  # fmt: skip
    checks: dict[int, Check] = {}
    current, place = -1, end - sum(map(len, lines))  # lines before the first candidate's
    for line in lines:
        named = _named(line, category)
        current = current if named is None else named
        if current in range(candidates):
            marks = list(_MARK.finditer(line))
            check = checks.setdefault(current, Check(current, Verdict.UNKNOWN, place))
            if marks:
                verdict, at = _VERDICTS[marks[-1].group()], place + marks[-1].start()
                checks[current] = Check(current, verdict, check.start, at)
        place += len(line)
    text = "\n".join(_bare(line) for line in lines).strip()
    mentioned = tuple(checks) or _mentioned(text, category, candidates)
    return Section(title, text, tuple(checks.values()), mentioned, start, end)


def _named(line: str, category: str) -> int | None:
    """The candidate a line is about, which may not exist; None for a line that begins no candidate."""
    name = _line_name(line, category)
    return None if name is None else name[2]


def _line_name(line: str, category: str) -> tuple[int, int, int] | None:
    """Where a candidate line says its candidate's name, and which candidate that is."""
    match = _LINE.match(line)
    if match is None:
        return None
    bullet, name, number = match.groups()
    is_category = name.casefold() == category.casefold()
    if not is_category and (bullet is None or name.casefold() == "step" or len(name.split()) > 3):
        return None
    return match.start(2), match.end(3), int(number) - 1


def _named_elsewhere(category: str) -> str:
    return rf"\b{re.escape(category)}\s+(\d{{1,4}})\b"


def _mentioned(text: str, category: str, candidates: int) -> tuple[int, ...]:
    numbers = re.findall(_named_elsewhere(category), text, re.IGNORECASE)
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
