"""A small canvas for charts in a page: SVG text whose colours are the page's, so light, dark and print agree.

Layout    Coordinates in CSS pixels of the chart's own width. Classes: `u0` to `u5` a subject's colour (the
          page sets `color`), `grid`, `axis`, `soft`, `name`. Subjects differ by marker as well as by colour.
Contract  Every chart carries a title and a description for those who cannot see it. All text is escaped.
          Control characters never reach the page.
Elsewhere what is drawn: report_charts.py; the page and its colours: report_page.py.
"""

import math
from collections.abc import Sequence
from html import escape

from rexthinker_edge.runtime.evidence import plain

SERIES = 6
TEXT_PX = 13
CHARACTER_PX = 7.3  # a little above the mean advance of 13 px sans-serif digits and letters


def safe(text: object) -> str:
    """Text for a page: escaped, without control characters."""
    return escape(plain(str(text)), quote=True)


class Canvas:
    """One chart."""

    def __init__(self, name: str, width: float, height: float, title: str, description: str) -> None:
        """`name` is unique in its page."""
        self.name, self.width, self.height = name, width, height
        self.title, self.description = title, description
        self._parts: list[str] = []

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str = "axis") -> None:
        """A straight line."""
        (x0, y0), (x1, y1) = start, end
        self._parts.append(f'<line class="{style}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')

    def path(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Straight pieces through `points`."""
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="line {style}" points="{drawn}"/>')

    def bar(self, x: float, y: float, width: float, height: float, style: str, tip: str = "") -> None:
        """A filled rectangle; `tip` shows when it is pointed at."""
        inner = f"<title>{safe(tip)}</title>" if tip else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect class="bar {style}" {place}>{inner}</rect>')

    def text(
        self, x: float, y: float, text: object, style: str = "", anchor: str = "start", turn: float = 0
    ) -> None:
        """One line of text, `y` its baseline."""
        turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="{style}" {place}{turned}>{safe(text)}</text>')

    def marker(self, series: int, x: float, y: float, tip: str = "", size: float = 5.5) -> None:
        """A subject's own shape in its own colour."""
        inner = f"<title>{safe(tip)}</title>" if tip else ""
        style = f'class="mark u{series % SERIES}"'
        corners = (0, 4, 3, 4, 3, 5)[series % SERIES]
        if not corners:
            self._parts.append(f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="{size:g}">{inner}</circle>')
            return
        first = (0.0, math.pi / 4, -math.pi / 2, 0.0, math.pi / 2, -math.pi / 2)[series % SERIES]
        around = (first + 2 * math.pi * k / corners for k in range(corners))
        points = " ".join(
            f"{x + 1.25 * size * math.cos(a):.1f},{y + 1.25 * size * math.sin(a):.1f}" for a in around
        )
        self._parts.append(f'<polygon {style} points="{points}">{inner}</polygon>')

    def span(
        self, start: tuple[float, float], end: tuple[float, float], style: str, cap: float = 4.0
    ) -> None:
        """An interval: a line with caps, level or upright."""
        across, up = (0.0, cap) if start[1] == end[1] else (cap, 0.0)
        self.line(start, end, f"span {style}")
        for x, y in (start, end):
            self.line((x - across, y - up), (x + across, y + up), f"span {style}")

    def render(self) -> str:
        """The chart as an element of a page."""
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" style="max-width:{self.width:g}px"'
        named = f'role="img" aria-labelledby="{self.name}-t {self.name}-d"'
        return (
            f'<svg class="chart" {size} {named}><title id="{self.name}-t">{safe(self.title)}</title>'
            f'<desc id="{self.name}-d">{safe(self.description)}</desc>{"".join(self._parts)}</svg>'
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that cover `low` to `high`."""
    assert high > low, (low, high)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


class Axis:
    """A linear scale between round numbers: `axis(value)` is a pixel."""

    def __init__(self, values: Sequence[float], pixels: tuple[float, float], about: int = 5) -> None:
        """Cover `values`; `pixels` are where the lowest and the highest tick lie."""
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        first, last = low if low == 0 else low - room, high if high in (0, 1, 100) else high + room
        self.ticks = ticks(first, last if last > first else first + 1, about)
        self.pixels = pixels

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        (first, last), (low, high) = self.pixels, (self.ticks[0], self.ticks[-1])
        return first + (value - low) / (high - low) * (last - first)


def spread_labels(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places for labels, in the order given, at least `apart` from each other and near where they belong.

    Args:
        wanted: where each would lie best.
        low, high: the room; it is left upwards where the labels are more than it holds.
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    placed, floor = [0.0] * len(wanted), low
    for k in order:
        placed[k] = max(wanted[k], floor)
        floor = placed[k] + apart
    ceiling = high
    for k in reversed(order):
        placed[k] = min(placed[k], ceiling)
        ceiling = placed[k] - apart
    return placed
