"""The outlines of the workbench's things: what layout measures and render paints.

Layout    An outline is a list of (polygon, inside) painted in turn: `inside` False cuts a hole.
          Polygons are (N, 2) float64 (x, y) in the unit square, tight: each axis spans [0, 1].
Contract  A thing's box is its outline's bounding box, so a box and a category say all about a silhouette.
Elsewhere placing: layout.py; shading and patterns: render.py.
"""

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Polygon = NDArray[np.float64]
Outline = tuple[tuple[Polygon, bool], ...]

RING_HOLE = 0.62  # hole diameter over ring diameter
MUG_BODY = 0.76  # body width over mug width; the handle has the rest
MUG_RIM = 0.10  # half height of the mug's opening over mug height
BOX_DEPTH_X, BOX_DEPTH_Y = 0.2, 0.24  # how far the box's side and top faces recede
SUPERSAMPLE = 3


def aspect(category: str) -> float:
    """Width over height of a category's usual silhouette."""
    return {"ball": 1.0, "box": 1.1, "cone": 0.86, "star": 1.05, "ring": 1.0, "mug": 1.08}[category]


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], start: float = 0.0, stop: float = 2 * np.pi
) -> Polygon:
    """(48, 2) points of an ellipse's arc; y grows downwards, so angles turn clockwise."""
    t = np.linspace(start, stop, 48)
    return np.stack([centre[0] + radii[0] * np.cos(t), centre[1] + radii[1] * np.sin(t)], axis=1)


def _star() -> Polygon:
    t = -np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    points = np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray((points - low) / (high - low), dtype=np.float64)


@cache
def outline(category: str) -> Outline:
    """The silhouette of a category in the unit square."""
    dx, dy = BOX_DEPTH_X, BOX_DEPTH_Y
    if category == "ball":
        return ((ellipse((0.5, 0.5), (0.5, 0.5)), True),)
    if category == "ring":
        return (
            (ellipse((0.5, 0.5), (0.5, 0.5)), True),
            (ellipse((0.5, 0.5), (RING_HOLE / 2, RING_HOLE / 2)), False),
        )
    if category == "box":
        return (
            (np.array([(0, dy), (dx, 0), (1, 0), (1, 1 - dy), (1 - dx, 1), (0, 1)], dtype=np.float64), True),
        )
    if category == "cone":
        base = ellipse((0.5, 0.9), (0.5, 0.1), 0.0, np.pi)
        return ((np.concatenate([[(0.46, 0.0), (0.54, 0.0)], base]), True),)
    if category == "star":
        return ((_star(), True),)
    assert category == "mug", category
    body, rim = MUG_BODY, MUG_RIM
    top = ellipse((body / 2, rim), (body / 2, rim), np.pi, 2 * np.pi)
    bottom = ellipse((body / 2, 0.93), (body * 0.44, 0.07), 0.0, np.pi)
    return (
        (ellipse((body, 0.5), (1 - body, 0.3)), True),
        (ellipse((body, 0.5), ((1 - body) * 0.45, 0.17)), False),
        (np.concatenate([top, bottom]), True),
    )


@cache
def mug_front() -> Polygon:
    """The mug's wall below the front of its rim: what hides a thing standing in it."""
    body, rim = MUG_BODY, MUG_RIM
    lip = ellipse((body / 2, rim), (body / 2, rim), np.pi, 0.0)
    return np.concatenate([lip, ellipse((body / 2, 0.93), (body * 0.44, 0.07), 0.0, np.pi)])


def coverage(shapes: Outline, width: int, height: int) -> NDArray[np.float32]:
    """How much of each pixel shapes cover, when the unit square is (width, height) pixels.

    Returns:
        (height, width) float32 in [0, 1].
    """
    scale = SUPERSAMPLE
    canvas = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for polygon, inside in shapes:
        points = polygon * (width * scale, height * scale) - 0.5
        draw.polygon(points.ravel().tolist(), fill=255 if inside else 0)
    return np.asarray(canvas.reduce(scale), dtype=np.float32) / np.float32(255)


@lru_cache(maxsize=1024)
def silhouette(category: str, width: int, height: int) -> NDArray[np.bool_]:
    """(height, width) bool: the pixels at least half covered by the thing alone."""
    mask = coverage(outline(category), width, height) >= 0.5
    mask.setflags(write=False)
    return mask
