"""A picture of the answer: every candidate with its number, coloured by its verdict.

Layout    Green and thick: the answer. Red, thin: no match. Amber: a reference. Grey: no verdict.
          Numbers count from 1, as the thought does. A label is dark on its box's colour, with a white rim.
Contract  The picture is never altered; a new one is returned. A file is written whole or not at all.
Elsewhere where verdicts come from: trace.py.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.image import Picture
from rexthinker_edge.runtime.result import Candidate, Result
from rexthinker_edge.runtime.trace import Verdict

Color = tuple[int, int, int]

ANSWER: Color = (46, 204, 64)
COLORS: dict[Verdict, Color] = {
    Verdict.MATCH: (160, 210, 130),  # marked as matching, yet not in the answer
    Verdict.NO_MATCH: (235, 77, 61),
    Verdict.REFERENCE: (255, 176, 0),
    Verdict.UNKNOWN: (176, 176, 176),
}
INK: Color = (16, 16, 16)
RIM: Color = (255, 255, 255)
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def draw_result(picture: Picture, result: Result) -> Image.Image:
    """Draw the candidates of a result on its picture, the answer on top.

    Returns:
        An RGB image of the upright picture's size.
    """
    assert picture.sha256 == result.image.sha256, "a result belongs to its own picture"
    image = Image.fromarray(picture.pixels_HWC.copy())
    draw_candidates(image, result.candidates, frozenset(result.indices))
    return image


def draw_candidates(image: Image.Image, candidates: Sequence[Candidate], chosen: frozenset[int]) -> None:
    """Draw candidates onto an image, the `chosen` (by index) on top; boxes are in its pixels."""
    draw = ImageDraw.Draw(image)
    thin = max(1, round(min(image.size) / 300))
    for candidate in sorted(candidates, key=lambda candidate: candidate.index in chosen):
        _draw_candidate(draw, image.size, candidate, candidate.index in chosen, thin)


def check_target(path: Path) -> None:
    """Say before the work whether a picture can be written there.

    Raises:
        OptionError: an unknown format, a missing directory, or a directory of that name.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(
            f"{path}: a picture ending in {path.suffix or 'nothing'}, one of {', '.join(FORMATS)} is needed. "
            "Rename it."
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        seen = "a directory of that name" if path.is_dir() else "its directory does not exist"
        raise OptionError(
            f"{path}: {seen}, a place for a file is needed. Choose another path or make the directory."
        )


def save_whole(image: Image.Image, path: Path) -> None:
    """Write an image beside its place and rename it into it.

    Raises:
        OptionError: it cannot be written there.
    """
    check_target(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            image.save(stream, format=FORMATS[path.suffix.lower()])
        umask = os.umask(0)
        os.umask(umask)
        Path(partial).chmod(0o666 & ~umask)
        Path(partial).replace(path)
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}). Choose another place.") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _draw_candidate(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], candidate: Candidate, chosen: bool, thin: int
) -> None:
    color = ANSWER if chosen else COLORS[candidate.verdict]
    width = 3 * thin if chosen else thin
    x0, y0 = (max(0, round(value)) for value in candidate.box[:2])
    x1 = min(size[0] - 1, max(x0, round(candidate.box[2]) - 1))
    y1 = min(size[1] - 1, max(y0, round(candidate.box[3]) - 1))
    x0, y0 = min(x0, x1), min(y0, y1)
    draw.rectangle((x0, y0, x1, y1), outline=color, width=width)
    font = ImageFont.load_default(size=max(10, round(min(size) / 28)))
    left, top, right, bottom = draw.textbbox((0, 0), str(candidate.index + 1), font=font)
    pad = max(1, thin)
    label_width, label_height = int(right - left) + 2 * pad + 2, int(bottom - top) + 2 * pad + 2
    corner_x = max(0, min(x0, size[0] - label_width))
    corner_y = max(0, min(y0, size[1] - label_height))
    corner = (corner_x, corner_y, corner_x + label_width - 1, corner_y + label_height - 1)
    draw.rectangle(corner, fill=color, outline=RIM)
    draw.text(
        (corner_x + pad + 1 - left, corner_y + pad + 1 - top), str(candidate.index + 1), fill=INK, font=font
    )
