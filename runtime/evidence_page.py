"""Evidence as one HTML page that holds everything: pictures, marks, style; no script, font or network.

Layout    Per question a picture with numbered candidates and its thought. What is pointed at, a step, a line
          or a candidate, lights what belongs to it: CSS `:has`, so it works where scripts are forbidden.
Contract  Every text is escaped: a trace that holds markup is shown, not run. Light, dark, and print.
Elsewhere what is shown: evidence.py; the marks: marks.py; the same as a picture: evidence_picture.py.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from rexthinker_edge.runtime.draw import ANSWER, COLORS
from rexthinker_edge.runtime.evidence import Evidence, Line, lines, plain
from rexthinker_edge.runtime.marks import MARKS, SIDE, WORDS, pieces, to_svg
from rexthinker_edge.runtime.trace import Verdict

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #6a6a6a; --line: #d8d8d8;
  --lit: #fff3b0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --soft: #9a9a9a; --line: #3a3a3a; --lit: #4a4210 } }
* { box-sizing: border-box }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin: 0 0 .2rem }
.record { border-top: 1px solid var(--line); padding: 1.2rem 0; break-inside: avoid }
.notes { color: var(--soft); margin: 0 0 .8rem; font-size: .85rem } .notes b { font-weight: 600 }
.pair { display: flex; flex-wrap: wrap; gap: 1.4rem; align-items: flex-start }
.picture { flex: 1 1 26rem; min-width: 0; margin: 0 }
.picture svg { width: 100%; height: auto; display: block }
.trace { flex: 1 1 26rem; min-width: 0; font-size: .9rem }
.trace p { margin: 0; padding: .06rem .35rem; border-radius: .25rem; overflow-wrap: anywhere;
  white-space: pre-wrap }
.trace p.step { font-weight: 600; margin-top: .7rem }
.trace [tabindex] { cursor: default }
.trace [tabindex]:hover, .trace [tabindex]:focus { background: var(--lit) }
.mark { width: 1.05em; height: 1.05em; vertical-align: -.18em }
.candidate rect.box { fill: transparent; vector-effect: non-scaling-stroke; stroke-width: 2px }
.candidate.answer rect.box { stroke-width: 4px }
.candidate text { fill: #101010; font: 600 13px system-ui, sans-serif }
.candidate:hover rect.box { fill: rgba(255, 221, 64, .35) }
@media print { body { margin: 0; max-width: none } .trace [tabindex] { background: none } }
"""


def page(title: str, records: Iterable[Evidence]) -> str:
    """A whole page."""
    made = list(records)
    most = max((len(record.boxes) for record in made), default=0)
    marks = "".join(
        f'<symbol id="mark-{name}" viewBox="0 0 {SIDE:g} {SIDE:g}">{to_svg(name)}</symbol>' for name in MARKS
    )
    body = "".join(fragment(record) for record in made)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(plain(title))}</title><style>{STYLE}{light(most)}</style></head><body>"
        f'<svg width="0" height="0" aria-hidden="true" style="position:absolute">{marks}</svg>'
        f"<h1>{escape(plain(title))}</h1>{body}</body></html>\n"
    )


def light(candidates: int) -> str:
    """Style: what is pointed at lights its candidates, and a candidate the lines that name it."""
    rules = []
    for k in range(candidates):
        pointed = f".record:has(.trace .s{k}:is(:hover, :focus)) .c{k} rect.box"
        named = f".record:has(.c{k}:hover) .trace .s{k}"
        rules.append(
            f"{pointed}{{fill:rgba(255,221,64,.4);stroke-width:5px}}{named}{{background:var(--lit)}}"
        )
    return "".join(rules)


def fragment(record: Evidence, image: str | None = None) -> str:
    """One question: its picture, its thought. Goes into a page with `STYLE`, the marks and `light`.

    Args:
        image: SVG drawn below the boxes in place of the record's own picture, for pages that show one twice.
    """
    told = ((escape(plain(name)), escape(plain(value))) for name, value in record.notes)
    notes = " · ".join(f"<b>{name}</b> {value}" for name, value in told)
    thought = "".join(_line(line) for line in lines(record)) or "<p>There is no trace.</p>"
    return (
        f'<section class="record"><h2>{escape(plain(record.title))}</h2><p class="notes">{notes}</p>'
        f'<div class="pair"><figure class="picture">{_picture(record, image)}</figure>'
        f'<div class="trace">{thought}</div></div></section>'
    )


def _line(line: Line) -> str:
    classes = [f"s{k}" for k in line.candidates] + (["step"] if line.is_heading else [])
    focus = ' tabindex="0"' if line.candidates else ""
    return f'<p class="{" ".join(classes)}"{focus}>{marked(line.text) or "&nbsp;"}</p>'


def marked(text: str) -> str:
    """Escaped text whose marks are drawn."""
    made = []
    for piece, is_mark in pieces(text):
        label = f'role="img" aria-label="{WORDS[piece]}"' if is_mark else ""
        use = f'<svg class="mark" {label}><use href="#mark-{piece}"/></svg>'
        made.append(use if is_mark else escape(piece))
    return "".join(made)


def _picture(record: Evidence, image: str | None) -> str:
    width, height = record.size
    label = escape(plain(record.title), quote=True)
    drawn = image_of(record) if image is None else image
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{drawn}{boxes_of(record)}</svg>'
    )


def image_of(record: Evidence, name: str = "") -> str:
    """The picture as SVG, with `name` as its id where one is given; an empty frame without pixels."""
    width, height = record.size
    if record.pixels_HWC is None:
        return f'<rect width="{width}" height="{height}" fill="none" stroke="gray"/>'
    known = f'id="{name}" ' if name else ""
    return f'<image {known}width="{width}" height="{height}" href="{data_uri(record)}"/>'


def boxes_of(record: Evidence) -> str:
    """The candidates as SVG, the answers on top."""
    verdicts = record.verdicts()
    order = sorted(range(len(record.boxes)), key=lambda k: k in record.answers)
    return "".join(_candidate(record, k, verdicts[k], record.size) for k in order)


def _candidate(record: Evidence, index: int, verdict: Verdict, size: tuple[int, int]) -> str:
    x0, y0, x1, y1 = record.boxes[index]
    is_answer = index in record.answers
    color = f"rgb{ANSWER if is_answer else COLORS[verdict]}".replace(" ", "")
    scale = max(size) / 520  # labels keep their size on the page, whatever the picture's
    wide, tall = (9 + 8 * len(str(index + 1))) * scale, 17 * scale
    left, top = min(max(x0, 0), size[0] - wide), min(max(y0, 0), size[1] - tall)
    said = "the answer" if is_answer else verdict.value.replace("_", " ")
    sure = record.confidences[index] if index < len(record.confidences) else None
    said += "" if sure is None else f", verdict's confidence {sure:.3f}"
    return (
        f'<g class="candidate c{index}{" answer" if is_answer else ""}">'
        f"<title>{escape(plain(record.name(index)))}: {said}</title>"
        f'<rect class="box" x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}" stroke="{color}"/>'
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{wide:.2f}" height="{tall:.2f}" fill="{color}"/>'
        f'<text x="{left + 4.5 * scale:.2f}" y="{top + 13 * scale:.2f}" style="font-size:{13 * scale:.2f}px">'
        f"{index + 1}</text></g>"
    )


def data_uri(record: Evidence) -> str:
    """The picture inside the page: PNG while small, JPEG above half a megapixel."""
    assert record.pixels_HWC is not None, "no picture to hold"
    image, stream = Image.fromarray(record.pixels_HWC), BytesIO()
    small = image.width * image.height <= 500_000
    image.save(stream, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 90}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"


def pages_text(records: Sequence[Evidence]) -> str:
    """The same for a terminal."""
    told = []
    for record in records:
        told.append(
            f"{plain(record.title)}  ({', '.join(f'{name} {plain(value)}' for name, value in record.notes)})"
        )
        for k, box in enumerate(record.boxes):
            shown = ", ".join(f"{value:g}" for value in box)
            told.append(f"{'→' if k in record.answers else ' '} {plain(record.name(k))}  [{shown}]")
        told += ["", plain(record.thought), ""] if record.thought else [""]
    return "\n".join(told)
