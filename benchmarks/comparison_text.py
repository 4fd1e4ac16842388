"""A comparison in Markdown, for people.

Elsewhere the figures: comparison.py.
"""

from collections.abc import Iterator
from typing import Any

from rexthinker_edge.benchmarks.quality_text import shown

WORST_SHOWN = 5


def markdown(comparison: dict[str, Any]) -> str:
    """The whole comparison."""
    subjects = comparison["subjects"]
    lines = [f"# {' against '.join(s['name'] for s in reversed(subjects))}", ""]
    lines += [f"{subjects[0]['items']} items of {comparison.get('dataset', 'the same dataset')}.", ""]
    lines += [
        "| | DensityF1 | R | P | exact | rejected | ms an item (median) | tokens/s | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_subject(subject) for subject in subjects),
    ]
    for pair in comparison["pairs"]:
        lines += ["", *_pair(pair)]
    if "gate" in comparison:
        gate = comparison["gate"]
        lines += ["", f"## Gate: {'open' if gate['passed'] else 'closed'}", ""]
        lines += [f"- {failure}" for failure in gate["failures"]] or ["Nothing fails."]
    return "\n".join(lines) + "\n"


def _subject(told: dict[str, Any]) -> str:
    average = told["average"]
    cells = [_points(average[key]) for key in ("density_f1_mean", "recall_mean", "precision_mean")]
    cells += [shown(told["exact"]["all"]), shown(told["rejected"])]
    total = told["ms"].get("total")
    cells += ["–" if total is None else f"{total['p50']:,.0f}"]
    cells += ["–" if told["tokens_per_second"] is None else f"{told['tokens_per_second']:,.0f}"]
    cells += ["–" if told["peak_bytes"] is None else f"{told['peak_bytes'] / 2**20:,.0f} MiB"]
    return f"| {told['name']} | {' | '.join(cells)} |"


def _pair(pair: dict[str, Any]) -> Iterator[str]:
    yield f"## {pair['subject']} minus {pair['reference']}"
    yield ""
    for key, name in (
        ("density_f1_mean", "DensityF1"),
        ("recall_mean", "recall"),
        ("precision_mean", "precision"),
    ):
        yield f"- {name}: {_change(pair['difference'][key])}"
    exact = pair["exact"]
    yield (
        f"- exactly right: {shown(exact['subject'])}, the reference {shown(exact['reference'])}; only the "
        f"reference {exact['only_reference']}, only this one {exact['only_subject']} "
        f"(McNemar, exact: p = {exact['mcnemar_p']:.3g})"
    )
    yield f"- flips: {shown(pair['flips'])}; both found, other candidates: {pair['other_candidates']}"
    tokens, forced = pair["tokens"], pair["tokens"]["forced"]
    where = tokens["first_divergence_median"]
    apart = "" if where is None else f"; the others part at token {where:g} (median)"
    yield f"- the same token by token: {shown(tokens['same_answer_token_by_token'])}{apart}"
    if forced["count"]:
        yield (
            f"- led through the reference's answers: {100 * forced['same_top']:.2f} % of {forced['count']:,} "
            f"tokens would be chosen alike; KL {forced['kl_mean']:.2g} nats a token "
            f"(99th percentile {forced['kl_p99']:.2g}, most {forced['kl_max']:.2g})"
        )
    yield from _tables(pair)
    for item in pair["worst"][:WORST_SHOWN]:
        yield from _worst(item, pair)


def _tables(pair: dict[str, Any]) -> Iterator[str]:
    matrix = pair["flip_matrix"]
    names = list(matrix)
    yield from ("", f"| reference ↓ | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}")
    for name in names:
        yield f"| {name} | {' | '.join(str(matrix[name][other]) for other in names)} |"
    yield from (
        "",
        "| domain | items | DensityF1 | exact, reference | exact | flips |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    for name, row in pair["domains"].items():
        exact = row["exact"]
        yield (
            f"| {name} | {row['items']} | {_change(row['density_f1_mean'])} | {shown(exact['reference'])} | "
            f"{shown(exact['subject'])} | {shown(row['flips'])} |"
        )


def _worst(item: dict[str, Any], pair: dict[str, Any]) -> Iterator[str]:
    truth = "unknown" if item["truth"] is None else [k + 1 for k in item["truth"]]
    yield from ("", f"### Item {item['number']}: {item['referring']}", "")
    yield f"{item['image_name']}, {item['domain']}; the truth is {item['category']} {truth}."
    for side, name in enumerate((pair["reference"], pair["subject"])):
        said = [k + 1 for k in item["indices"][side]]
        yield from (
            "",
            f"{name}: {item['status'][side]} {said}",
            "",
            "````",
            item["text"][side].replace("````", "'''"),
            "````",
        )


def _change(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:+.2f} ({figure['low']:+.2f} to {figure['high']:+.2f})"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
