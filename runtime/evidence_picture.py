"""Evidence as one picture: candidates with numbers on the left, the thought with drawn marks on the right.

Contract  The font is Pillow's built-in one; what it has no glyph for shows as its empty box, marks never do.
          The picture is enlarged to at least `LEAST_PX` on its longer side, never reduced below its pixels.
Elsewhere what is shown: evidence.py; marks: marks.py; boxes: draw.py; the same as a page: evidence_page.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rexthinker_edge.runtime.draw import draw_candidates
from rexthinker_edge.runtime.evidence import Evidence, lines, plain
from rexthinker_edge.runtime.marks import draw_mark, pieces
from rexthinker_edge.runtime.result import Candidate

LEAST_PX, MOST_PX = 520, 1100
PANEL_PX, PAD_PX, TEXT_PX, LINE_PX = 620, 16, 14, 20
PAPER, INK, SOFT = (255, 255, 255), (24, 24, 24), (110, 110, 110)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Row:
    """One row of the panel."""

    text: str
    color: tuple[int, int, int] = INK
    gap: int = 0  # pixels above


def picture_of(records: Sequence[Evidence]) -> Image.Image:
    """All records, one below the other."""
    parts = [_one(record) for record in records]
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), PAPER)
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _one(record: Evidence) -> Image.Image:
    picture = Image.fromarray(_pixels(record))
    longer = max(picture.size)
    scale = min(max(1.0, LEAST_PX / longer), max(1.0, MOST_PX / longer))
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS) if scale != 1 else picture
    candidates = [
        Candidate(k, [value * scale for value in box], None, verdict)
        for k, (box, verdict) in enumerate(zip(record.boxes, record.verdicts(), strict=True))
    ]
    draw_candidates(picture, candidates, record.answers)
    font = ImageFont.load_default(size=TEXT_PX)
    rows = _rows(record, font)
    text_height = sum(row.gap + LINE_PX for row in rows)
    height = max(picture.height, text_height) + 2 * PAD_PX
    canvas = Image.new("RGB", (picture.width + PANEL_PX + 3 * PAD_PX, height), PAPER)
    canvas.paste(picture, (PAD_PX, PAD_PX))
    draw, top = ImageDraw.Draw(canvas), PAD_PX
    for row in rows:
        top += row.gap
        _write(draw, (picture.width + 2 * PAD_PX, top), row, font)
        top += LINE_PX
    return canvas


def _pixels(record: Evidence) -> NDArray[np.uint8]:
    assert record.pixels_HWC is not None, "a picture is drawn on pixels"
    return record.pixels_HWC


def _rows(record: Evidence, font: Font) -> list[Row]:
    made = [Row(text) for text in wrap(plain(record.title), font, PANEL_PX)]
    notes = ", ".join(f"{name} {plain(value)}" for name, value in record.notes)
    made += [Row(text, SOFT) for text in wrap(notes, font, PANEL_PX)]
    for line in lines(record):
        wrapped = wrap(line.text, font, PANEL_PX) or [""]
        gap = 8 if line.is_heading else 0
        made += [Row(text, gap=gap if k == 0 else 0) for k, text in enumerate(wrapped)]
    return made


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Cut a line at spaces so that each part is at most `width` pixels; a longer word is cut anywhere."""
    rows, row = [], ""
    for word in text.replace("\t", "    ").split(" "):
        joined = f"{row} {word}" if row else word
        if _length(joined, font) <= width:
            row = joined
            continue
        if row:
            rows.append(row)
        row = word
        while _length(row, font) > width:
            cut = next((k for k in range(len(row), 1, -1) if _length(row[:k], font) <= width), 1)
            rows.append(row[:cut])
            row = row[cut:]
    return [*rows, row] if row else rows


def _length(text: str, font: Font) -> float:
    return sum(TEXT_PX + 2 if is_mark else font.getlength(piece) for piece, is_mark in pieces(text))


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], row: Row, font: Font) -> None:
    x: float = place[0]
    for piece, is_mark in pieces(row.text):
        if is_mark:
            draw_mark(draw, piece, (x, place[1] + 1), TEXT_PX + 1)
            x += TEXT_PX + 2
        else:
            draw.text((x, place[1]), piece, fill=row.color, font=font)
            x += font.getlength(piece)
