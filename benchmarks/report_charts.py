"""The report's charts, each from figures of a comparison (`rexthinker-edge/comparison/1`).

Contract  A figure nobody measured is not drawn: a chart without any returns "". Accuracy axes do not begin at
          0 where that would hide the differences; lengths of bars always do.
Elsewhere the figures: comparison.py, distributions.py; drawing: report_svg.py; the page: report_page.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rexthinker_edge.benchmarks.report_svg import CHARACTER_PX, SERIES, Axis, Canvas, spread_labels

WIDTH = 720
METRIC = "density_f1_mean"
LONGEST_NAME = 26
Told = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One subject in a scatter plot; the interval is y's, `reach` how far x's tail goes."""

    series: int
    name: str
    x: float
    y: float
    low: float
    high: float
    reach: float | None = None


def short(name: str) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def accuracy_points(subjects: Sequence[Told], where: str) -> list[Point]:
    """DensityF1 in points over `where`: "latency" (ms, median) or "bits" (of a weight of the decoder)."""
    points = []
    for series, told in enumerate(subjects):
        total = told["ms"].get("total", {})
        x = total.get("p50") if where == "latency" else told["details"].get("decoder_bits")
        value, span = told["average"][METRIC], told["intervals"]["average"][METRIC]
        if x is None or value is None:
            continue
        reach = total.get("p95") if where == "latency" else None
        points.append(Point(series, told["name"], x, 100 * value, 100 * span[0], 100 * span[1], reach))
    return points


def scatter(name: str, points: Sequence[Point], title: str, x_title: str) -> str:
    """Accuracy with its interval over a cost; names stand in a column at the right, joined by a line."""
    if not points:
        return ""
    height, left, right, top, bottom = 330, 64, WIDTH - 230, 16, 330 - 54
    told = "; ".join(f"{p.name}: {p.y:.1f} ({p.low:.1f} to {p.high:.1f}) at {p.x:.3g}" for p in points)
    canvas = Canvas(name, WIDTH, height, title, f"DensityF1 against {x_title}. {told}.")
    x = Axis([0, *(max(p.x, p.reach or 0) for p in points)], (left, right), 6)
    y = Axis([v for p in points for v in (p.low, p.high)], (bottom, top))
    frame(canvas, x, y, x_title, "DensityF1, points")
    places = spread_labels([y(p.y) for p in points], 20, top + 6, bottom)
    for point, place in zip(points, places, strict=True):
        style, where = f"u{point.series % SERIES}", (x(point.x), y(point.y))
        ends = [max(min(y(v), bottom), top) for v in (point.low, point.high)]
        canvas.span((where[0], ends[0]), (where[0], ends[1]), style)
        if point.reach is not None:
            canvas.line(where, (x(point.reach), where[1]), f"tail {style}")
        canvas.line(where, (right + 14, place), "lead")
    for point, place in zip(points, places, strict=True):
        tip = f"{point.name}: {point.y:.2f} ({point.low:.2f} to {point.high:.2f}) at {point.x:.4g}"
        canvas.marker(point.series, x(point.x), y(point.y), tip)
        canvas.text(right + 18, place + 4.5, f"{short(point.name)}  {point.y:.1f}", "name")
    return canvas.render()


def frame(canvas: Canvas, x: Axis, y: Axis, x_title: str, y_title: str) -> None:
    """Grid, ticks and titles of two axes."""
    (left, right), (bottom, top) = x.pixels, y.pixels
    for value in y.ticks:
        canvas.line((left, y(value)), (right, y(value)), "grid")
        canvas.text(left - 8, y(value) + 4.5, f"{value:g}", "soft", "end")
    for value in x.ticks:
        canvas.line((x(value), bottom), (x(value), bottom + 5))
        canvas.text(x(value), bottom + 20, f"{value:g}", "soft", "middle")
    canvas.line((left, bottom), (right, bottom))
    canvas.text((left + right) / 2, bottom + 42, x_title, "", "middle")
    canvas.text(16, (bottom + top) / 2, y_title, "", "middle", turn=-90)


def legend(subjects: Sequence[Told]) -> str:
    """Which colour and shape is whose."""
    canvas, x, y = Canvas("legend", WIDTH, 0, "Legend", "Colour and shape of each subject."), 8.0, 14.0
    for series, told in enumerate(subjects):
        wide = 30 + CHARACTER_PX * len(short(told["name"]))
        if x > 8 and x + wide > WIDTH:
            x, y = 8.0, y + 22
        canvas.marker(series, x, y)
        canvas.text(x + 13, y + 4.5, short(told["name"]))
        x += wide
    canvas.height = y + 12
    return canvas.render()


def domain_bars(subjects: Sequence[Told]) -> str:
    """DensityF1 by domain, and for rejections the share said to be absent, with 95 % intervals."""
    rows = _domain_rows(subjects)
    if not rows:
        return ""
    tall, gap, left, right = 17, 16, 150, WIDTH - 62
    height = 12 + sum(len(bars) * tall + gap for _, bars in rows) + 40
    said = "; ".join(
        f"{name.strip()}: " + ", ".join(f"{subjects[s]['name']} {v:.1f}" for s, v, *_ in bars)
        for name, bars in rows
    )
    canvas = Canvas("domains", WIDTH, height, "Accuracy by domain", f"{said}.")
    x, top = Axis([0, 100], (left, right)), 12.0
    for value in x.ticks:
        canvas.line((x(value), 8), (x(value), height - 40), "grid")
        canvas.text(x(value), height - 22, f"{value:g}", "soft", "middle")
    canvas.text((left + right) / 2, height - 4, "points; rejection: percent said to be absent", "", "middle")
    for name, bars in rows:
        middle = top + len(bars) * tall / 2
        label, count = name.split("\n")
        canvas.text(left - 10, middle - 1, label, "name", "end")
        canvas.text(left - 10, middle + 14, count, "soft", "end")
        for series, value, low, high in bars:
            style = f"u{series % SERIES}"
            tip = f"{subjects[series]['name']}, {label}: {value:.1f} ({low:.1f} to {high:.1f})"
            canvas.bar(left, top + 2, x(value) - left, tall - 4, style, tip)
            canvas.span((x(low), top + tall / 2), (x(high), top + tall / 2), "over", 3)
            canvas.text(max(x(high), x(value)) + 7, top + tall / 2 + 4.5, f"{value:.1f}", "soft")
            top += tall
        top += gap
    canvas.line((left, 8), (left, height - 40))
    return canvas.render()


def _domain_rows(subjects: Sequence[Told]) -> list[tuple[str, list[tuple[int, float, float, float]]]]:
    """("name\\ncount", [(series, value, low, high)]) of every domain that has items."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for series, told in enumerate(subjects):
        for name, row in sorted(told["domain"].items()):
            span = told["intervals"]["domain"].get(name, {}).get(METRIC)
            if row[METRIC] is not None and span is not None:
                label = f"{name}\n{row['count']} items"
                found.setdefault(label, []).append((series, *(100 * v for v in (row[METRIC], *span))))
    for series, told in enumerate(subjects):
        share = told["rejected"]
        if share["value"] is not None:
            label = f"rejection\n{share['count']} items"
            values = (share["value"], share["low"], share["high"])
            found.setdefault(label, []).append((series, *(100 * v for v in values)))
    return list(found.items())


def differences(comparison: Told) -> str:
    """Each subject's DensityF1 minus the reference's, paired, with its interval and the gate."""
    pairs = [
        (place, pair) for place, pair in enumerate(comparison["pairs"], 1)
        if pair["difference"][METRIC]["value"] is not None
    ]  # fmt: skip
    if not pairs:
        return ""
    left, right, tall, height = 200, WIDTH - 190, 30, 30 * len(pairs) + 66
    told = "; ".join(f"{p['subject']}: {_changed(p['difference'][METRIC])}" for _, p in pairs)
    canvas = Canvas("differences", WIDTH, height, "Paired difference to the reference", f"{told}.")
    allowed = comparison.get("gate", {}).get("max_drop")
    values = [p["difference"][METRIC][key] for _, p in pairs for key in ("low", "high")]
    x = Axis([0, *values, *([] if allowed is None else [-allowed])], (left, right), 6)
    bottom = height - 54
    for value in x.ticks:
        canvas.line((x(value), 10), (x(value), bottom), "grid")
        canvas.text(x(value), bottom + 18, f"{value:+g}" if value else "0", "soft", "middle")
    canvas.line((x(0), 10), (x(0), bottom))
    if allowed is not None:
        canvas.line((x(-allowed), 10), (x(-allowed), bottom), "gate")
        canvas.text(x(-allowed), 8, "gate", "soft", "middle")
    name = comparison["subjects"][0]["name"]
    canvas.text((left + right) / 2, height - 10, f"DensityF1 points, minus {short(name)}", "", "middle")
    for row, (place, pair) in enumerate(pairs):
        y, change = 24 + row * tall, pair["difference"][METRIC]
        canvas.text(left - 12, y + 4.5, short(pair["subject"]), "name", "end")
        canvas.span((x(change["low"]), y), (x(change["high"]), y), f"u{place % SERIES}")
        canvas.marker(place, x(change["value"]), y, f"{pair['subject']}: {_changed(change)}")
        canvas.text(right + 12, y + 4.5, _changed(change), "soft")
    return canvas.render()


def _changed(figure: Told) -> str:
    return f"{figure['value']:+.2f} ({figure['low']:+.2f}…{figure['high']:+.2f})"
