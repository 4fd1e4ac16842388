"""What really stands under every picture token, as classes: what probes of the vision tower are asked for.

Layout    `FIELDS` names the classes of each field; the first `OWN_FIELDS` are a thing's own, the others tell
          what it stands in contact with. `IGNORE` where a field does not apply.
Elsewhere the scenes: calibration/workbench; samples that carry them: vlm_data.py; the probes: trainee.py.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rexthinker_edge.calibration.workbench.predicates import relations_of
from rexthinker_edge.calibration.workbench.world import CATEGORIES, COLORS, LETTERS, PATTERNS, Scene
from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.qwen_pixels import VisionInput
from rexthinker_edge.training.vlm_batch import IGNORE

FIELDS: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "color": COLORS,
    "pattern": PATTERNS,
    "size": ("small", "large"),
    "letter": tuple(LETTERS),
    "relation": ("alone", "touching", "inside", "on top of", "has inside", "has on top"),
    "partner_color": COLORS,
    "partner_category": CATEGORIES,
}
OWN_FIELDS = 5  # the first ones are the thing's own, the others tell what it stands in contact with


def centres(scene: Scene, resized: Size) -> NDArray[np.float64]:
    """(things, 2) float64 centres of the things' boxes in resized pixels."""
    boxes = np.array([thing.box for thing in scene.things], np.float64).reshape(-1, 2, 2)
    scale = np.array([resized[0] / scene.width, resized[1] / scene.height])
    middles: NDArray[np.float64] = boxes.mean(axis=1) * scale
    return middles


def cell_fields(fields_of_things: NDArray[np.int64], cell_things: NDArray[np.int64]) -> Tensor:
    """(T, fields) class of each picture token; the class after the last where there is nothing."""
    nothing = torch.tensor([len(values) for values in FIELDS.values()])
    fields, under = torch.from_numpy(fields_of_things), torch.from_numpy(cell_things)
    return torch.where((under < 0)[:, None], nothing, fields[under.clamp(min=0)])


def things_under_cells(scene: Scene, vision: VisionInput) -> NDArray[np.int64]:
    """(T,) index of the topmost thing whose box covers the centre of each picture token, else -1."""
    _, grid_h, grid_w = vision.grid_thw
    rows, columns = grid_h // 2, grid_w // 2
    x = (np.arange(columns) + 0.5) * scene.width / columns
    y = (np.arange(rows) + 0.5) * scene.height / rows
    cells = np.full((rows, columns), -1, np.int64)
    for number, thing in enumerate(scene.things):
        x0, y0, x1, y1 = thing.box
        cells[np.ix_((y >= y0) & (y < y1), (x >= x0) & (x < x1))] = number
    return cells.reshape(-1)


def thing_fields(scene: Scene) -> NDArray[np.int64]:
    """(things, fields) int64 class of each thing per FIELDS, IGNORE where it does not apply."""
    rows = []
    for index, thing in enumerate(scene.things):
        own = {name: getattr(thing, name) for name in list(FIELDS)[:OWN_FIELDS]}
        told = own | _contact(scene, index)
        rows.append([IGNORE if v is None else FIELDS[name].index(v) for name, v in told.items()])
    return np.array(rows, np.int64).reshape(-1, len(FIELDS))


def _contact(scene: Scene, index: int) -> dict[str, str | None]:
    """What a thing touches, holds or lies in; the world ties each thing to one other at most."""
    for kind, other, inverse in relations_of(scene, index):
        relation = f"has {kind.value.removesuffix(' of')}" if inverse else kind.value
        partner = scene.things[other]
        return dict(zip(list(FIELDS)[OWN_FIELDS:], (relation, partner.color, partner.category), strict=True))
    return dict(zip(list(FIELDS)[OWN_FIELDS:], ("alone", None, None), strict=True))
