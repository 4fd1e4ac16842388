"""Where the time of an expression goes, and what the kept prefix saves.

Layout    `measure` asks workbench pictures two expressions each: the first pays for the picture, the second
          for itself. Stages are medians over pictures; a token is a pass of an answer without drafts.
Contract  Times are wall clock around the public calls; nothing is left out: `total` is what a caller waits.
          The report is schema `rexthinker-edge/bench/1`; its cold load is the process's first, with the page
          cache left as it is.
Elsewhere accuracy: accuracy.py; the command: package/commands/bench.py.
"""

import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.items import make_items_for_scene
from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.runtime.generate import now_ms
from rexthinker_edge.runtime.result import ResultEvent, TextEvent
from rexthinker_edge.runtime.scene import Scene
from rexthinker_edge.runtime.thinker import Thinker, load

SCHEMA = "rexthinker-edge/bench/1"
SEED = 2_000_000


@dataclass(frozen=True)
class Question:
    """One picture and two expressions about one category."""

    pixels_HWC: NDArray[np.uint8]
    category: str
    first: str
    second: str


def questions(count: int, level: Level = Level.EASY) -> list[Question]:
    """The first `count` pictures of the benchmark's seed that carry two expressions."""
    found: list[Question] = []
    index = 0
    while len(found) < count:
        scene = make_scene(level, SEED, index)
        items = make_items_for_scene(scene, np.random.default_rng([SEED, index]), 2)
        if len(items) == 2:
            spoken = [item.question.expression for item in items]
            found.append(Question(render(scene), items[0].category, *spoken))
        index += 1
    return found


@dataclass(frozen=True)
class Asked:
    """One expression as the caller saw it, in milliseconds from the call."""

    ttft_ms: float
    total_ms: float
    pass_ms: float
    reused: int
    prompt: int
    generated: int
    passes: int
    token_ids: tuple[int, ...]
    stages: dict[str, float]


def _ask(scene: Scene, expression: str, began: float, drafting: bool | None = None) -> Asked | None:
    """Answer one expression; None when there was nothing to generate from."""
    first = None
    for event in scene.stream(expression, drafting=drafting):
        if isinstance(event, TextEvent) and first is None:
            first = now_ms() - began
        if isinstance(event, ResultEvent):
            result = event.result
    if first is None or not result.tokens.passes:
        return None
    return Asked(
        ttft_ms=first,
        total_ms=now_ms() - began,
        pass_ms=result.ms.generate / result.tokens.passes,
        reused=result.tokens.reused,
        prompt=result.tokens.prompt,
        generated=result.tokens.generated,
        passes=result.tokens.passes,
        token_ids=tuple(result.token_ids),
        stages={name: getattr(result.ms, name) for name in ("image", "detect", "vision", "prefill")},
    )


def measure(thinker: Thinker, asked: Sequence[Question], told: Callable[[int], None]) -> dict[str, Any]:
    """Stages, first and second expression over all questions; the first picture only warms up.

    The second expression is asked once more without drafting, which must give the same tokens.
    """
    firsts, seconds, plains = list[Asked](), list[Asked](), list[Asked]()
    for number, question in enumerate(asked):
        began = now_ms()
        scene = thinker.look(question.pixels_HWC, question.category)
        first = _ask(scene, question.first, began)
        second = _ask(scene, question.second, now_ms())
        plain = _ask(scene, question.second, now_ms(), drafting=False)
        if first and second and plain and number:
            firsts.append(first)
            seconds.append(second)
            plains.append(plain)
        told(number + 1)
    assert firsts, "no picture of the benchmark had candidates"
    stages = {name: _spread([a.stages[name] for a in firsts]) for name in firsts[0].stages}
    stages["token"] = _spread([a.pass_ms for a in plains])
    return {
        "pictures": len(firsts),
        "stages": stages,
        "tokens_per_second": 1000 / stages["token"]["p50_ms"],
        "drafting": {
            "off_ms": _medians(plains)["total_ms"],
            "on_ms": _medians(seconds)["total_ms"],
            "tokens_per_pass": sum(a.generated for a in seconds) / sum(a.passes for a in seconds),
            "identical": all(a.token_ids == b.token_ids for a, b in zip(seconds, plains, strict=True)),
        },
        "first": _medians(firsts),
        "second": _medians(seconds)
        | {
            "reused": int(np.median([a.reused for a in seconds])),
            "prompt": int(np.median([a.prompt for a in seconds])),
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": float(np.percentile(values, 50)), "p95_ms": float(np.percentile(values, 95))}


def _medians(asked: Sequence[Asked]) -> dict[str, float]:
    return {name: float(np.median([getattr(a, name) for a in asked])) for name in ("ttft_ms", "total_ms")}


def bench(path: Path | None, threads: int | None, count: int, told: Callable[[int], None]) -> dict[str, Any]:
    """Load a bundle twice, ask it `count` pictures (one more to warm up), and report."""
    loads = []
    for _ in range(2):
        began = now_ms()
        thinker = load(path, threads=threads)
        loads.append(now_ms() - began)
    described = thinker.describe()
    report = measure(thinker, questions(count + 1), told)
    return {
        "schema": SCHEMA,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": described["threads"],
            "python": platform.python_version(),
            "onnxruntime": described["onnxruntime"],
            "rexthinker_edge": metadata.version("rexthinker-edge"),
        },
        "bundle": {name: described["bundle"][name] for name in ("name", "digest")},
        **report,
        "load": {"cold_ms": loads[0], "warm_ms": loads[1]},
        "peak_bytes": _peak_bytes(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _peak_bytes() -> int:
    """Most memory this process ever held resident; Linux counts kibibytes, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
