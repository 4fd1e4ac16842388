"""A quality report as lines for people; metrics and shares in percent.

Elsewhere the report: figures.py.
"""

from typing import Any

COLUMNS = {
    "recall_50": ("R@.5", 7),
    "recall_mean": ("R", 7),
    "precision_50": ("P@.5", 7),
    "precision_mean": ("P", 7),
    "density_f1_50": ("DF1@.5", 8),
    "density_f1_mean": ("DF1", 7),
}


def describe(whole: dict[str, Any]) -> list[str]:
    """Tables, and what a run tells besides where `whole` is one."""
    head = "".join(f"{name:>{width}}" for name, width in COLUMNS.values())
    lines = [f"{'':<26}{head}{'items':>7}   DF1, 95 %"]
    rows = {"all": whole["average"]} | whole["domain"]
    rows |= {f"  {name}": row for name, row in whole["subdomain"].items()}
    rows |= {f"{name} answers": row for name, row in whole["box_count"].items()}
    spans = {"all": whole["intervals"]["average"]} | whole["intervals"]["domain"]
    lines += [_row(name, row, spans.get(name)) for name, row in rows.items()]
    areas, centres = (shown(whole["grounding"][key]) for key in ("union_iou", "point_f1"))
    lines.append(
        f"where the answers lie: IoU of the areas covered {areas}, one-to-one F1 of centres {centres}"
    )
    told = whole["rejection"]
    lines.append(
        f"rejections: {told['correct']} of {told['total']} correct, "
        f"{told['unanswered']} without a usable answer"
    )
    if whole.get("unpredicted"):
        lines.append(f"no prediction of {whole['unpredicted']} items; where there is an answer they score 0")
    return lines + (_run_lines(whole) if "statuses" in whole else [])


def _run_lines(whole: dict[str, Any]) -> list[str]:
    statuses = [f"{name} {count}" for name, count in whole["statuses"].items()]
    statuses += [f"not asked {whole['unasked']}"] if whole["unasked"] else []
    agreement, order = whole["agreement"], whole["order"]
    lines = [
        f"statuses: {', '.join(statuses)}",
        f"said to be absent, of what is absent: {shown(whole['rejected'])}",
        f"said to be absent, of what is there: {shown(whole['over_rejected'])}",
        f"exact answer: {shown(whole['exact']['all'])}",
        f"thought and answer agree: {shown(agreement['agree'])}; "
        f"named but not answered {agreement['named_but_not_answered']}, "
        f"answered but not named {agreement['answered_but_not_named']}",
    ]
    if order["turns"]:
        lines.append(f"changed by another order of the hints: {shown(order['changed'])}")
    return lines


def _row(name: str, row: dict[str, Any], span: dict[str, Any] | None) -> str:
    cells = "".join(
        f"{'–' if row[key] is None else f'{100 * row[key]:.1f}':>{width}}"
        for key, (_, width) in COLUMNS.items()
    )
    interval = span and span["density_f1_mean"]
    between = f"   {100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""
    return f"{name[:25]:<26}{cells}{row['count']:>7}{between}"


def shown(figure: dict[str, Any]) -> str:
    """A share with its interval, in words."""
    if figure["value"] is None:
        return "no items"
    value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f}) of {figure['count']}"
