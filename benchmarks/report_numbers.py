"""What the page draws, as tables: the numbers of its charts for those who read Markdown.

Contract  The same figures as the charts'. What nobody measured is "–"; a table without any is None.
Elsewhere the charts: report_charts.py, report_profiles.py; other tables: report_tables.py; where they stand:
          comparison_text.py.
"""

from collections.abc import Sequence

from rexthinker_edge.benchmarks.report_charts import METRIC
from rexthinker_edge.benchmarks.report_tables import NONE, Table, Told, brief, tokens_of

STAGES = ("image", "detect", "vision", "prefill", "generate", "total")
COVERAGES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def domains(subjects: Sequence[Told]) -> Table:
    """DensityF1 by domain with its interval; of rejections the share said to be absent."""
    names = sorted({name for told in subjects for name in told["domain"]})
    rows = []
    for name in names:
        count = max(told["domain"].get(name, {}).get("count", 0) for told in subjects)
        rows.append([f"{name} ({count})", *(_domain(told, name) for told in subjects)])
    count = max(told["rejected"]["count"] for told in subjects)
    if count:
        rows.append([f"rejection ({count}), said to be absent", *(brief(t["rejected"]) for t in subjects)])
    return Table(["DensityF1 by domain (items)", *(told["name"] for told in subjects)], rows)


def _domain(told: Told, name: str) -> str:
    row, span = told["domain"].get(name), told["intervals"]["domain"].get(name, {}).get(METRIC)
    if row is None or row[METRIC] is None or span is None:
        return NONE
    return f"{100 * row[METRIC]:.1f} ({100 * span[0]:.1f} to {100 * span[1]:.1f})"


def stages(subjects: Sequence[Told]) -> Table:
    """Milliseconds of each stage, medians, and tokens a pass."""
    rows = []
    for told in subjects:
        cells = [told["ms"].get(stage) for stage in STAGES]
        mean = told["tokens_per_pass"]["mean"]
        rows.append(
            [
                told["name"],
                *(NONE if cell is None else f"{cell['p50']:.1f}" for cell in cells),
                NONE if mean is None else f"{mean:.2f}",
            ]
        )
    return Table(["ms, medians", *STAGES, "tokens a pass"], rows)


def passes(subjects: Sequence[Told]) -> Table | None:
    """The share of decoder passes that gave so many tokens."""
    shown = [told for told in subjects if told["tokens_per_pass"]["bins"]]
    if not shown:
        return None
    longest = max((told["tokens_per_pass"]["bins"] for told in shown), key=len)
    rows = []
    for told in shown:
        bins = told["tokens_per_pass"]["bins"]
        whole = sum(one["passes"] for one in bins)
        cells = [f"{100 * one['passes'] / whole:.1f} %" for one in bins]
        rows.append([told["name"], *cells, *([NONE] * (len(longest) - len(bins)))])
    return Table(["passes that gave … tokens", *map(tokens_of, longest)], rows)


def reliability(subjects: Sequence[Told], of: str) -> Table | None:
    """By confidence: how many, and the share that was right. `of`: verdicts or answers."""
    shown = [told for told in subjects if told["reliability"][of]["count"]]
    if not shown:
        return None
    lows = sorted({one["low"] for told in shown for one in told["reliability"][of]["bins"]})
    rows = []
    for low in lows:
        cells = []
        for told in shown:
            inside = [one for one in told["reliability"][of]["bins"] if one["low"] == low]
            cells.append(f"{brief(inside[0]['right'])} of {inside[0]['count']}" if inside else NONE)
        rows.append([f"{low:.1f} to {low + 0.1:.1f}", *cells])
    rows.append(["calibration error", *(f"{told['reliability'][of]['error']:.3f}" for told in shown)])
    return Table([f"{of} right, by confidence", *(told["name"] for told in shown)], rows)


def coverage(subjects: Sequence[Told]) -> Table | None:
    """How many are wrong among the surest answers."""
    shown = [told for told in subjects if told["coverage"]]
    if not shown:
        return None
    rows = []
    for share in COVERAGES:
        cells = []
        for told in shown:
            point = next(one for one in told["coverage"] if one["coverage"] >= share - 1e-9)
            cells.append(f"{100 * point['error']:.1f} % (of {100 * point['coverage']:.0f} %)")
        rows.append([f"{100 * share:.0f} %", *cells])
    return Table(["wrong among the surest …", *(told["name"] for told in shown)], rows)
