"""Painting a scene: a bench, shadows, things one over the other, then what a camera adds.

Layout    bench -> shadows -> each thing on its own crop (silhouette, shading, pattern, letter) ->
          noise -> JPEG. Arrays are (height, width, 3) RGB; floats run from 0 to 255.
Contract  The picture depends on the scene alone. A mug's front wall is painted again over what is inside it.
Elsewhere where things stand: layout.py; outlines: shapes.py; shading: paint.py.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rexthinker_edge.calibration.workbench.layout import generator, model_scale
from rexthinker_edge.calibration.workbench.paint import letter_mask, letter_tone, thing_colors
from rexthinker_edge.calibration.workbench.shapes import coverage, mug_front, outline
from rexthinker_edge.calibration.workbench.world import Level, RelationKind, Scene, Thing

Pixels = NDArray[np.float32]


def render(scene: Scene) -> NDArray[np.uint8]:
    """Paint a scene.

    Returns:
        (scene.height, scene.width, 3) uint8 RGB.
    """
    rng = generator(scene.level, scene.seed, scene.index, 1)
    canvas = bench(rng, scene.width, scene.height)
    canvas *= _shadows(rng, scene)[..., None]
    scale = model_scale(scene.width, scene.height)
    holders = {r.first: r.second for r in scene.relations if r.kind is RelationKind.INSIDE}
    painted: dict[int, tuple[Pixels, Pixels]] = {}
    for number, thing in enumerate(scene.things):
        painted[number] = _paint(rng, canvas, thing, scale)
        holder = holders.get(number)
        if holder is not None and scene.things[holder].category == "mug":
            _paint_front(canvas, scene.things[holder], painted[holder])
    return _camera(rng, canvas, scene.level)


def bench(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A wooden, stone or cloth surface in grey to brown middle tones, (height, width, 3)."""
    kind = int(rng.integers(3))
    tone = float(rng.uniform(105, 165))
    tint = np.array([(1.07, 1.0, 0.9), (1.0, 1.0, 1.0), (0.96, 1.0, 1.04)][kind], dtype=np.float32)
    tint = 1 + (tint - 1) * float(rng.uniform(0.5, 1.3))
    if kind == 0:
        along = rng.random() < 0.5
        fine, coarse = ((3, 60), (2, 14)) if along else ((60, 3), (14, 2))
        texture = 9 * _cloud(rng, width, height, *fine) + 9 * _cloud(rng, width, height, *coarse)
    elif kind == 1:
        texture = 7 * _cloud(rng, width, height, 48, 48) + 9 * _cloud(rng, width, height, 7, 7)
    else:
        period = float(rng.uniform(4, 9))
        x = np.sin(np.arange(width, dtype=np.float32) * np.float32(2 * np.pi / period))
        y = np.sin(np.arange(height, dtype=np.float32) * np.float32(2 * np.pi / period))
        texture = 4 * (x[None] + y[:, None]) + 7 * _cloud(rng, width, height, 5, 5)
    light = 10 * _cloud(rng, width, height, 2, 2)
    surface = np.float32(tone) + texture + light
    return np.asarray(surface[..., None] * tint, dtype=np.float32)


def _cloud(rng: np.random.Generator, width: int, height: int, across: int, down: int) -> Pixels:
    """Smooth noise of unit scale with so many lumps across and down."""
    small = rng.standard_normal((down, across)).astype(np.float32)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)


def _shadows(rng: np.random.Generator, scene: Scene) -> Pixels:
    """How much light reaches the bench, (height, width) in (0, 1]."""
    cell = 4
    small = (scene.width // cell + 1, scene.height // cell + 1)
    strength = float(rng.uniform(0.25, 0.5))
    lean = float(rng.uniform(-0.16, 0.16))
    image = Image.new("L", small)
    draw = ImageDraw.Draw(image)
    lifted = {r.first for r in scene.relations if r.kind is not RelationKind.TOUCHING}
    for number, thing in enumerate(scene.things):
        if number in lifted:
            continue
        x0, y0, x1, y1 = (value / cell for value in thing.box)
        width, height = x1 - x0, y1 - y0
        x = (x0 + x1) / 2 + lean * width
        if thing.category in ("star", "ring"):
            draw.ellipse(
                (x0 + lean * width, y0 + 0.06 * height, x1 + lean * width, y1 + 0.06 * height), fill=255
            )
        else:
            draw.ellipse(
                (x - 0.54 * width, y1 - 0.24 * height, x + 0.54 * width, y1 + 0.08 * height), fill=255
            )
    blurred = image.filter(ImageFilter.GaussianBlur(max(1.0, 0.004 * max(scene.width, scene.height))))
    full = blurred.resize((small[0] * cell, small[1] * cell), Image.Resampling.BILINEAR)
    shade = np.asarray(full, dtype=np.float32)[: scene.height, : scene.width]
    return np.asarray(1 - shade * np.float32(strength / 255), dtype=np.float32)


def _corner(thing: Thing) -> tuple[int, int, int, int]:
    """Whole pixels: left, top, width, height."""
    x0, y0, x1, y1 = (round(value) for value in thing.box)
    return x0, y0, x1 - x0, y1 - y0


def _blend(canvas: Pixels, thing: Thing, colors: Pixels, alpha: Pixels) -> None:
    x, y, width, height = _corner(thing)
    crop = canvas[y : y + height, x : x + width]
    crop += (colors - crop) * alpha[..., None]


def _paint(rng: np.random.Generator, canvas: Pixels, thing: Thing, scale: float) -> tuple[Pixels, Pixels]:
    """Paint one thing; gives back its colours and coverage for painting parts of it again."""
    _, _, width, height = _corner(thing)
    alpha = coverage(outline(thing.category), width, height)
    colors = thing_colors(rng, thing, width, height, scale)
    if thing.letter is not None:
        ink, halo = letter_mask(thing.letter, thing.category, width, height)
        tone, ground = letter_tone(thing.color)
        colors += (ground - colors) * halo[..., None]
        colors += (tone - colors) * ink[..., None]
    _blend(canvas, thing, colors, alpha)
    return colors, alpha


def _paint_front(canvas: Pixels, mug: Thing, painted: tuple[Pixels, Pixels]) -> None:
    """Paint the mug's wall again, over what stands in the mug."""
    _, _, width, height = _corner(mug)
    _blend(canvas, mug, painted[0], coverage(((mug_front(), True),), width, height))


def _camera(rng: np.random.Generator, canvas: Pixels, level: Level) -> NDArray[np.uint8]:
    """Grain, and in full pictures the blocks of a JPEG file."""
    height, width = canvas.shape[:2]
    grain = float(rng.uniform(0.5, 3.5) if level is Level.EASY else rng.uniform(0.0, 7.0))
    noise = rng.integers(-128, 128, (height, width), dtype=np.int8).astype(np.float32)
    canvas += (noise * np.float32(grain / 74))[..., None]  # 74 is the spread of 256 equal steps
    pixels: NDArray[np.uint8] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    if level is Level.EASY:
        return pixels
    quality = int(rng.integers(55, 96))
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    file.seek(0)
    with Image.open(file) as image:
        return np.array(image.convert("RGB"), dtype=np.uint8)
