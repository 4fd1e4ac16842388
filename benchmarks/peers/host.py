"""A peer seen from here: a process that is asked, watched and, when it is too slow or gone, recorded as such.

Contract  Never raises for what a peer does: an answer is what worker.py wrote, or {"ok": False, "error": …}
          with the reason: the peer's own exception, the limit that passed, or how the process ended with the
          last line it said. A process that was stopped is started again for the next request.
Elsewhere the other side: worker.py; in which order: measure.py.
"""

import json
import os
import queue
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WORKER = Path(__file__).with_name("worker.py")
LAST_WORDS = 300
TOO_SLOW = "not done after"


@dataclass(frozen=True)
class Entry:
    """One peer: an adapter in an interpreter, with settings.

    `token_bytes` is what it must read for one token, weights and cache; None where that is not known.
    """

    name: str
    adapter: str
    python: str
    settings: dict[str, Any] = field(default_factory=dict)
    token_bytes: float | None = None


class Host:
    """One entry's process; a context manager."""

    def __init__(self, entry: Entry, open_limit_s: float, step_limit_s: float, threads: int) -> None:
        self.entry, self.open_limit_s, self.step_limit_s = entry, open_limit_s, step_limit_s
        self.opened: dict[str, Any] = {"ok": False, "error": "not opened"}
        self._environment = os.environ | {
            name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        }
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> dict[str, Any]:
        """Start the process and open the peer; its versions and ways, or why it could not."""
        self.close()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        adapter = Path(self.entry.adapter)
        if not adapter.is_absolute():
            adapter = WORKER.with_name(self.entry.adapter)
        try:
            self._process = subprocess.Popen(
                [self.entry.python, str(WORKER), str(adapter)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self._said, text=True, env=self._environment,
            )  # fmt: skip
        except OSError as error:
            self.opened = {"ok": False, "error": f"{self.entry.python}: {error.strerror}"}
            return self.opened
        self._lines = queue.Queue()
        threading.Thread(target=_listen, args=(self._process, self._lines), daemon=True).start()
        asked = {"do": "open", "settings": self.entry.settings}
        self.opened = self._ask(asked, self.open_limit_s)
        return self.opened

    def time(self, step: str, way: str) -> dict[str, Any]:
        """Time a step; see the module's contract."""
        if self._process is None and not self.open()["ok"]:
            return self.opened
        return self._ask({"do": "time", "step": step, "way": way}, self.step_limit_s)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _end_input(self._process)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._said is not None:
            self._said.close()
            self._said = None

    def _ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            process.kill()
            self._stop()
            return {"ok": False, "error": f"{TOO_SLOW} {limit_s:g} s"}
        except BrokenPipeError:
            line = None
        if line is None:
            return {"ok": False, "error": self._stop()}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self) -> str:
        """The process is over: how, and what it said last."""
        assert self._process is not None
        code = self._process.wait()
        _end_input(self._process)
        self._said.seek(0)
        words = " ".join(self._said.read().split())[-LAST_WORDS:]
        self._process = None
        how = f"ended by signal {-code}" if code < 0 else f"ended with {code}"
        return f"{how}: {words}" if words else how


def _end_input(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def _listen(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)
