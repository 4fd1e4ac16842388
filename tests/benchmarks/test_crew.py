"""Several workers under kill -9: what was told stays, nothing is asked twice, nobody is left behind."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.slow.kill_evaluate import begin, children, is_worker, kill_all, numbers, wait_until, whole_lines

COUNT = 8
SPEC = f"workbench:easy:77:{COUNT}"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_under_kill_9(tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    first = begin(SPEC, out)
    wait_until(lambda: len(whole_lines(out)) > 2 or first.poll() is not None, "no answer comes")
    kill_all(first)  # and its workers end by themselves
    told = whole_lines(out)
    assert 2 < len(told) <= COUNT
    with out.open("ab") as stream:
        stream.write(b'{"number": 5, "te')

    second = begin(SPEC, out)
    wait_until(lambda: any(map(is_worker, children(second.pid))) or second.poll() is not None, "no worker")
    os.kill(next(filter(is_worker, children(second.pid))), signal.SIGKILL)
    error = second.communicate()[1].decode()
    assert second.returncode == 1, error
    assert "error: a worker's process was killed" in error
    assert "Traceback" not in error
    assert whole_lines(out)[: len(told)] == told
    told = whole_lines(out)

    third = begin(SPEC, out, workers=1)  # how many ask does not bind a run
    printed, error_bytes = third.communicate()
    assert third.returncode == 0, error_bytes.decode()
    assert json.loads(printed)["items"] == COUNT
    lines = whole_lines(out)
    assert lines[: len(told)] == told
    assert sorted(numbers(lines)) == list(range(COUNT))
