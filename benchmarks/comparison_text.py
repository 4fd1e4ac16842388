"""A comparison or a report in Markdown, for people; of one subject alone where it has no pairs.

Elsewhere the figures: comparison.py; its tables and sentences: report_tables.py, report_numbers.py; the same
          as a page: report_page.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rexthinker_edge.benchmarks import report_numbers as numbers
from rexthinker_edge.benchmarks import report_tables as tables

WORST_SHOWN = 5
OF = ("verdicts", "answers")


def markdown(comparison: dict[str, Any]) -> str:
    """The whole comparison; with machine and setting where it is a report."""
    subjects = comparison["subjects"]
    pairs = comparison["pairs"]
    lines = [f"# {' against '.join(s['name'] for s in reversed(subjects))}", ""]
    lines += [f"{subjects[0]['items']} items of {comparison.get('dataset', 'the same dataset')}.", ""]
    lines += [*tables.summary_table(comparison).to_markdown(), ""]
    lines += _gate(comparison)
    lines += [
        f"## What was {'compared' if pairs else 'asked'}",
        "",
        *tables.subject_table(comparison).to_markdown(),
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in tables.setting_lines(comparison)]
    lines += ["", "## By domain", "", *numbers.domains(subjects).to_markdown()]
    lines += ["", "## What the metric hides", "", *tables.hidden_table(comparison).to_markdown()]
    for pair in pairs:
        lines += ["", *_pair(pair)]
    if not pairs:
        lines += ["", *_wrong(comparison)]
    lines += ["", "## Where the time goes", "", *numbers.stages(subjects).to_markdown()]
    if (given := numbers.passes(subjects)) is not None:
        lines += ["", *given.to_markdown()]
    lines += ["", "## Confidence", "", *_confidence(comparison)]
    return "\n".join(lines) + "\n"


def _gate(comparison: dict[str, Any]) -> list[str]:
    if "gate" not in comparison:
        return []
    gate = comparison["gate"]
    lines = [f"## Gate: {'open' if gate['passed'] else 'closed'}", ""]
    return [*lines, *([f"- {failure}" for failure in gate["failures"]] or ["Nothing fails."]), ""]


def _pair(pair: dict[str, Any]) -> Iterator[str]:
    yield f"## {pair['subject']} minus {pair['reference']}"
    yield ""
    yield from (f"- {line}" for line in tables.pair_lines(pair))
    yield from ("", *tables.matrix_table(pair).to_markdown())
    yield from ("", *tables.domain_table(pair).to_markdown())
    for item in pair["worst"][:WORST_SHOWN]:
        yield from _shown(item, (pair["reference"], pair["subject"]))


def _wrong(comparison: dict[str, Any]) -> Iterator[str]:
    """What one subject alone did not answer exactly right."""
    yield "## Wrong answers"
    if not comparison["wrong"]:
        yield from ("", "None.")
    for item in comparison["wrong"][:WORST_SHOWN]:
        yield from _shown(item, [subject["name"] for subject in comparison["subjects"]])


def _shown(item: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """An item, and what each of `names` said of it."""
    truth = "unknown" if item["truth"] is None else [k + 1 for k in item["truth"]]
    yield from ("", f"### Item {item['number']}: {item['referring']}", "")
    yield f"{item['image_name']}, {item['domain']}; the truth is {item['category']} {truth}."
    if item.get("first_divergence") is not None:
        yield f"The answers part at token {item['first_divergence']}."
    for side, name in enumerate(names):
        said = [k + 1 for k in item["indices"][side]]
        yield from (
            "",
            f"{name}: {item['status'][side]} {said}",
            "",
            "````",
            item["text"][side].replace("````", "'''"),
            "````",
        )


def _confidence(comparison: dict[str, Any]) -> Iterator[str]:
    """How sure answers were and how often rightly, or that there is nothing to tell."""
    subjects = comparison["subjects"]
    found = [numbers.reliability(subjects, of) for of in ("verdicts", "answers")] + [
        numbers.coverage(subjects)
    ]
    told = [table for table in found if table is not None]
    if not told:
        yield tables.no_confidence(comparison)
    for place, table in enumerate(told):
        yield from ("",) * bool(place)
        yield from table.to_markdown()
