"""Kills `evaluate --workers 2` at random moments until it is done: nothing may be lost, or asked twice.

Run       python tests/slow/kill_evaluate.py DIR [ITEMS [SEED]]
What      A run that nobody disturbs is the reference. Then the same run is begun again and again, each time
          killed with SIGKILL after a random time, in turn the process that writes, one of its workers, or
          after a torn line was left, until one gets to the end. After every kill: all its workers have ended;
          the file begins with the same whole lines as before; no item stands there twice; it may be gone on
          with at once. In the end it holds every item once, with the reference's answers.
Last      docs/evidence.md
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 300.0
COMMAND = "import sys; from rexthinker_edge.cli import main; sys.exit(main())"


def begin(spec: str, out: Path, workers: int = 2) -> "subprocess.Popen[bytes]":
    """An `evaluate` in a process of its own."""
    arguments = ["evaluate", "--dataset", spec, "--workers", str(workers), "--out", str(out), "--json"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(place.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not fetched yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def whole_lines(out: Path) -> list[bytes]:
    """The lines of a run that were written to their end."""
    if not out.exists():
        return []
    return [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def numbers(lines: list[bytes]) -> list[int]:
    """The items of a run's lines, in the order they were written."""
    return [json.loads(line)["number"] for line in lines[1:]]


def wait_until(true: Any, what: str) -> None:
    """Wait for a condition; AssertionError when it never comes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def kill_all(child: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the process that writes; its workers must end by themselves."""
    workers = children(child.pid)
    child.kill()
    child.communicate()
    wait_until(lambda: not any(map(alive, workers)), f"workers {workers} outlive the process that made them")


def answers(out: Path) -> dict[int, tuple[Any, ...]]:
    """What was answered, without how long it took."""
    items = (json.loads(line) for line in whole_lines(out)[1:])
    return {i["number"]: (i["status"], i["indices"], i["token_ids"], i["text"]) for i in items}


@dataclass
class Tally:
    """What happened."""

    kills: dict[str, int] = field(default_factory=lambda: {"writer": 0, "worker": 0, "torn line": 0})
    told: list[str] = field(default_factory=list)


def disturbed(spec: str, out: Path, count: int, rng: random.Random, tally: Tally, span: float) -> bool:
    """One start of the run; True when it got to its end."""
    before = whole_lines(out)
    child, kind = begin(spec, out), rng.choice(list(tally.kills))
    # Most of a start is opening: count the time to the kill from the first answer, now and then from before.
    if rng.random() < 0.8:
        wait_until(
            lambda: len(whole_lines(out)) > max(len(before), 1) or child.poll() is not None, "no answer comes"
        )
    time.sleep(rng.random() * span)
    if child.poll() is not None or len(whole_lines(out)) > count:
        told = child.communicate()[1].decode()
        assert child.returncode == 0, told
        done = True
    else:
        tally.kills[kind] += 1
        done = False
        workers = [pid for pid in children(child.pid) if is_worker(pid)]
        if kind == "worker" and workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            error = child.communicate()[1].decode()
            tally.told.append(error.strip().splitlines()[-1] if error.strip() else "")
            assert child.returncode == 1, (child.returncode, error)
            assert "Traceback" not in error, error
        else:
            kill_all(child)
        if kind == "torn line" and out.exists():
            with out.open("ab") as stream:
                stream.write(b'{"number": 3, "id"')
    after = whole_lines(out)
    assert after[: len(before)] == before, "lines that stood there have changed"
    found = numbers(after)
    assert len(set(found)) == len(found), f"asked twice: {found}"
    return done


def is_worker(pid: int) -> bool:
    """Whether a process is a worker, not the tracker of shared resources."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def main() -> int:
    """Run, and print one JSON object."""
    place = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    rng, tally = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0), Tally()
    spec = f"workbench:easy:{1_000_000 + count}:{count}"
    place.mkdir(parents=True, exist_ok=True)
    reference, out = place / "reference.jsonl", place / "killed.jsonl"
    for path in (reference, out):
        path.unlink(missing_ok=True)
    begun = time.monotonic()
    child = begin(spec, reference)
    told = child.communicate()[1].decode()
    assert child.returncode == 0, told
    span = (time.monotonic() - begun) / 10
    starts = 1
    while not disturbed(spec, out, count, rng, tally, span):
        starts += 1
    assert sorted(numbers(whole_lines(out))) == list(range(count))
    assert answers(out) == answers(reference)
    print(
        json.dumps({"items": count, "starts": starts, "kills": tally.kills, "told": sorted(set(tally.told))})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
