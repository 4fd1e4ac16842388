"""The report as one HTML page that holds everything: no script, font, or address from elsewhere.

Layout    Sections in the order a reader asks: what came out, what was compared, accuracy against cost,
          domains, differences, time, confidence, what flipped, what the words mean.
Contract  Light and dark as the reader's system says, light in print. Every text from data is escaped.
          What was not recorded is said so, not left out.
Elsewhere charts: report_charts.py, report_profiles.py; tables: report_tables.py; pictures of thoughts:
          runtime/evidence_page.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rexthinker_edge.benchmarks import report_charts as charts
from rexthinker_edge.benchmarks import report_profiles as profiles
from rexthinker_edge.benchmarks import report_tables as tables
from rexthinker_edge.benchmarks.report_gallery import Flip
from rexthinker_edge.benchmarks.report_style import STYLE
from rexthinker_edge.benchmarks.report_svg import SERIES, safe
from rexthinker_edge.runtime import evidence_page
from rexthinker_edge.runtime.evidence import Evidence
from rexthinker_edge.runtime.marks import MARKS, SIDE, to_svg

WORST_SHOWN = 10
WORDS = {
    "DensityF1": "HumanRef’s measure: F1 of matched boxes, lowered where more boxes are given than asked "
    "for; here the mean over IoU 0.5 to 0.95, in points of 100, over items that have an answer.",
    "exactly right": "The true candidates and no other; for what is not there, saying so.",
    "flip": "Another status, or other candidates than the reference’s, right or wrong.",
    "KL, chosen alike": "The reference’s answers are given to the subject token by token: how far its "
    "expectation of each next token is from the reference’s, and how often it would choose the same.",
    "McNemar": "Whether the items that one of two alone answered right could be so uneven by chance.",
    "95 %": "Bootstrap over items, 2,000 resamples: it tells the spread of this sample, not of other data.",
    "peak memory": "The most that one process of the subject ever held resident, reading the data included.",
    "statuses": "found, absent (it looked, and nothing fits), no_candidates; and failures to answer, which "
    "are never counted as absent: malformed, truncated, timeout, ungrounded (a box that is no candidate).",
}

OF_PAIRS = ("flip", "KL, chosen alike", "McNemar")


def page(report: dict[str, Any], flips: Sequence[tuple[str, Sequence[Flip]]]) -> str:
    """The whole page."""
    most = max((len(s.boxes) for _, group in flips for flip in group for s in flip.sides), default=0)
    names = [subject["name"] for subject in report["subjects"]]
    title = f"{', '.join(names[1:])} against {names[0]}" if report["pairs"] else names[0]
    marks = "".join(
        f'<symbol id="mark-{name}" viewBox="0 0 {SIDE:g} {SIDE:g}">{to_svg(name)}</symbol>' for name in MARKS
    )
    style = f"{evidence_page.STYLE}{STYLE}{evidence_page.light(most)}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{style}</style></head><body>"
        f'<svg width="0" height="0" aria-hidden="true" style="position:absolute">{marks}</svg><main>'
        f"<h1>{safe(title)}</h1>{''.join(_sections(report, flips))}</main></body></html>\n"
    )


def _sections(report: dict[str, Any], flips: Sequence[tuple[str, Sequence[Flip]]]) -> Iterator[str]:
    yield from _opening(report)
    setting = (f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in tables.setting_lines(report))
    pairs = report["pairs"]
    yield f"<h2>What was {'compared' if pairs else 'asked'}</h2>{tables.subject_table(report).to_html()}"
    yield f'<dl class="words">{"".join(setting)}</dl>'
    yield f"<h2>Accuracy, and what it costs</h2>{tables.summary_table(report).to_html()}"
    yield from _costs(report["subjects"])
    yield _figure(
        "By domain", "DensityF1 averaged over IoU 0.5 to 0.95; the line on a bar is its 95 % interval.",
        charts.legend(report["subjects"]) + charts.domain_bars(report["subjects"]),
    )  # fmt: skip
    yield f"<h2>What the metric hides</h2>{tables.hidden_table(report).to_html()}"
    if pairs:
        yield "<h2>Difference to the reference, item by item</h2>"
        yield _figure(
            "DensityF1 lost or won", "Paired over the same items, with 95 % intervals; left of 0 is worse.",
            charts.differences(report),
        )  # fmt: skip
    for pair in pairs:
        yield from _pair(pair)
    yield from _times(report["subjects"])
    yield from _confidence(report)
    yield from _gallery(flips) if pairs else _wrong(flips)
    known = {word: meaning for word, meaning in WORDS.items() if pairs or word not in OF_PAIRS}
    words = (f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in known.items())
    yield f'<h2>Words</h2><dl class="words">{"".join(words)}</dl>'


def _opening(report: dict[str, Any]) -> Iterator[str]:
    """The answer first: what each subject lost, and whether the gate is open."""
    reference = report["subjects"][0]
    if not report["pairs"]:
        asked = f"{reference['items']:,} questions of <code>{safe(report['dataset'])}</code>"
        yield f'<p class="lead">{asked}, with 95 % intervals.</p>'
        return
    yield (
        f'<p class="lead">{reference["items"]:,} questions of <code>{safe(report["dataset"])}</code>, '
        f"asked alike of each; differences are to {safe(reference['name'])}, with 95 % intervals.</p>"
    )
    cards = []
    for place, pair in enumerate(report["pairs"], 1):
        change, flips = pair["difference"]["density_f1_mean"], pair["flips"]["value"]
        said = "–" if change["value"] is None else f"{change['value']:+.2f}"
        between = "" if change["value"] is None else f" ({change['low']:+.2f} to {change['high']:+.2f})"
        flipped = "–" if flips is None else f"{100 * flips:.1f} %"
        cards.append(
            f'<li><b class="u{place % SERIES}">{safe(pair["subject"])}</b>'
            f'<span class="big">{said}</span> DensityF1<br>'
            f'<span class="soft">{between.strip() or "no answerable item"}; '
            f"{flipped} of the answers flipped</span></li>"
        )
    yield f'<ul class="verdicts">{"".join(cards)}</ul>'
    yield from _gate(report["gate"])


def _gate(gate: dict[str, Any]) -> Iterator[str]:
    asked = {"max_drop": "at most {:g} points lost", "max_flips": "at most {:g} % flips",
             "min_same_top": "at least {:g} % of the tokens alike"}  # fmt: skip
    wanted = [
        text.format(gate[key] * (1 if key == "max_drop" else 100))
        for key, text in asked.items()
        if gate[key] is not None
    ]
    if not wanted and gate["passed"]:
        return
    state, style = ("open", "good") if gate["passed"] else ("closed", "bad")
    told = ", ".join(wanted) or "every item in both runs"
    yield f'<p>The gate ({told}) is <b class="{style}">{state}</b>.</p>'
    if gate["failures"]:
        yield f"<ul>{''.join(f'<li>{safe(failure)}</li>' for failure in gate['failures'])}</ul>"


def _pair(pair: dict[str, Any]) -> Iterator[str]:
    yield f"<h3>{safe(pair['subject'])} minus {safe(pair['reference'])}</h3>"
    yield f"<ul>{''.join(f'<li>{safe(line)}</li>' for line in tables.pair_lines(pair))}</ul>"
    yield '<p class="soft">Statuses: rows are the reference’s, columns what this one said.</p>'
    yield tables.matrix_table(pair).to_html() + tables.domain_table(pair).to_html()
    if pair["worst"]:
        yield '<p class="soft">The worst items first.</p>'
        yield tables.worst_table(pair, WORST_SHOWN).to_html()


def _figure(title: str, told: str, drawn: str, missing: str = "Not recorded.") -> str:
    body = f'<div class="wide">{drawn}</div>' if drawn else f'<p class="soft">{missing}</p>'
    return (
        f'<figure class="plot"><figcaption><b>{title}</b>{tables.written(told)}</figcaption>{body}</figure>'
    )


def _costs(subjects: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield _figure(
        "Accuracy against latency",
        "Upright lines are 95 % intervals of the accuracy; a dotted tail reaches the 95th percentile of the "
        "time. The accuracy axis does not begin at 0.",
        charts.scatter(
            "latency", charts.accuracy_points(subjects, "latency"), "Accuracy against latency",
            "milliseconds of a whole answer, median",
        ),
    )  # fmt: skip
    yield _figure(
        "Accuracy against bits",
        "Bits that one weight of the decoder takes, scales and zero points included.",
        charts.scatter(
            "bits", charts.accuracy_points(subjects, "bits"), "Accuracy against bits",
            "bits a weight of the decoder",
        ),
    )  # fmt: skip


def _times(subjects: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "<h2>Where the time goes</h2>"
    yield _figure(
        "Stages of an answer",
        "Medians over items, one stage after the other; given candidates need no detector. The whole is the "
        "median of what a caller waits.",
        profiles.waterfall(subjects),
    )
    yield _figure(
        "Tokens per decoder pass",
        "Every pass of every answer: how many tokens it gave. 1 is decoding without drafts.",
        profiles.pass_histograms(subjects),
    )


def _confidence(report: dict[str, Any]) -> Iterator[str]:
    subjects, missing = report["subjects"], tables.no_confidence(report)
    yield "<h2>Can its confidence be believed?</h2>"
    for of, told in (
        (
            "verdicts",
            "Each ✅ and ❌ of the thoughts, by the probability the model gave it.",
        ),
        ("answers", "Whole answers, found or absent, against being exactly right."),
    ):
        drawn = "".join(profiles.reliability_panel(k, told_, of) for k, told_ in enumerate(subjects))
        panels = f'<div class="panels">{drawn}</div>' if drawn else ""
        yield _figure(
            f"Reliability of {of}", f"{told} On the broken line confidence is what it claims.", panels,
            missing,
        )  # fmt: skip
    yield _figure(
        "Error by coverage", "What is still wrong when only the surest answers are kept.",
        profiles.risk_coverage(subjects), missing,
    )  # fmt: skip


def _once(side: Evidence, seen: dict[bytes, str]) -> str:
    """One side of a flip, its picture drawn from the first place of the page that holds it."""
    assert side.pixels_HWC is not None, "a flip is shown on its picture"
    known = repr(side.size).encode() + side.pixels_HWC.tobytes()
    if known in seen:
        return evidence_page.fragment(side, f'<use href="#{seen[known]}"/>')
    seen[known] = f"picture-{len(seen)}"
    return evidence_page.fragment(side, evidence_page.image_of(side, seen[known]))


def _gallery(flips: Sequence[tuple[str, Sequence[Flip]]]) -> Iterator[str]:
    seen: dict[bytes, str] = {}
    yield "<h2>What flipped</h2>"
    yield (
        '<p class="soft">The worst of each, the reference at the left. A flip is another status or other '
        "candidates. Green: answered; red: judged no match; amber: a reference. Point at a line of the "
        "thought, and its candidates light up.</p>"
    )
    for name, group in flips:
        yield f"<h3>{safe(name)}</h3>" if group else f"<h3>{safe(name)}</h3>{_soft('Nothing flipped.')}"
        yield from (_item(flip, seen) for flip in group)


def _wrong(groups: Sequence[tuple[str, Sequence[Flip]]]) -> Iterator[str]:
    seen: dict[bytes, str] = {}
    yield "<h2>Wrong answers</h2>"
    yield _soft(
        "The worst first. Green: answered; red: judged no match; amber: a reference. Point at a line of the "
        "thought, and its candidates light up."
    )
    if not any(group for _, group in groups):
        yield _soft("None to be drawn.")
    for _, group in groups:
        yield from (_item(flip, seen) for flip in group)


def _soft(text: str) -> str:
    return f'<p class="soft">{text}</p>'


def _item(flip: Flip, seen: dict[bytes, str]) -> str:
    sides = "".join(_once(side, seen) for side in flip.sides)
    return (
        f'<div class="flip"><h3>“{safe(flip.heading)}”</h3><p class="notes">{safe(flip.told)}</p>'
        f'<div class="sides">{sides}</div></div>'
    )
