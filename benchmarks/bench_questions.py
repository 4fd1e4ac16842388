"""What `bench` asks: workbench pictures of one size, each with several expressions about one category.

Contract  The first so many scenes of the benchmark's seed that carry two expressions; the same on every
          machine. Every picture has the size asked for, whatever the scene's was: it is scaled to fit and
          stands on its own mean colour, so that a stage's times differ by the machine alone.
Elsewhere scenes: calibration/workbench/; who asks: speed.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration.workbench.items import make_items_for_scene
from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.runtime.boxes import Size

SEED = 2_000_000
EXPRESSIONS = 8  # together at most
CANDIDATES = 9  # of a bundle whose detector finds nothing by design, as `plan` assumes


@dataclass(frozen=True)
class Question:
    """One picture, one category, `EXPRESSIONS` expressions, and boxes to give where no detector helps."""

    pixels_HWC: NDArray[np.uint8]
    category: str
    expressions: tuple[str, ...]
    boxes: NDArray[np.float64]  # (N, 4), (x0, y0, x1, y1) in pixels of this picture


def questions(count: int, size: Size, level: Level = Level.EASY) -> list[Question]:
    """The first `count` questions, their pictures of `size` (width, height)."""
    found: list[Question] = []
    index = 0
    while len(found) < count:
        scene = make_scene(level, SEED, index)
        items = make_items_for_scene(scene, np.random.default_rng([SEED, index]), EXPRESSIONS)
        if len(items) >= 2:
            boxes = np.array([scene.things[k].box for k in items[0].candidates], np.float64)
            pixels, scale, shift = fitted(render(scene), size)
            spoken = filled([item.question.expression for item in items], items[0].category)
            found.append(Question(pixels, items[0].category, spoken, boxes * scale + np.tile(shift, 2)))
        index += 1
    return found


def filled(expressions: Sequence[str], category: str) -> tuple[str, ...]:
    """`EXPRESSIONS` of them; where a scene has fewer, plain ones follow."""
    plain = [f"the {word} {category}" for word in ("leftmost", "rightmost", "largest", "smallest", "topmost")]
    plain += [f"the bottommost {category}", f"the second {category} from the left", f"all {category}s"]
    more = [expression for expression in plain if expression not in expressions]
    return tuple([*expressions, *more][:EXPRESSIONS])


def fitted(pixels_HWC: NDArray[np.uint8], size: Size) -> tuple[NDArray[np.uint8], float, tuple[float, float]]:
    """A picture scaled into another of `size`, with the scale and where its corner (x, y) came to stand."""
    height, width = pixels_HWC.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    mean = pixels_HWC.reshape(-1, 3).mean(axis=0).round().astype(int)
    canvas = Image.new("RGB", size, (int(mean[0]), int(mean[1]), int(mean[2])))
    corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas.paste(Image.fromarray(pixels_HWC).resize(inner, Image.Resampling.BICUBIC), corner)
    return np.asarray(canvas), scale, (float(corner[0]), float(corner[1]))


def padded_boxes(boxes: NDArray[np.float64], size: Size, count: int = CANDIDATES) -> NDArray[np.float64]:
    """`count` boxes: the first of `boxes`, and more in a row where there are fewer."""
    side = min(size) / (count + 1)
    made = [[side * k, side * k, side * (k + 2), side * (k + 2)] for k in range(count)]
    return np.concatenate([boxes, np.array(made)])[:count]
