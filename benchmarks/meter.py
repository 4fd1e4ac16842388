"""How far a long run is and how long it will take, on standard error.

Contract  A moving line on a terminal; elsewhere one line every `EVERY_SECONDS`, so a log stays short.
          The rate counts what this process did, not what it found done.
Elsewhere short waits: package/progress.py.
"""

import sys
import time
from types import TracebackType
from typing import Any

EVERY_SECONDS = 30.0


class Meter:
    """Call with (done, total); a context manager."""

    def __init__(self, text: str, total: int) -> None:
        self.text, self.total = text, total
        self.begun = self.said = time.monotonic()
        self.first: int | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Meter":
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

            columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.text, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` items are on disk."""
        if self.first is None:
            self.first, self.begun = done, time.monotonic()
            if done:
                print(f"{self.text}: {done} of {total} were done before", file=sys.stderr)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self.said >= EVERY_SECONDS and done > self.first:
            self.said = now
            pace = (now - self.begun) / (done - self.first)
            left = pace * (total - done)
            print(f"{self.text}: {done} of {total}, {_span(left)} left", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
