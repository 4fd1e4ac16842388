"""The report's tables and sentences, once, for the page and for Markdown.

Layout    A `Table` is plain cells; `to_html` and `to_markdown` write it. Functions take a comparison, a
          report or one of its pairs, and give tables or lines of text.
Contract  Shares in percent with their 95 % intervals, metrics in points. What nobody measured is "–".
Elsewhere the page: report_page.py; Markdown: comparison_text.py; the figures: comparison.py, figures.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rexthinker_edge.benchmarks.quality_text import shown
from rexthinker_edge.runtime.evidence import plain
from rexthinker_edge.runtime.evidence_page import marked

NONE = "–"
GROUNDING = {"union_iou": "areas answered and true, IoU", "point_f1": "centres of answers, one-to-one F1"}
Told = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells by row; the first column names, the others are figures unless `words`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    diagonal: bool = False  # the cell that has the row's own name at its head is marked

    def to_markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        lines = [f"| {' | '.join(self.head)} |", f"|{' --- |' * len(self.head)}"]
        return lines + [f"| {' | '.join(_piped(cell) for cell in row)} |" for row in self.rows]

    def to_html(self) -> str:
        """An element that scrolls within itself where the page is narrow."""
        kind = "" if self.words else ' class="n"'
        head = "".join(
            f'<th scope="col"{kind if place else ""}>{written(cell)}</th>'
            for place, cell in enumerate(self.head)
        )
        rows = "".join(f"<tr>{''.join(self._cells(row, kind))}</tr>" for row in self.rows)
        table = '<table class="long">' if self.words else "<table>"
        return f'<div class="scroll">{table}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'

    def _cells(self, row: Sequence[str], kind: str) -> Iterator[str]:
        yield f'<th scope="row">{written(row[0])}</th>'
        for place, cell in enumerate(row[1:], 1):
            own = self.diagonal and self.head[place] == row[0]
            yield f'<td class="{"n " if kind else ""}{"same" if own else ""}">{written(cell)}</td>'


def written(text: str) -> str:
    """Text for the page: escaped, its marks drawn, since not every reader has a font for them."""
    return marked(plain(text))


def _piped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def points(figure: Told | None) -> str:
    """ "+0.25 (-0.10 to +0.60)", a difference in points."""
    if figure is None or figure["value"] is None:
        return NONE
    return f"{figure['value']:+.2f} ({figure['low']:+.2f} to {figure['high']:+.2f})"


def megabytes(count: int | None) -> str:
    """Bytes as MiB."""
    return NONE if count is None else f"{count / 2**20:,.1f} MiB"


def _number(value: float | None, form: str = "{:,.1f}") -> str:
    return NONE if value is None else form.format(value)


def subject_table(report: Told) -> Table:
    """Who was compared: digest, recipe, what it ran on."""
    rows = []
    for told in report["subjects"]:
        identity, details = told["identity"], told["details"]
        recipe = details.get("quantisation") or {}
        parts = [f"{graph.removesuffix('.onnx')}: {said}" for graph, said in recipe.items()]
        card = details.get("calibration")
        if card:
            parts.append(f"calibration: {card['items']} samples of {card['source']}, seed {card['seed']}")
        rows.append(
            [
                told["name"],
                identity.get("kind", NONE),
                str(identity.get("digest", NONE))[:16],
                "; ".join(parts) or details.get("recipe", NONE),
                megabytes(details.get("bytes")),
                _number(details.get("decoder_bits"), "{:.2f}"),
                _runs_on(details),
            ]
        )
    head = ["subject", "kind", "digest", "recipe", "on disk", "decoder bits", "runs on"]
    return Table(head, rows, words=True)


def _runs_on(details: Told) -> str:
    names = {"onnxruntime": "ONNX Runtime", "torch": "torch", "bitsandbytes": "bitsandbytes"}
    said = [str(details["device"])] if "device" in details else []
    said += [f"{name} {details[key]}" for key, name in names.items() if key in details]
    if "threads" in details:
        said.append(f"{details['threads']} thread{'' if details['threads'] == 1 else 's'}")
    return ", ".join(said) or NONE


def setting_lines(report: Told) -> list[tuple[str, str]]:
    """(name, value) of the data, how it was asked and the machine; empty for a bare comparison."""
    if "machine" not in report:
        return []
    machine, asked = report["machine"], report["asked"]
    first, last = report["records"]
    how = "true candidates" if asked["boxes"] == "given" else "candidates of the bundle's own detector"
    how += (
        f", {asked['workers']} process{'' if asked['workers'] == 1 else 'es at once (times suffer from it)'}"
    )
    if asked["orders"]:
        how += f", each item again in {asked['orders']} other order{'' if asked['orders'] == 1 else 's'}"
    memory, load = machine["memory_bytes"], machine["load_average"]
    count, busy = (
        report["subjects"][0]["items"],
        "" if load is None else f", load average {load[2]:.1f} at the end",
    )
    versions = {name: version for name, version in machine["versions"].items() if version}
    return [
        ("data", f"{report['dataset']}, records {first:,} to {last - 1:,}; {count:,} asked"),
        ("questions", f"SHA-256 {report['questions'][:16]}… over words, boxes and answers"),
        ("asked", how),
        ("problems of the data", f"{len(report['problems'])}"),
        ("processor", f"{machine['processor']}, {machine['usable_cores']} cores{busy}"),
        ("memory", NONE if memory is None else f"{memory / 2**30:.0f} GiB"),
        ("system", machine["system"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("made", report["made"]),
    ]  # fmt: skip


def summary_table(report: Told) -> Table:
    """Accuracy, latency and memory of each, beside each other."""
    rows = []
    for told in report["subjects"]:
        average, span = told["average"], told["intervals"]["average"]["density_f1_mean"]
        between = f" ({100 * span[0]:.1f} to {100 * span[1]:.1f})" if span else ""
        total = told["ms"].get("total", {})
        rows.append(
            [
                told["name"],
                _points(average["density_f1_mean"]) + between,
                _points(average["recall_mean"]),
                _points(average["precision_mean"]),
                brief(told["exact"]["all"]),
                _number(total.get("p50")),
                _number(total.get("p95")),
                _number(told["tokens_per_second"], "{:,.0f}"),
                _memory(told),
            ]
        )
    head = ["subject", "DensityF1 (95 %)", "recall", "precision", "exactly right", "ms, median", "ms, 95th",
            "tokens/s", "peak memory"]  # fmt: skip
    return Table(head, rows)


def _memory(told: Told) -> str:
    own, beyond = told["peak_bytes"], told["device_peak_bytes"]
    return megabytes(own) if beyond is None else f"{megabytes(own)} + {megabytes(beyond)} on the GPU"


def tokens_of(one: Told) -> str:
    """ "5–6", a bin's tokens a pass."""
    if one["high"] is None:
        return f"{one['low']} up"
    return str(one["low"]) if one["low"] == one["high"] else f"{one['low']}–{one['high']}"


def _points(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def brief(figure: Told) -> str:
    """A share with its interval, without the count."""
    if figure["value"] is None:
        return NONE
    return f"{100 * figure['value']:.1f} % ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def hidden_table(report: Told) -> Table:
    """Statuses, rejections and over-rejections, agreement, order."""
    names = list(report["subjects"][0]["statuses"])
    rows = [
        ["absent, said of what is absent", *(brief(told["rejected"]) for told in report["subjects"])],
        ["absent, said of what is there", *(brief(told["over_rejected"]) for told in report["subjects"])],
        *(
            [name, *(brief(told["grounding"][key]) for told in report["subjects"])]
            for key, name in GROUNDING.items()
        ),
        ["thought and answer agree", *(brief(told["agreement"]["agree"]) for told in report["subjects"])],
        [
            "marked ✅, not answered",
            *(str(t["agreement"]["named_but_not_answered"]) for t in report["subjects"]),
        ],
        [
            "answered, not marked ✅",
            *(str(t["agreement"]["answered_but_not_named"]) for t in report["subjects"]),
        ],
        ["changed by another order of the hints", *(_order(told) for told in report["subjects"])],
    ]
    rows += [
        [f"status {name}", *(str(told["statuses"][name]) for told in report["subjects"])] for name in names
    ]
    rows.append(["could not be asked", *(str(told["unasked"]) for told in report["subjects"])])
    return Table(["", *(told["name"] for told in report["subjects"])], rows)


def _order(told: Told) -> str:
    return brief(told["order"]["changed"]) if told["order"]["turns"] else "not asked"


def no_confidence(report: Told) -> str:
    """Why nothing is told of confidence."""
    if report.get("asked", {}).get("boxes") == "detector":
        return "Not judged: the candidates are each subject's own, and no set of them is known to be true."
    return "Not recorded: these subjects tell no confidence."


def pair_lines(pair: Told) -> Iterator[str]:
    """What one subject lost against the reference, a line each."""
    for key, name in (
        ("density_f1_mean", "DensityF1"), ("recall_mean", "recall"), ("precision_mean", "precision"),
    ):  # fmt: skip
        yield f"{name}: {points(pair['difference'][key])}"
    exact = pair["exact"]
    yield (
        f"exactly right: {shown(exact['subject'])}, the reference {shown(exact['reference'])}; only the "
        f"reference {exact['only_reference']}, only this one {exact['only_subject']} "
        f"(McNemar, exact: p = {exact['mcnemar_p']:.3g})"
    )
    yield f"flips: {shown(pair['flips'])}; both found, other candidates: {pair['other_candidates']}"
    tokens, forced = pair["tokens"], pair["tokens"]["forced"]
    where = tokens["first_divergence_median"]
    apart = "" if where is None else f"; the others part at token {where:g} (median)"
    yield f"the same token by token: {shown(tokens['same_answer_token_by_token'])}{apart}"
    if forced["count"]:
        yield (
            f"led through the reference's answers: {100 * forced['same_top']:.2f} % of {forced['count']:,} "
            f"tokens would be chosen alike; KL {forced['kl_mean']:.2g} nats a token "
            f"(99th percentile {forced['kl_p99']:.2g}, most {forced['kl_max']:.2g})"
        )


def matrix_table(pair: Told) -> Table:
    """Statuses of the reference, and what the subject said instead."""
    names = list(pair["flip_matrix"])
    rows = [[name, *(str(pair["flip_matrix"][name][other]) for other in names)] for name in names]
    return Table(["reference ↓", *names], rows, diagonal=True)


def domain_table(pair: Told) -> Table:
    """Deltas by domain."""
    rows = [
        [name, str(row["items"]), points(row["density_f1_mean"]), brief(row["exact"]["reference"]),
         brief(row["exact"]["subject"]), brief(row["flips"])]
        for name, row in pair["domains"].items()
    ]  # fmt: skip
    return Table(["domain", "items", "DensityF1", "exact, reference", "exact", "flips"], rows)


def worst_table(pair: Told, most: int) -> Table:
    """The worst items first: where they part, and how far."""
    rows = []
    for item in pair["worst"][:most]:
        said = [
            f"{s or 'not asked'} {[k + 1 for k in i] or ''}"
            for s, i in zip(item["status"], item["indices"], strict=True)
        ]
        scores = item["density_f1_mean"]
        rows.append(
            [
                str(item["number"]),
                item["referring"],
                item["domain"],
                NONE if item["truth"] is None else str([k + 1 for k in item["truth"]]),
                *said,
                NONE if scores is None else f"{scores[0]:.0f} → {scores[1]:.0f}",
                NONE if item["first_divergence"] is None else str(item["first_divergence"]),
                _number(item["kl_max"], "{:.2g}"),
            ]
        )
    head = ["item", "expression", "domain", "truth", "reference", "this one", "DensityF1", "parts at token",
            "most KL"]  # fmt: skip
    return Table(head, rows, words=True)
