"""Evidence as one SVG file that holds everything: candidates on the left, the thought on the right.

Contract  No script, font or link: it opens wherever SVG does. Every text is escaped. Lines are wrapped by a
          fixed width of characters, for an SVG cannot measure its text.
Elsewhere what is shown: evidence.py; the same as a page: evidence_page.py, as pixels: evidence_picture.py.
"""

from html import escape

from rexthinker_edge.runtime.evidence import Evidence, lines, plain
from rexthinker_edge.runtime.evidence_page import boxes_of, data_uri
from rexthinker_edge.runtime.marks import pieces, to_svg

PICTURE_PX, PANEL_PX, PAD_PX, LINE_PX, TEXT_PX = 560, 560, 20, 19, 13
CHARACTER_PX = 7.9  # of the monospaced fonts at TEXT_PX, rounded up
COLUMNS = int(PANEL_PX / CHARACTER_PX)


def svg(record: Evidence) -> str:
    """The whole file."""
    width, height = record.size
    scale, rows = PICTURE_PX / max(width, height), _rows(record)
    tall = max(height * scale, len(rows) * LINE_PX) + 2 * PAD_PX
    wide = PICTURE_PX + PANEL_PX + 3 * PAD_PX
    image = "" if record.pixels_HWC is None else _image(record, width, height)
    line = f'stroke="#999" stroke-width="{1 / scale:g}"'
    frame = f'<rect width="{width}" height="{height}" fill="none" {line}/>'
    text = "".join(_row(words, bold, k) for k, (words, bold) in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:g}" height="{tall:g}" '
        f'viewBox="0 0 {wide:g} {tall:g}"><title>{escape(plain(record.title))}</title>'
        "<style>.box{fill:none}.candidate.answer .box{stroke-width:4px}.box{stroke-width:2px;"
        "vector-effect:non-scaling-stroke}text{font-family:ui-monospace,Menlo,Consolas,monospace}"
        ".candidate text{font-weight:600}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<g transform="translate({PAD_PX} {PAD_PX}) scale({scale:g})">{image}{frame}{boxes_of(record)}</g>'
        f'<g transform="translate({PICTURE_PX + 2 * PAD_PX} {PAD_PX})" font-size="{TEXT_PX}" fill="#1c1c1c">'
        f"{text}</g></svg>\n"
    )


def _image(record: Evidence, width: int, height: int) -> str:
    return f'<image width="{width}" height="{height}" href="{data_uri(record)}"/>'


def _rows(record: Evidence) -> list[tuple[str, bool]]:
    """Lines of the panel, wrapped, with whether each is bold."""
    notes = ", ".join(f"{name} {plain(value)}" for name, value in record.notes)
    told = [(plain(record.title), True), (notes, False), ("", False)]
    told += [(line.text, line.is_heading) for line in lines(record)]
    return [(part, bold) for words, bold in told for part in _wrapped(words)]


def _wrapped(text: str) -> list[str]:
    rows, row = [], ""
    for word in text.replace("\t", "    ").split(" "):
        cut = [word[k : k + COLUMNS] for k in range(0, len(word), COLUMNS)] or [""]
        for part in cut:
            if len(row) + 1 + len(part) > COLUMNS and row:
                rows.append(row)
                row = part
            else:
                row = f"{row} {part}" if row else part
    return [*rows, row]


def _row(text: str, bold: bool, number: int) -> str:
    """One line: text between its marks, each at the place its characters take."""
    made, column, base = [], 0.0, number * LINE_PX + TEXT_PX
    for piece, is_mark in pieces(text):
        x = column * CHARACTER_PX
        if is_mark:
            scale = TEXT_PX / 16
            place = f"translate({x:.1f} {base - TEXT_PX + 2:g}) scale({scale:g})"
            made.append(f'<g transform="{place}">{to_svg(piece)}</g>')
            column += 2
            continue
        weight = ' font-weight="700"' if bold else ""
        length = f' textLength="{len(piece) * CHARACTER_PX:.1f}" lengthAdjust="spacingAndGlyphs"'
        made.append(
            f'<text x="{x:.1f}" y="{base:g}" xml:space="preserve"{weight}{length}>{escape(piece)}</text>'
        )
        column += len(piece)
    return "".join(made)
