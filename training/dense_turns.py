"""Questions for training alone: answers in which nearly every token is a fact of the picture or of the hint.

Layout    `described`: a line per candidate, its looks and what it touches.
          `arranged`: orders from all sides, of all candidates or of those of some colors, then where
          everything else is.
Contract  The forms are those of traces, so that what is learnt here is used there. Orders follow the hint's
          boxes and stop where two neighbours are too close to tell.
Elsewhere traces: calibration/workbench/traces.py; what they won: docs/negative-results.md.
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench import items as workbench
from rexthinker_edge.calibration.workbench.predicates import relations_of
from rexthinker_edge.calibration.workbench.wording import plural
from rexthinker_edge.calibration.workbench.world import Level, RelationKind, Scene
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.trace import NO, YES

NEAREST_PX = 5  # neighbours in an order are at least so far apart, in resized pixels
_TOUCH = {
    RelationKind.TOUCHING: "touches the {}",
    RelationKind.INSIDE: "inside the {}",
    RelationKind.ON_TOP_OF: "on top of the {}",
}
_SIDES = (
    (("left of it", "to the left"), ("right of it", "to the right")),
    (("above it", "higher"), ("below it", "lower")),
)
_HOLDS = {RelationKind.INSIDE: "has the {} inside", RelationKind.ON_TOP_OF: "has the {} on top"}


def ask(request: str) -> list[prompt.Part]:
    """A user turn that asks for a dense answer."""
    return [request, prompt.IM_END, "\n", prompt.IM_START, "assistant\n"]


def described(
    scene: Scene, candidates: tuple[int, ...], boxes: NDArray[np.int64], category: str, with_boxes: bool
) -> str:
    """A line per candidate: "Ball 1: large red; touches the blue box", with its box to copy if asked."""
    lines = workbench.describe_things(scene, candidates, workbench.ATTRIBUTES, category).splitlines()
    written = []
    for index, box, line in zip(candidates, boxes.tolist(), lines, strict=True):
        name, said = line.split(":", 1)
        told = "; ".join([said.strip(), *_relations(scene, index)])
        written.append(f"{name} {box}: {told}" if with_boxes else f"{name}: {told}")
    return "\n".join(written)


def _relations(scene: Scene, index: int) -> list[str]:
    if scene.level is Level.EASY:
        return []
    said = []
    for kind, other, inverse in relations_of(scene, index):
        thing = scene.things[other]
        form = _HOLDS[kind] if inverse else _TOUCH[kind]
        said.append(form.format(f"{thing.color} {thing.category}"))
    return said or ["stands alone"]


def arranged(
    scene: Scene,
    candidates: tuple[int, ...],
    boxes: NDArray[np.int64],
    category: str,
    centres: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[str, str]:
    """Request and answer: orders of the candidates, and the places of what is no candidate.

    Args:
        boxes: (N, 4) int64 of the hint, resized pixels.
        centres: (things, 2) float64, resized pixels, of all things of the scene.
    """
    names = [f"{category.capitalize()} {k + 1}" for k in range(len(candidates))]
    chosen = list(range(len(candidates)))
    lines: list[str] = []
    request = f"Please order every {category}."
    colors = [scene.things[i].color for i in candidates]
    if len(set(colors)) > 1 and rng.random() < 0.5:
        asked = _some_colors(colors, rng)
        request = f"Please order every {' or '.join(asked)} {category}."
        chosen = [k for k in chosen if colors[k] in asked]
        lines.append(f"# Step 1: Check the color of each {category}.")
        lines += [f"- {name}: {c} {YES if c in asked else NO}" for name, c in zip(names, colors, strict=True)]
    lines.append(f"# Step {2 if lines else 1}: Order the {plural(category)}.")
    lines += _orders([names[k] for k in chosen], boxes[chosen], rng)
    others = _nameable(scene, set(candidates))
    for index in rng.permutation(others)[:2]:
        lines += _compared(scene, int(index), category, (names, boxes), centres, rng)
    lines += _places(scene, others, centres)
    return request, "\n".join(lines)


def _some_colors(colors: list[str], rng: np.random.Generator) -> list[str]:
    """Some of several colors, of two things at least where that leaves one out."""
    kinds = [str(color) for color in rng.permutation(list(dict.fromkeys(colors)))]
    count = int(rng.integers(1, len(kinds)))
    while count < len(kinds) - 1 and sum(color in kinds[:count] for color in colors) < 2:
        count += 1
    return kinds[:count]


def _orders(names: list[str], boxes: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    across, down = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    keys = {"left": across, "right": -across, "top": down, "bottom": -down}
    lines = []
    for side in rng.permutation(list(keys))[: 4 if len(names) > 1 else 1]:
        order = np.argsort(keys[side], kind="stable")
        gaps = np.diff(keys[side][order])
        close = np.flatnonzero(gaps < 2 * NEAREST_PX)
        kept = order[: int(close[0])] if len(close) else order
        if len(kept):
            lines.append(f"From the {side}: {', '.join(names[k] for k in kept)}.")
    ranked = np.argsort(areas, kind="stable")
    if len(ranked) > 1:
        smallest, largest = areas[ranked[:2]], areas[ranked[-2:]]
        if largest[1] > 1.15 * largest[0]:
            lines.append(f"Largest: {names[ranked[-1]]}.")
        if smallest[1] > 1.15 * smallest[0]:
            lines.append(f"Smallest: {names[ranked[0]]}.")
    return lines


def _nameable(scene: Scene, candidates: set[int]) -> list[int]:
    """Things that are no candidates, and alone in their color and category."""
    looks = [(thing.color, thing.category) for thing in scene.things]
    return [i for i, look in enumerate(looks) if i not in candidates and looks.count(look) == 1]


def _places(scene: Scene, others: list[int], centres: NDArray[np.float64]) -> list[str]:
    lines = []
    for index in others[:3]:
        thing, (x, y) = scene.things[index], centres[index].astype(int)
        lines.append(f"The {thing.color} {thing.category} is at x = {x}, y = {y}.")
    return lines


def _compared(
    scene: Scene,
    index: int,
    category: str,
    named: tuple[list[str], NDArray[np.int64]],
    centres: NDArray[np.float64],
    rng: np.random.Generator,
) -> list[str]:
    """On which side of one thing each candidate lies, along one axis, as a trace says it."""
    axis, manner = int(rng.integers(2)), int(rng.integers(2))
    thing, at = scene.things[index], centres[index][axis]
    name = f"the {thing.color} {thing.category}"
    lines = [f"# Step 3: Compare every {category} with {name}."]
    lines.append(f"{name.capitalize()} is at {'xy'[axis]} = {int(at)}.")
    for one, box in zip(*named, strict=True):
        away = (box[axis] + box[axis + 2]) / 2 - at
        if abs(away) >= NEAREST_PX:
            lines.append(f"- {one}: {_SIDES[axis][int(away > 0)][manner]}")
    return lines
