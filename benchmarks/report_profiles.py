"""The report's charts of how answers came about: stages, drafting, confidence, coverage.

Contract  As report_charts.py: a figure nobody measured is not drawn, a chart without any returns "".
Elsewhere accuracy and its cost: report_charts.py; the figures: distributions.py; drawing: report_svg.py.
"""

from collections.abc import Sequence

from rexthinker_edge.benchmarks.report_charts import WIDTH, Told, frame, short
from rexthinker_edge.benchmarks.report_svg import SERIES, TEXT_PX, Axis, Canvas, spread_labels
from rexthinker_edge.benchmarks.report_tables import tokens_of

STAGES = ("image", "detect", "vision", "prefill", "generate")


def waterfall(subjects: Sequence[Told]) -> str:
    """Medians of the stages of an answer, one after the other; the whole below them."""
    timed = [(series, told) for series, told in enumerate(subjects) if "total" in told["ms"]]
    if not timed:
        return ""
    rows = {series: [s for s in STAGES if told["ms"].get(s, {}).get("p50")] for series, told in timed}
    tall, head, gap, left, right = 18, 24, 18, 110, WIDTH - 90
    height = sum(head + (len(rows[series]) + 1) * tall + gap for series, _ in timed) + 36
    said = "; ".join(f"{told['name']}: {told['ms']['total']['p50']:.0f} ms" for _, told in timed)
    canvas = Canvas("waterfall", WIDTH, height, "Where the time goes", f"Median of a whole answer: {said}.")
    ends = [sum(told["ms"][s]["p50"] for s in rows[series]) for series, told in timed]
    x, top = Axis([0, *ends, *(t["ms"]["total"]["p50"] for _, t in timed)], (left, right), 6), 4.0
    for value in x.ticks:
        canvas.line((x(value), 4), (x(value), height - 40), "grid")
        canvas.text(x(value), height - 22, f"{value:g}", "soft", "middle")
    canvas.text((left + right) / 2, height - 4, "milliseconds, medians", "", "middle")
    for series, told in timed:
        top = _cascade(canvas, x, top + head, series, told, rows[series], tall) + gap
    return canvas.render()


def _cascade(
    canvas: Canvas, x: Axis, top: float, series: int, told: Told, stages: Sequence[str], tall: float
) -> float:
    """One subject's stages below `top`, its name above; returns where they end."""
    canvas.marker(series, 8, top - 11)
    canvas.text(21, top - 6.5, told["name"], "name")
    begun, style = 0.0, f"u{series % SERIES}"
    for stage in stages:
        took = told["ms"][stage]["p50"]
        canvas.text(x.pixels[0] - 10, top + 13, stage, "soft", "end")
        canvas.bar(x(begun), top + 3, max(x(took) - x(0), 1), tall - 5, style, f"{stage}: {took:.1f} ms")
        canvas.text(x(begun + took) + 6, top + 13, f"{took:.1f}", "soft")
        begun += took
        top += tall
    whole = told["ms"]["total"]
    canvas.text(x.pixels[0] - 10, top + 13, "whole", "", "end")
    canvas.bar(x(0), top + 3, x(whole["p50"]) - x(0), tall - 5, f"{style} whole")
    canvas.text(x(whole["p50"]) + 6, top + 13, f"{whole['p50']:.1f}")
    return top + tall


def pass_histograms(subjects: Sequence[Told]) -> str:
    """How many tokens a decoder pass gave; one panel a subject, shares of its passes on one scale."""
    shown = [(s, told) for s, told in enumerate(subjects) if told["tokens_per_pass"]["bins"]]
    if not shown:
        return ""
    panel, left, right = 120, 64, WIDTH - 20
    height = panel * len(shown) + 44
    longest = max((told["tokens_per_pass"]["bins"] for _, told in shown), key=len)
    said = "; ".join(f"{told['name']}: {told['tokens_per_pass']['mean']:.2f} on average" for _, told in shown)
    canvas = Canvas("passes", WIDTH, height, "Tokens per decoder pass", f"{said}.")
    wide = (right - left) / len(longest)
    most = max(_most_passes(told["tokens_per_pass"]["bins"]) for _, told in shown)
    for place, (series, told) in enumerate(shown):
        top, mean = place * panel, told["tokens_per_pass"]["mean"]
        canvas.marker(series, left + 6, top + 14)
        canvas.text(left + 19, top + 18.5, f"{told['name']}: {mean:.2f} on average", "name")
        _pass_bars(canvas, told["tokens_per_pass"]["bins"], series, (left, top + panel - 12), wide, most)
        canvas.line((left, top + panel - 12), (right, top + panel - 12))
    for place, one in enumerate(longest):
        canvas.text(left + (place + 0.5) * wide, height - 38, tokens_of(one), "soft", "middle")
    canvas.text((left + right) / 2, height - 12, "tokens that a pass gave; share of the passes", "", "middle")
    return canvas.render()


def _pass_bars(
    canvas: Canvas, bins: Sequence[Told], series: int, origin: tuple[float, float], wide: float, most: float
) -> None:
    """One panel's bars, standing on `origin`; `most` is the share that is 62 px tall."""
    passes, tokens = (sum(one[of] for one in bins) for of in ("passes", "tokens"))
    for place, one in enumerate(bins):
        share, x = one["passes"] / passes, origin[0] + place * wide
        tall = 62 * share / most
        tip = (
            f"{tokens_of(one)} a pass: {one['passes']:,} passes, "
            f"{100 * one['tokens'] / tokens:.0f} % of all tokens"
        )
        canvas.bar(x + 2, origin[1] - tall, wide - 4, tall, f"u{series % SERIES}", tip)
        if one["passes"]:
            canvas.text(x + wide / 2, origin[1] - tall - 5, _percent(share), "soft", "middle")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _most_passes(bins: Sequence[Told]) -> float:
    """The largest share of passes in one bin."""
    passes = [one["passes"] for one in bins]
    return float(max(passes) / sum(passes))


def reliability_panel(series: int, told: Told, of: str) -> str:
    """Confidence against the share that was right; bars below tell how many. `of`: verdicts or answers."""
    figures = told["reliability"][of]
    if not figures["count"]:
        return ""
    name, size, left, top = f"reliability-{of}-{series}", 350, 58, 34
    right, bottom, strip = size - 14, 34 + 220, 40
    title = f"{told['name']}: confidence of {of} against truth"
    said = "; ".join(
        f"{b['confidence']:.2f}: {b['right']['value']:.2f} of {b['count']}" for b in figures["bins"]
    )
    canvas = Canvas(
        name, size, bottom + strip + 72, title, f"Calibration error {figures['error']:.3f}. {said}."
    )
    x, y = Axis([0, 1], (left, right)), Axis([0, 1], (bottom, top))
    canvas.marker(series, 14, 14)
    canvas.text(27, 18.5, f"{short(told['name'])}: error {figures['error']:.3f}", "name")
    for value in y.ticks:
        canvas.line((left, y(value)), (right, y(value)), "grid")
        canvas.text(left - 8, y(value) + 4.5, f"{value:g}", "soft", "end")
        canvas.text(x(value), bottom + strip + 26, f"{value:g}", "soft", "middle")
    canvas.line((x(0), y(0)), (x(1), y(1)), "gate")
    most = max(b["count"] for b in figures["bins"])
    for one in figures["bins"]:
        right_, place = one["right"], x(one["confidence"])
        canvas.span((place, y(right_["low"])), (place, y(right_["high"])), f"u{series % SERIES}")
        tip = f"{one['count']} {of} at {one['confidence']:.3f}: {100 * right_['value']:.1f} % right"
        canvas.marker(series, place, y(right_["value"]), tip, 4.5)
        tall = (strip - 6) * one["count"] / most
        edge = x(one["low"])
        canvas.bar(edge + 1, bottom + strip + 8 - tall, x(one["high"]) - edge - 2, tall, "count", tip)
    canvas.text((left + right) / 2, bottom + strip + 48, f"confidence; bars: number of {of}", "", "middle")
    canvas.text(14, (top + bottom) / 2, "share right", "", "middle", turn=-90)
    return canvas.render()


def risk_coverage(subjects: Sequence[Told]) -> str:
    """The error among the answers that are kept, surest first."""
    shown = [(series, told) for series, told in enumerate(subjects) if told["coverage"]]
    if not shown:
        return ""
    height, left, right, top, bottom = 320, 64, WIDTH - 230, 16, 320 - 54
    said = "; ".join(
        f"{t['name']}: {100 * t['coverage'][-1]['error']:.1f} % at full coverage" for _, t in shown
    )
    canvas = Canvas("coverage", WIDTH, height, "Error by coverage", f"{said}.")
    x = Axis([0, 100], (left, right))
    y = Axis([0, *(100 * p["error"] for _, t in shown for p in t["coverage"])], (bottom, top))
    frame(canvas, x, y, "answers kept, surest first, percent", "wrong among them, percent")
    ends = [y(100 * told["coverage"][-1]["error"]) for _, told in shown]
    for (series, told), end, place in zip(
        shown, ends, spread_labels(ends, TEXT_PX + 7, top + 6, bottom), strict=True
    ):
        line = [(x(100 * p["coverage"]), y(100 * p["error"])) for p in told["coverage"]]
        canvas.path(line, f"u{series % SERIES}")
        canvas.line((right, end), (right + 14, place), "lead")
        canvas.marker(series, *line[-1])
        canvas.text(right + 18, place + 4.5, short(told["name"]), "name")
    return canvas.render()
