"""Evidence as page and picture: marks really drawn, every text escaped, nothing fetched."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from rexthinker_edge.runtime.evidence import Evidence, lines
from rexthinker_edge.runtime.evidence_page import page, pages_text
from rexthinker_edge.runtime.evidence_picture import PANEL_PX, TEXT_PX, picture_of, wrap
from rexthinker_edge.runtime.marks import AMBER, GREEN, MARKS, RED, draw_mark, pieces

THOUGHT = (
    "OK <script>alert(1)</script>\n- Step 1: look\n\n# Step 1: Look at the color.\n- Ball 1: red ✅\n"
    "- Ball 2: blue ❌\n- Ball 3: beside the mug ⚠️\n\n# Summarize and Re-Check answer\n"
    "- Ball 1: red → ✅\x1b[31m"
)
BOXES = ((0.0, 0.0, 20.0, 20.0), (30.0, 10.0, 60.0, 50.0), (70.0, 10.0, 99.0, 50.0))
PIXELS = np.full((60, 100, 3), 120, np.uint8)
RECORD = Evidence('the "red" <ball>', "ball", PIXELS, BOXES, frozenset({0}), THOUGHT, (("domain", "a&b"),))


class Tags(HTMLParser):
    """Every tag and attribute; unclosed ones show as a stack that is not empty."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "image", "rect", "use", "polygon", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_holds_everything_and_runs_nothing() -> None:
    text = page("two", [RECORD, RECORD])
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    names = [tag for tag, _ in parser.seen]
    assert "script" not in names
    assert "link" not in names
    references = [v for _, a in parser.seen for k, v in a.items() if k in ("href", "src", "xlink:href")]
    assert all(v and v.startswith(("data:image/png;base64,", "#mark-")) for v in references)
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", text)
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert "✅" not in text
    assert text.count('href="#mark-match"') == 4
    assert '<symbol id="mark-reference"' in text


def test_a_step_lights_its_candidates() -> None:
    told = list(lines(RECORD))
    assert [(line.step, line.is_heading, line.candidates) for line in told if line.text] == [
        (0, False, ()), (0, False, ()), (1, True, (0, 1, 2)), (1, False, (0,)), (1, False, (1,)),
        (1, False, (2,)), (2, True, (0,)), (2, False, (0,)),
    ]  # fmt: skip
    text = page("one", [RECORD])
    assert '<p class="s0 s1 s2 step" tabindex="0">Step 1: Look at the color.</p>' in text
    assert ".record:has(.trace .s2:is(:hover, :focus)) .c2 rect.box" in text
    assert 'class="candidate c0 answer"' in text
    assert '<p class="">&nbsp;</p>' in text


def test_marks_are_drawn_in_their_colors() -> None:
    assert pieces("a ✅⚠b⚠️") == [
        ("a ", False), ("match", True), ("reference", True), ("b", False), ("reference", True),
    ]  # fmt: skip
    for name, color in (("match", GREEN), ("no_match", RED), ("reference", AMBER)):
        image = Image.new("RGB", (40, 40), (255, 255, 255))
        draw_mark(ImageDraw.Draw(image), name, (4, 4), 32)
        seen = np.asarray(image)
        assert (seen == color).all(axis=2).mean() > 0.05
        assert (seen[:3] == 255).all(), "nothing outside its square"
        assert (seen[:, 37:] == 255).all()
    assert set(MARKS) == {"match", "no_match", "reference", "so"}


def test_the_picture_shows_boxes_and_marks() -> None:
    image = picture_of([RECORD, RECORD])
    assert image.width > 520 + PANEL_PX
    panel = np.asarray(image)[:, 540:]
    for color in (GREEN, RED, AMBER):
        assert (panel == color).all(axis=2).sum() > 20
    assert ((np.asarray(image)[:, :530] == (46, 204, 64)).all(axis=2)).sum() > 100  # the answer's box
    assert picture_of([Evidence("x", "ball", PIXELS, (), frozenset(), "")]).height > 0


def test_lines_are_wrapped() -> None:
    font = ImageFont.load_default(size=TEXT_PX)
    text = "a few words ✅ and " + "x" * 300
    rows = wrap(text, font, 200)
    assert "".join(rows).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(row.replace("✅", "  ")) <= 220 for row in rows)
    assert wrap("", font, 200) == []


def test_for_a_terminal() -> None:
    told = pages_text([RECORD])
    assert "→ Ball 1  [0, 0, 20, 20]" in told
    assert "\x1b" not in told
    with pytest.raises(StopIteration):
        next(lines(Evidence("x", "ball", PIXELS, (), frozenset(), "")))
