"""One peer in a process of its own: opens an adapter file and times the steps asked for, line by line.

Layout    `PYTHON worker.py ADAPTER.py`; requests on standard input and answers on standard output are JSON,
          one a line: {"do": "open", "settings": {...}}, {"do": "time", "step": "...", "way": "..."}, {"do":
          "close"}. An answer has "ok"; a refusal has "error", the exception's type and words.
Contract  Stands alone: any interpreter with the peer's own packages runs it, this package is not imported.
          Wall clock and the processor time of all threads, of `run` only; `prepare` is not timed.
          What libraries print goes to standard error.
Elsewhere an adapter has `open_peer(settings)` that returns an object with `ways` {step: [way, …]},
          `versions()`, `prepare(step, way)` and `run(step, way)` -> units done. Who asks: host.py.
"""

import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def load_adapter(path: Path) -> Any:
    """The module in a file, by its place."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(peer: Any, step: str, way: str) -> dict[str, Any]:
    """Seconds of one step, and its units."""
    peer.prepare(step, way)
    wall, cpu = time.perf_counter(), time.process_time()
    units = peer.run(step, way)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_s": wall, "cpu_s": cpu, "units": units, "detail": getattr(peer, "detail", {})}


def peak_bytes() -> int:
    """The most memory this process had, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(adapter: Any, requests: TextIO, answers: TextIO) -> None:
    """Answer until there are no more requests."""
    peer: Any = None
    for line in requests:
        asked = json.loads(line)
        try:
            if asked["do"] == "close":
                return
            if asked["do"] == "open":
                began = time.perf_counter()
                peer = adapter.open_peer(asked["settings"])
                found = {
                    "open_s": time.perf_counter() - began,
                    "ways": peer.ways,
                    "versions": peer.versions(),
                }
            else:
                found = timed(peer, asked["step"], asked["way"])
            found |= {"ok": True, "peak_bytes": peak_bytes()}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
            words = " ".join(str(error).split())
            found = {"ok": False, "error": f"{type(error).__name__}: {words[:500]}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def main() -> None:
    """Serve on the real standard output; file descriptor 1 then is standard error."""
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(load_adapter(Path(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
