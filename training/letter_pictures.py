"""Pictures crowded with lettered things: they teach the vision tower to read, at a few milliseconds a letter.

Layout    A jittered grid of things, all lettered, painted by the world's own painter.
Contract  The level `full` shows one or two letters a picture: too few to learn twenty shapes from. These
          pictures are seen by the vision tower and its probe alone, never asked about.
Elsewhere painting: calibration/workbench/render.py; the probe: trainee.py.
"""

import numpy as np

from rexthinker_edge.calibration.workbench.layout import LETTER_SIDE_PX
from rexthinker_edge.calibration.workbench.shapes import aspect
from rexthinker_edge.calibration.workbench.world import COLORS, LETTERS, Level, Scene, Thing

CARRIERS = ("ball", "box", "cone", "star", "mug")


def letter_scene(seed: int, index: int) -> Scene:
    """A picture of 160-300 px a side, with as many lettered things as fit in rows."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, 23]))
    width, height = (int(v) for v in rng.integers(160, 281, 2))
    cell = float(np.exp(rng.uniform(np.log(LETTER_SIDE_PX * 1.15), np.log(110))))
    columns, rows = max(1, int(width / cell)), max(1, int(height / cell))
    things = []
    for place in range(columns * rows):
        kind = str(rng.choice(CARRIERS))
        ratio = float(np.sqrt(aspect(kind)))
        most = cell * 0.97 / max(ratio, 1 / ratio)
        side = rng.uniform(min(LETTER_SIDE_PX * 1.02 * max(ratio, 1 / ratio), most * 0.99), most)
        w, h = round(side * ratio), round(side / ratio)
        x = (place % columns) * width / columns + rng.uniform(0, width / columns - w)
        y = (place // columns) * height / rows + rng.uniform(0, height / rows - h)
        x, y = float(int(max(x, 0))), float(int(max(y, 0)))
        pattern = str(rng.choice(("plain", "striped", "dotted"), p=(0.6, 0.2, 0.2)))
        things.append(
            Thing(kind, str(rng.choice(COLORS)), pattern, "large", str(rng.choice(list(LETTERS))),
                  (x, y, min(x + w, width), min(y + h, height)))
        )  # fmt: skip
    return Scene(Level.FULL, seed, index, width, height, tuple(things), ())
