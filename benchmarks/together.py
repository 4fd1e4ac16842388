"""Answers mixed in one cache against the same ones one after the other: the same tokens, and which is sooner.

Layout    Each held-out picture is looked at twice, and its expressions are answered one after the other on
          the one scene and mixed on the other, alternately first.
Contract  Times are of the calling thread, prefill and reading again included. The first picture
          only warms up. Any difference of tokens, status or boxes makes the exit code 1.
Elsewhere mixing: runtime/together.py; which way is taken: runtime/pace.py; figures: docs/scenes.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from rexthinker_edge.benchmarks.bench_questions import EXPRESSIONS, Question, questions
from rexthinker_edge.benchmarks.speed import same_answer
from rexthinker_edge.runtime.result import Result
from rexthinker_edge.runtime.thinker import Thinker, load

SIZE = (320, 240)


def answered(thinker: Thinker, question: Question, together: int) -> tuple[list[Result], float]:
    """Every expression of one picture, `together` of them in a cache; with the milliseconds it took."""
    scene = thinker.look(question.pixels_HWC, question.category, boxes=question.boxes)
    spoken, results, begun = question.expressions, list[Result](), time.thread_time()
    for start in range(0, len(spoken), together):
        group = spoken[start : start + together]
        results += [scene.refer(group[0])] if together == 1 else scene.refer_many(group)
    return results, (time.thread_time() - begun) * 1000


def main() -> int:
    """`python -m rexthinker_edge.benchmarks.together`: one JSON object; exit code 1 on any difference."""
    parser = argparse.ArgumentParser(description="Answers mixed in one cache against one after the other.")
    parser.add_argument("--bundle", type=Path, help="its directory; the small bundled model when left out")
    parser.add_argument("--count", type=int, default=20, help="pictures")
    parser.add_argument("--together", type=int, default=EXPRESSIONS, help="answers in a cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-draft", action="store_true")
    arguments = parser.parse_args()
    thinker = load(arguments.bundle, threads=arguments.threads, drafting=not arguments.no_draft)
    thinker._parts.language.pace.always = True
    same, times = 0, dict[int, list[float]]()
    for number, question in enumerate(questions(arguments.count + 1, SIZE)):
        ways = (1, arguments.together) if number % 2 else (arguments.together, 1)
        made = {way: answered(thinker, question, way) for way in ways}
        if number:
            pairs = zip(made[1][0], made[arguments.together][0], strict=True)
            same += sum(same_answer(*pair) for pair in pairs)
            for way, (_, ms) in made.items():
                times.setdefault(way, []).append(ms)
    bundle, answers = thinker.describe()["bundle"], arguments.count * EXPRESSIONS
    told = {"bundle": bundle["name"], "digest": bundle["digest"][:12], "threads": arguments.threads}
    told |= {"together": arguments.together, "drafting": not arguments.no_draft}
    single, mixed = times[1], times[arguments.together]
    told |= {"answers": answers, "identical": same}
    told |= {"one_by_one_ms": statistics.median(single), "mixed_ms": statistics.median(mixed)}
    ratio = statistics.median(a / b for a, b in zip(single, mixed, strict=True))
    print(json.dumps(told | {"one_by_one_over_mixed": round(ratio, 3)}))
    return 0 if same == answers else 1


if __name__ == "__main__":
    raise SystemExit(main())
