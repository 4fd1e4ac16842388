"""How sure the model was: of each verdict, and of the answer, from the probabilities of what it wrote.

Layout    `Likelihood` notes the log-probability of every token as it is chosen; `sureness` reads it against
          the thought.
Contract  The numbers come from the pass that chose or verified each token: no other pass is made. Drafting
          changes none of them, to the last bit, for it changes no row of logits; no token is ever put into an
          answer unseen by the model, so every one has a probability. They are of the model's own
          distribution over its whole vocabulary, at temperature 1, whatever was drawn at.
          A verdict's is the product over the candidate's lines in the thought's steps, from the name to the
          mark, and over its mark in the summary: the words of a line decide what its mark then says, the
          mark alone is all but certain. An answer's is the product over all tokens of the steps and over the
          summary's marks; without sections, over all tokens. What has no answer has none.
          docs/risk.md tells what else was tried, with figures.
Elsewhere choosing tokens: generate.py; where lines and marks stand: trace.py; what to do with it: risk.py.
Source    docs/risk.md
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.trace import Check, Trace, read_trace


@dataclass
class Likelihood:
    """Natural logarithms of the probabilities of an answer's tokens, in order, and the passes that gave them.

    Attributes:
        logs: one for each token.
        passes: how many tokens each decoder pass gave; their sum is the number of tokens.
    """

    logs: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    _scratch: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32), repr=False)

    def note(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> None:
        """These tokens were chosen from the first rows of (R, vocab) logits, one a row."""
        rows = logits[: len(tokens)]
        if self._scratch.size < rows.size:
            self._scratch = np.empty(rows.size, np.float32)
        raised = self._scratch[: rows.size].reshape(rows.shape)
        tops = rows.max(axis=1)
        np.subtract(rows, tops[:, None], out=raised)
        np.exp(raised, out=raised)
        # In float32, for then a row's sum is the same however many rows came together: with another dtype
        # NumPy sums by way of a buffer that does not end where rows do. 1e-6 of a logarithm at 152,000 terms.
        sums = raised.sum(axis=1).tolist()
        chosen = (rows[np.arange(len(rows)), list(tokens)] - tops).tolist()
        self.logs += [min(log - math.log(sum_), 0.0) for log, sum_ in zip(chosen, sums, strict=True)]
        self.passes.append(len(tokens))

    def replace(self, start: int, other: "Likelihood") -> None:
        """Forget what is from `start` on, and go on with another's tokens."""
        self.logs[start:] = other.logs
        while (beyond := sum(self.passes) - start) > 0:
            last = self.passes.pop()
            if last > beyond:
                self.passes.append(last - beyond)
        self.passes += other.passes


@dataclass(frozen=True)
class Sureness:
    """Probabilities from 0 to 1; None where there is nothing to be sure of.

    Attributes:
        answer: of the answer as a whole.
        verdicts: per candidate, of the verdict the thought ends with.
        checks: per section and check of the trace, of that one line; in the summary, of its mark alone.
        trace: what was read.
    """

    answer: float | None
    verdicts: tuple[float | None, ...]
    checks: tuple[tuple[float | None, ...], ...]
    trace: Trace


def sureness(
    likelihood: Likelihood, tokenizer: TextTokenizer, token_ids: Sequence[int],
    category: str, candidates: int, status: Status,
) -> Sureness:  # fmt: skip
    """How sure the model was of an answer.

    Args:
        token_ids: as generated, without the end token.
        candidates: how many there are.
        status: of the answer; only FOUND and ABSENT have one to be sure of.
    """
    ends, text = _ends(tokenizer, token_ids)
    trace = read_trace(text, category, candidates)
    read = _Read(tuple(likelihood.logs[: len(ends)]), ends, trace)
    answer = math.exp(read.answer()) if status in (Status.FOUND, Status.ABSENT) else None
    checks = tuple(tuple(_probability(read.check(c)) for c in s.checks) for s in trace.sections)
    verdicts = tuple(_probability(read.verdict(index)) for index in range(candidates))
    return Sureness(answer, verdicts, checks, trace)


def _ends(tokenizer: TextTokenizer, token_ids: Sequence[int]) -> tuple[list[int], str]:
    """After each token, how many characters are whole; and the text."""
    stream, ends, pieces, length = tokenizer.stream(), list[int](), list[str](), 0
    for token in token_ids:
        pieces.append(stream.push(token))
        length += len(pieces[-1])
        ends.append(length)
    return ends, "".join(pieces) + stream.finish()


def _probability(log: float | None) -> float | None:
    return None if log is None else math.exp(log)


@dataclass(frozen=True)
class _Read:
    """A trace with the log-probabilities of its tokens, and where each token ends."""

    logs: Sequence[float]
    ends: Sequence[int]
    trace: Trace

    def answer(self) -> float:
        """Log of the answer's probability."""
        if not self.trace.sections:
            return math.fsum(self.logs)
        steps, summary = _steps_and_summary(self.trace)
        told = [self.mark(check) for check in summary]
        return math.fsum([self.between(*steps), *(log for log in told if log is not None)])

    def verdict(self, index: int) -> float | None:
        """Log of the probability of a candidate's verdict; None where it was given no mark."""
        checks = [c for section in self.trace.sections for c in section.checks if c.index == index]
        marked = [check for check in checks if check.at is not None]
        told = [self.check(check) if len(marked) > 1 else self.line(check) for check in marked]
        return math.fsum(log for log in told if log is not None) if told else None

    def check(self, check: Check) -> float | None:
        """Log-probability of what a section said of a candidate: a summary's words only repeat."""
        _, summary = _steps_and_summary(self.trace)
        is_repeated = any(check is one for one in summary)
        return self.mark(check) if is_repeated else self.line(check)

    def line(self, check: Check) -> float | None:
        """Log-probability of what was said of a candidate, from the beginning of its line to the mark."""
        return None if check.at is None else self.between(check.start, check.at + 1)

    def mark(self, check: Check) -> float | None:
        """Log-probability of a mark, with the token before it, which may hold its first bytes."""
        if check.at is None:
            return None
        place = self.trace.start + check.at
        return math.fsum(self.logs[bisect_left(self.ends, place) : bisect_right(self.ends, place) + 1])

    def between(self, start: int, end: int) -> float:
        """Log-probability of the tokens that complete characters [start, end) of the thought."""
        first = bisect_right(self.ends, self.trace.start + start)
        last = bisect_right(self.ends, self.trace.start + end - 1)
        return math.fsum(self.logs[first : last + 1])


def _steps_and_summary(trace: Trace) -> tuple[tuple[int, int], tuple[Check, ...]]:
    """Characters of the thought that the steps take, and the checks of the last of several sections."""
    if len(trace.sections) < 2:
        return (trace.sections[0].start, trace.sections[0].end) if trace.sections else (0, 0), ()
    *steps, summary = trace.sections
    return (steps[0].start, steps[-1].end), summary.checks
