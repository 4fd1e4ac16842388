"""How often a bundle is right on unseen workbench items.

Layout    One `Outcome` per item; `report` turns them into figures per domain, status and metric.
Contract  An exact answer names the true things and no other (none, for a rejection, by status `absent`
          alone: a failure to answer is never a correct rejection). With `boxes="true"` the candidates are
          the truth; with `boxes="detector"` answers are judged by HumanRef's metric against true boxes.
Elsewhere the metric: humanref_metric.py; the detector alone: detection.py; items: calibration/workbench.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.humanref_metric import score, summarise
from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.calibration.workbench.items import Item, make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.result import Result
from rexthinker_edge.runtime.thinker import Thinker, load

FAILURES = (Status.MALFORMED, Status.TRUNCATED, Status.UNGROUNDED)


@dataclass(frozen=True)
class Outcome:
    """What came of one item."""

    name: str
    domain: str
    status: Status
    exact: bool
    truth: NDArray[np.float64]
    boxes: NDArray[np.float64]
    generated: int


def run(
    thinker: Thinker, level: str, count: int, boxes: str = "true", seed: int = EVALUATION_SEED
) -> Iterator[Outcome]:
    """Ask a bundle items 0 … count - 1 of an evaluation seed, one after another."""
    assert boxes in {"true", "detector"}, boxes
    for index in range(count):
        item = make_item(level, seed, index)
        things = np.array([item.scene.things[k].box for k in item.candidates]) if boxes == "true" else None
        scene = thinker.look(render(item.scene), item.category, boxes=things)
        yield judge(item, scene.refer(item.question.expression), exact_boxes=boxes == "true")


def judge(item: Item, result: Result, *, exact_boxes: bool) -> Outcome:
    """Compare a result with an item's truth."""
    answers = item.question.answers
    wanted = {position for position, thing in enumerate(item.candidates) if thing in answers}
    said = result.status is Status.ABSENT if not wanted else result.status is Status.FOUND
    return Outcome(
        name=item.name,
        domain=item.question.domain,
        status=result.status,
        exact=exact_boxes and said and set(result.indices) == wanted,
        truth=np.array([item.scene.things[k].box for k in sorted(answers)], np.float64).reshape(-1, 4),
        boxes=np.array(result.boxes, np.float64).reshape(-1, 4),
        generated=result.tokens.generated,
    )


def report(outcomes: list[Outcome], boxes: str) -> dict[str, Any]:
    """Figures in percent, by domain and over all."""
    answerable = [o for o in outcomes if len(o.truth)]
    rejections = [o for o in outcomes if not len(o.truth)]
    failed = sum(o.status in FAILURES for o in outcomes)
    figures: dict[str, Any] = {
        "items": len(outcomes),
        "statuses": dict(sorted(Counter(o.status.value for o in outcomes).items())),
        "failed_percent": 100 * failed / len(outcomes),
        "mean_generated_tokens": float(np.mean([o.generated for o in outcomes])),
        "humanref": summarise([score(o.truth, o.boxes) for o in answerable]),
    }
    if rejections:
        absent = sum(o.status is Status.ABSENT for o in rejections)
        figures["rejection_percent"] = 100 * absent / len(rejections)
    if boxes == "true":
        domains = sorted({o.domain for o in outcomes})
        exact = {d: [o.exact for o in outcomes if o.domain == d] for d in domains}
        figures["exact_percent"] = {d: 100 * float(np.mean(values)) for d, values in exact.items()}
        figures["exact_percent"]["all"] = 100 * float(np.mean([o.exact for o in outcomes]))
    return figures


def main() -> None:
    """`python -m rexthinker_edge.benchmarks.accuracy`: one JSON object per level and kind of boxes."""
    parser = argparse.ArgumentParser(description="Accuracy of a bundle on unseen workbench items.")
    parser.add_argument("--bundle", type=Path, help="its directory; the small bundled model when left out")
    parser.add_argument("--level", choices=("easy", "full"), action="append", required=True)
    parser.add_argument("--boxes", choices=("true", "detector"), action="append", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    thinker = load(arguments.bundle, threads=arguments.threads)
    for level in arguments.level:
        for boxes in arguments.boxes:
            outcomes = list(run(thinker, level, arguments.count, boxes))
            bundle = thinker.describe()["bundle"]
            head = {
                "level": level,
                "boxes": boxes,
                "bundle": {"name": bundle["name"], "digest": bundle["digest"]},
            }
            print(json.dumps(head | report(outcomes, boxes)), flush=True)


if __name__ == "__main__":
    main()
