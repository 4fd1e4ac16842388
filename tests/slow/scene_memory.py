"""Ten thousand expressions in one process: how much memory grows.

Run       python tests/slow/scene_memory.py [--bundle DIR] [--count 10000] [--budget BYTES]
Layout    Pictures, categories and expressions in random order, within a budget that keeps a few of them; each
          tenth call asks four expressions together, each fiftieth saves and restores a scene. Answers are cut
          after three tokens: what could leak is made per question, not per token.
Contract  Resident memory after the whole may be 1 % more than after the first tenth, when the budget is full
          and every buffer has been made once. Told beside it: the most it ever was from then on, and the
          part that no file backs, which the system cannot take away to flatter the figure.
Elsewhere the last result: docs/scenes.md.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import rexthinker_edge as rex

CATEGORIES = ("ball", "mug", "box")
BUDGET_BYTES = 24 << 20


def resident_bytes() -> tuple[int, int]:
    """What the process holds in memory now, and how much of it no file backs."""
    _, resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[:3]
    page = resource.getpagesize()
    return int(resident) * page, (int(resident) - int(shared)) * page


def main() -> int:
    """Ask, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="the small bundled model when left out")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--budget", type=int, default=BUDGET_BYTES, help="of what is kept, in bytes")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (224, 224 + 28 * i, 3), np.uint8) for i in range(6)]
    boxes = [[10 + 30 * i, 20, 35 + 30 * i, 90] for i in range(6)]
    thinker = rex.load(arguments.bundle, threads=1, memory_bytes=arguments.budget)
    seen, begun, asked = [], time.process_time(), 0
    with tempfile.TemporaryDirectory() as directory:
        while asked < arguments.count:
            picture, category = pictures[rng.integers(len(pictures))], CATEGORIES[rng.integers(3)]
            scene = thinker.look(picture, category, boxes=boxes[: 1 + int(rng.integers(6))])
            if asked % 50 == 0:
                scene.save(Path(directory) / "scene")
                scene = thinker.restore(Path(directory) / "scene")
            for _ in range(5):
                word = f"the {category} number {int(rng.integers(10_000))}"
                many = asked % 10 == 0
                results = scene.refer_many([f"{word} {k}" for k in range(4)] if many else [word], 3)
                asked += len(results)
            seen.append((asked, *resident_bytes()))
    steady = [held for held in seen if held[0] >= arguments.count / 10]
    (_, early, early_private), (_, late, late_private) = steady[0], steady[-1]
    growth = late / early - 1
    print(
        json.dumps(
            {
                "expressions": asked,
                "resident_bytes_after_a_tenth": early,
                "resident_bytes_at_the_end": late,
                "resident_bytes_at_most": max(held for _, held, _ in steady),
                "growth": round(growth, 5),
                "growth_without_files": round(late_private / early_private - 1, 5),
                "growth_at_most": round(max(held for _, held, _ in steady) / early - 1, 5),
                "cpu_seconds": round(time.process_time() - begun, 1),
                "bundle": thinker.describe()["bundle"]["name"],
            }
        )
    )
    return 0 if growth <= 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
