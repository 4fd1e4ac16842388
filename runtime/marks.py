"""The marks of a trace, ✅ ❌ ⚠️ and →, as shapes: no font is needed to draw them.

Layout    A mark is shapes on a square of 16 x 16 units, later ones over earlier: polygons, and lines with
          round ends. `MARKS` names them as trace.py's verdicts are named.
Elsewhere pages: evidence_page.py; pictures: evidence_picture.py; reading marks: trace.py.
"""

import re
from dataclasses import dataclass

from PIL import ImageDraw

SIDE = 16.0
MARK_PATTERN = re.compile("(✅|❌|⚠\ufe0f?|→)")
Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """A filled polygon (`width` 0) or a line of that width."""

    points: tuple[Point, ...]
    color: Color
    width: float = 0.0


GREEN, RED, AMBER = (22, 140, 60), (205, 45, 40), (255, 176, 0)
WHITE, INK, GREY = (255, 255, 255), (40, 30, 0), (120, 120, 120)
MARKS: dict[str, tuple[Shape, ...]] = {
    "match": (
        Shape(((3, 3), (13, 3), (13, 13), (3, 13)), GREEN),
        Shape(((3, 3), (13, 3), (13, 13), (3, 13), (3, 3)), GREEN, 4.0),
        Shape(((4, 8.4), (7, 11.6), (12.2, 4.8)), WHITE, 2.2),
    ),
    "no_match": (
        Shape(((3.2, 3.2), (12.8, 12.8)), RED, 3.2),
        Shape(((12.8, 3.2), (3.2, 12.8)), RED, 3.2),
    ),
    "reference": (
        Shape(((8, 2.4), (14, 13), (2, 13)), AMBER),
        Shape(((8, 2.4), (14, 13), (2, 13), (8, 2.4)), AMBER, 2.4),
        Shape(((8, 6), (8, 9.4)), INK, 1.7),
        Shape(((8, 11.9), (8, 12)), INK, 1.9),
    ),
    "so": (
        Shape(((2, 8), (13, 8)), GREY, 1.6),
        Shape(((9, 4), (13.4, 8), (9, 12)), GREY, 1.6),
    ),
}
NAMES = {"✅": "match", "❌": "no_match", "⚠": "reference", "→": "so"}
WORDS = {"match": "matches", "no_match": "does not match", "reference": "reference", "so": "so"}


def pieces(text: str) -> list[tuple[str, bool]]:
    """Text cut at its marks: (words, False) and (name of the mark, True), nothing empty."""
    made = []
    for piece in MARK_PATTERN.split(text):
        is_mark = piece[:1] in NAMES and MARK_PATTERN.fullmatch(piece) is not None
        if piece:
            made.append((NAMES[piece[0]] if is_mark else piece, is_mark))
    return made


def to_svg(name: str) -> str:
    """A mark's shapes as SVG elements on its square."""
    parts = []
    for shape in MARKS[name]:
        points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
        color = f"rgb{shape.color}".replace(" ", "")
        if shape.width:
            style = f'fill="none" stroke="{color}" stroke-width="{shape.width:g}"'
            parts.append(
                f'<polyline points="{points}" {style} stroke-linecap="round" stroke-linejoin="round"/>'
            )
        else:
            parts.append(f'<polygon points="{points}" fill="{color}"/>')
    return "".join(parts)


def draw_mark(draw: ImageDraw.ImageDraw, name: str, corner: Point, side: float) -> None:
    """Draw a mark into a square of `side` pixels whose upper left corner is `corner`."""
    scale = side / SIDE
    for shape in MARKS[name]:
        points = [(corner[0] + x * scale, corner[1] + y * scale) for x, y in shape.points]
        if not shape.width:
            draw.polygon(points, fill=shape.color)
            continue
        width = max(1, round(shape.width * scale))
        draw.line(points, fill=shape.color, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            reach = width / 2
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=shape.color)
