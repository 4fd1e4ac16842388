"""A deadline that holds everywhere, also inside a long run of ONNX Runtime.

Contract  Work under a deadline ends with `DeadlinePassed` soon after the instant: between two operators of a
          graph, not only between two graphs. No deadline costs nothing.
Elsewhere what becomes of it: answering.py turns it into status TIMEOUT; between tokens: generate.py.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail


class DeadlinePassed(Exception):  # noqa: N818 -- an event, never shown to a caller
    """The deadline came before the work was done."""


def monotonic_ms() -> float:
    """Milliseconds of the clock that deadlines are measured on."""
    return time.monotonic() * 1000.0


class Deadline:
    """An instant after which work is given up, or none."""

    def __init__(self, until_ms: float | None = None) -> None:
        """`until_ms` is an instant of `monotonic_ms`; None never comes."""
        self.until_ms = until_ms

    @classmethod
    def after(cls, duration_ms: float | None) -> "Deadline":
        """So many milliseconds from now; None never comes."""
        return cls(None if duration_ms is None else monotonic_ms() + duration_ms)

    def check(self) -> None:
        """Raise DeadlinePassed when it has come."""
        if self.until_ms is not None and monotonic_ms() >= self.until_ms:
            raise DeadlinePassed

    @contextmanager
    def running(self) -> Iterator[ort.RunOptions | None]:
        """Options for one run of a session, which is stopped when the deadline comes.

        Raises:
            DeadlinePassed: it came before or during the run; what the run should have written is undefined.
        """
        if self.until_ms is None:
            yield None
            return
        self.check()
        options = ort.RunOptions()
        left_s = min((self.until_ms - monotonic_ms()) / 1000.0, threading.TIMEOUT_MAX)
        timer = threading.Timer(left_s, _terminate, [options])
        timer.daemon = True
        timer.start()
        try:
            yield options
        except (Fail, RuntimeError) as error:
            if options.terminate:
                raise DeadlinePassed from error
            raise
        finally:
            timer.cancel()


NEVER = Deadline()


def _terminate(options: ort.RunOptions) -> None:
    options.terminate = True
