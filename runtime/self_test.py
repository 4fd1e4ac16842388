"""Replays a bundle's golden self-test: does this machine answer as the one that made the bundle?

Contract  Answers are compared token by token, the detector's boxes within `BOX_PX`: greedy decoding of the
          recorded questions is the same on every CPU unless a kernel computes something else; boxes differ
          in float32's last bits and no more.
Elsewhere recording: export/golden.py; kernels one by one: kernel_checks.py.
"""

from dataclasses import dataclass

import numpy as np

from rexthinker_edge.runtime.bundle import Bundle
from rexthinker_edge.runtime.manifest import Golden
from rexthinker_edge.runtime.thinker import Thinker

BOX_PX = 0.5


@dataclass(frozen=True)
class Replay:
    """One question: what differs, empty when nothing does."""

    picture: str
    differences: tuple[str, ...]


def replay(opened: Bundle, thinker: Thinker) -> list[Replay]:
    """Ask every recorded question of `opened`, which `thinker` runs."""
    return [
        Replay(golden.picture, tuple(_differences(opened, thinker, golden)))
        for golden in opened.manifest.golden
    ]


def _differences(opened: Bundle, thinker: Thinker, golden: Golden) -> list[str]:
    picture = opened.file(golden.picture)
    found = []
    seen = np.array([c.box for c in thinker.look(picture, golden.category).candidates]).reshape(-1, 4)
    wanted = np.array(golden.detected).reshape(-1, 4)
    if seen.shape != wanted.shape:
        found.append(f"the detector finds {len(seen)} boxes, {len(wanted)} were recorded")
    elif len(wanted) and (moved := float(np.abs(seen - wanted).max())) > BOX_PX:
        found.append(f"a box is off by {moved:.2f} px, {BOX_PX} are allowed")
    scene = thinker.look(picture, golden.category, golden.candidates)
    result = scene.refer(golden.expression, max_new_tokens=len(golden.token_ids))
    if result.token_ids != golden.token_ids:
        pairs = zip(result.token_ids, golden.token_ids, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), len(result.token_ids))
        found.append(f"token {place + 1} of {len(golden.token_ids)} is another one than recorded")
    elif result.status.value != golden.status:
        found.append(f"the status is {result.status.value}, {golden.status} was recorded")
    return found
