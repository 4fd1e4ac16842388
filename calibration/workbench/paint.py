"""The surface of one thing: base colour, pattern, light, letter.

Layout    Everything is (height, width[, 3]) float32 over the thing's own box; colours run from 0 to 255.
Contract  The base colour covers most of a thing whatever its pattern, and light changes its
          brightness, not its hue.
Elsewhere outlines: shapes.py; putting it on the picture: render.py.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rexthinker_edge.calibration.workbench.shapes import (
    BOX_DEPTH_X,
    BOX_DEPTH_Y,
    MUG_BODY,
    MUG_RIM,
    RING_HOLE,
)
from rexthinker_edge.calibration.workbench.world import Thing

Pixels = NDArray[np.float32]
Field = NDArray[np.floating[Any]]


@cache
def base_color(color: str) -> tuple[float, float, float]:
    """RGB of a colour's name in full light."""
    return {
        "red": (212, 30, 36),
        "green": (34, 152, 58),
        "blue": (30, 84, 216),
        "yellow": (248, 220, 36),
        "purple": (138, 46, 168),
        "orange": (246, 128, 16),
        "white": (246, 246, 244),
        "black": (30, 30, 33),
    }[color]


@cache
def _mark_color(color: str) -> tuple[float, float, float]:
    """The colour of stripes and dots on a base."""
    return {
        "red": (250, 176, 178),
        "green": (176, 236, 184),
        "blue": (168, 200, 255),
        "yellow": (160, 124, 8),
        "purple": (228, 180, 244),
        "orange": (255, 222, 176),
        "white": (128, 128, 130),
        "black": (150, 150, 154),
    }[color]


def letter_tone(color: str) -> tuple[Pixels, Pixels]:
    """Colours of a letter and of the plate under it."""
    dark = color in ("yellow", "white", "orange")
    ink = np.full(3, 16.0 if dark else 252.0, dtype=np.float32)
    return ink, np.array(base_color(color), dtype=np.float32)


def thing_colors(rng: np.random.Generator, thing: Thing, width: int, height: int, scale: float) -> Pixels:
    """(height, width, 3): pattern and light; `scale` is how much the model's resize shrinks the picture."""
    u = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]
    v = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    jitter = 1 + rng.uniform(-0.04, 0.04, 3).astype(np.float32)
    if thing.color in ("white", "black"):
        jitter[:] = jitter[0]
    colors = np.broadcast_to(np.array(base_color(thing.color), dtype=np.float32) * jitter, (height, width, 3))
    angle, phase = rng.uniform(-0.5, 0.5), rng.uniform(0, 1, 2)
    if thing.pattern != "plain":
        marks = _marks(thing.pattern, (width, height), scale, float(angle), phase)
        colors = colors + (np.array(_mark_color(thing.color), dtype=np.float32) - colors) * marks[..., None]
    light, shine = _light(thing.category, u, v)
    if thing.color == "black":
        shine = shine * 1.6 + np.clip(light - 0.75, 0, None) * 0.16
    return np.asarray(np.clip(colors * light[..., None] + shine[..., None] * 255, 0, 255), dtype=np.float32)


def _marks(
    pattern: str, size: tuple[int, int], scale: float, angle: float, phase: NDArray[np.float64]
) -> Pixels:
    """Where stripes or dots are, (height, width) in [0, 1]; `size` is (width, height)."""
    width, height = size
    side = min(width, height)
    x = np.arange(width, dtype=np.float32)[None]
    y = np.arange(height, dtype=np.float32)[:, None]
    if pattern == "striped":
        period = max(side / 4.2, 7.5 / scale)
        along = (x * np.float32(np.sin(angle)) + y * np.float32(np.cos(angle))) / np.float32(period)
        distance = np.abs((along + np.float32(phase[0])) % 1 - 0.5) * np.float32(period)
        return np.asarray(np.clip(np.float32(0.19 * period) - distance + 0.5, 0, 1), dtype=np.float32)
    step = max(side / 3.6, 8.5 / scale)
    row = y / np.float32(step * 0.87) + np.float32(phase[0])
    column = x / np.float32(step) + np.float32(phase[1]) + 0.5 * (np.floor(row) % 2)
    distance = np.hypot((column % 1 - 0.5) * np.float32(step), (row % 1 - 0.5) * np.float32(step * 0.87))
    return np.asarray(np.clip(np.float32(0.29 * step) - distance + 0.5, 0, 1), dtype=np.float32)


def _light(category: str, u: Field, v: Field) -> tuple[Pixels, Pixels]:
    """Brightness factor and added shine over a thing, both (height, width)."""
    shade = {"ball": _ball, "box": _box, "cone": _cone, "star": _star, "ring": _ring, "mug": _mug}[category]
    light, shine = shade(u, v)
    return np.asarray(light, dtype=np.float32), np.asarray(shine, dtype=np.float32)


def _ball(u: Field, v: Field) -> tuple[Field, Field]:
    x, y = 2 * u - 1, 2 * v - 1
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    facing = np.clip(-0.45 * x - 0.55 * y + 0.7 * z, 0, 1)
    shine = np.clip(1 - np.hypot(x + 0.36, y + 0.42) / 0.24, 0, 1) * 0.42
    return 0.6 + 0.45 * facing, shine


def _box(u: Field, v: Field) -> tuple[Field, Field]:
    dx, dy = BOX_DEPTH_X, BOX_DEPTH_Y
    top = (v < dy) & (u > dx * (1 - v / dy)) & (u < 1 - dx * v / dy)
    side = (u > 1 - dx) & (v > dy * (1 - u) / dx) & (v < 1 - dy * (u - 1 + dx) / dx)
    front = (u <= 1 - dx) & (v >= dy)
    light = np.where(top, 1.12, np.where(front, 0.94, np.where(side, 0.68, 0.94)))
    edge = (np.abs(v - dy) < 0.015) & (u < 1 - dx) | (np.abs(u - 1 + dx) < 0.015) & (v > dy)
    shine = np.where(edge, 0.1, np.where(top, 0.08, 0.0)) + 0 * u * v
    return light, shine


def _cone(u: Field, v: Field) -> tuple[Field, Field]:
    half = np.clip(0.04 + 0.46 * v / 0.9, 0.04, 0.5)
    across = np.clip((u - 0.5) / half, -1, 1)
    shine = np.clip(1 - np.abs(across + 0.4) / 0.22, 0, 1) * 0.14
    return 1.02 - 0.4 * (across + 0.3) ** 2 * np.where(across > -0.3, 0.62, 0.5), shine


def _star(u: Field, v: Field) -> tuple[Field, Field]:
    x, y = 2 * u - 1, (v - 0.5528) * 1.9
    sector = np.floor(np.arctan2(x, -y) / (np.pi / 5)) % 2
    return 0.8 + 0.24 * sector, 0.05 * sector


def _ring(u: Field, v: Field) -> tuple[Field, Field]:
    x, y = 2 * u - 1, 2 * v - 1
    radius = np.hypot(x, y) + 1e-6
    across = np.clip((radius - (1 + RING_HOLE) / 2) / ((1 - RING_HOLE) / 2), -1, 1)
    tilt = -(x * 0.6 + y * 0.8) / radius * across
    round_ = np.sqrt(1 - across * across)
    return 0.66 + 0.22 * round_ + 0.22 * tilt, np.clip(tilt - 0.35, 0, 1) * 0.3


def _mug(u: Field, v: Field) -> tuple[Field, Field]:
    across = np.clip(u / MUG_BODY * 2 - 1, -1, 1)
    wall = 1.0 - 0.36 * np.clip(across + 0.35, -1, 1) ** 2 - 0.1 * v
    opening = np.hypot(across, (v - MUG_RIM) / MUG_RIM)
    inside = (opening < 0.86) & (u < MUG_BODY)
    lip = (opening >= 0.86) & (opening < 1.03) & (u < MUG_BODY)
    handle = np.where(u > MUG_BODY, 0.84, wall)
    light = np.where(inside, 0.42 + 0.14 * (across + 1) / 2, np.where(lip, 1.1, handle))
    shine = np.where(
        lip, 0.1, np.where(inside | (u > MUG_BODY), 0.0, np.clip(1 - np.abs(across + 0.5) / 0.2, 0, 1) * 0.1)
    )
    return light, shine


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font


@cache
def _letter_place(category: str) -> tuple[float, float, float]:
    """Centre and height of a letter in a category's unit square."""
    return {
        "ball": (0.5, 0.5, 0.58),
        "box": ((1 - BOX_DEPTH_X) / 2, BOX_DEPTH_Y + (1 - BOX_DEPTH_Y) / 2, 0.52),
        "cone": (0.5, 0.68, 0.42),
        "star": (0.5, 0.56, 0.42),
        "mug": (MUG_BODY / 2, 0.6, 0.54),
    }[category]


def letter_mask(letter: str, category: str, width: int, height: int) -> tuple[Pixels, Pixels]:
    """Where a letter and the plate around it are, each (height, width) in [0, 1]."""
    x, y, tall = _letter_place(category)
    font = _font(max(8, round(tall * height / 0.7)))  # capitals are about 0.7 of the font's size
    halo = max(1, round(0.05 * height))
    masks: list[Pixels] = []
    for stroke in (0, halo):
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        draw.text((x * width, y * height), letter, fill=255, font=font, anchor="mm", stroke_width=stroke)
        masks.append(np.asarray(image, dtype=np.float32) / np.float32(255))
    ink, plate = masks
    return ink, plate
