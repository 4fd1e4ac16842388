"""What drafting wins, and that it changes nothing.

Layout    Each held-out workbench item is answered with and without drafts, alternately first, on one scene;
          the two must agree token for token. A row per bundle: tokens per pass, ratio of times.
Contract  Times are of the calling thread, from question to answer; with `--wall` the clock's, for an idle
          machine. The first item only warms up, and measures what passes cost. Any difference makes the
          exit code 1.
Elsewhere speed as a whole: speed.py; how drafting works: docs/drafting.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.calibration.workbench.items import make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime.result import Result
from rexthinker_edge.runtime.thinker import Thinker, load


@dataclass(frozen=True)
class Pair:
    """One item answered without and with drafts."""

    plain: Result
    drafted: Result
    plain_ms: float
    drafted_ms: float

    @property
    def identical(self) -> bool:
        """Token for token."""
        return self.plain.token_ids == self.drafted.token_ids


def ask_pair(thinker: Thinker, index: int, clock: Callable[[], float], temperature: float = 0.0) -> Pair:
    """Answer item `index` both ways; even items plain first. With a temperature both draw by one seed."""
    item = make_item("easy" if index % 2 else "full", EVALUATION_SEED, index)
    boxes = np.array([item.scene.things[k].box for k in item.candidates])
    scene = thinker.look(render(item.scene), item.category, boxes=boxes)
    seed = index if temperature else None
    answers: dict[bool, tuple[Result, float]] = {}
    for drafting in (False, True) if index % 2 == 0 else (True, False):
        began = clock()
        result = scene.refer(item.question.expression, drafting=drafting, temperature=temperature, seed=seed)
        answers[drafting] = result, (clock() - began) * 1000
    return Pair(answers[False][0], answers[True][0], answers[False][1], answers[True][1])


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """The figures over all pairs; the expression's own prefill is inside both times."""
    plain, drafted = ([getattr(p, name) for p in pairs] for name in ("plain_ms", "drafted_ms"))
    generated = sum(p.drafted.tokens.generated for p in pairs)
    return {
        "items": len(pairs),
        "identical": sum(p.identical for p in pairs),
        "generated": generated,
        "tokens_per_pass": round(generated / sum(p.drafted.tokens.passes for p in pairs), 2),
        "off_ms": round(statistics.median(plain), 2),
        "on_ms": round(statistics.median(drafted), 2),
        "faster": round(statistics.median(a / b for a, b in zip(plain, drafted, strict=True)), 2),
    }


def main() -> int:
    """`python -m rexthinker_edge.benchmarks.drafting`: one JSON object; exit code 1 when a token differs."""
    parser = argparse.ArgumentParser(description="Drafted against plain decoding, token for token.")
    parser.add_argument("--bundle", type=Path, help="its directory; the small bundled model when left out")
    parser.add_argument("--first", type=int, default=0, help="index of the first item")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no item after these")
    parser.add_argument("--wall", action="store_true", help="time by the clock, not by the thread")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.wall else time.thread_time
    thinker, began = load(arguments.bundle, threads=arguments.threads), time.monotonic()
    ask_pair(thinker, arguments.first + arguments.count, clock, arguments.temperature)
    pairs = []
    for index in range(arguments.first, arguments.first + arguments.count):
        if time.monotonic() - began > arguments.seconds:
            break
        pairs.append(ask_pair(thinker, index, clock, arguments.temperature))
        if not pairs[-1].identical:
            print(
                json.dumps(
                    {"differs": index, "plain": pairs[-1].plain.text, "drafted": pairs[-1].drafted.text}
                )
            )
    described = thinker.describe()
    head = {"bundle": described["bundle"]["name"], "digest": described["bundle"]["digest"][:12]}
    head |= {"threads": arguments.threads, "temperature": arguments.temperature}
    print(json.dumps(head | summary(pairs) | {"drafting": described["drafting"]}))
    return 0 if all(pair.identical for pair in pairs) else 1


if __name__ == "__main__":
    raise SystemExit(main())
