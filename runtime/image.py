"""A picture from whatever the caller has: upright, RGB, 8 bit.

Layout    `pixels_HWC` is (height, width, 3) uint8, EXIF orientation applied.
Contract  Transparent parts are laid over white (as qwen_vl_utils does); 16-bit grey is scaled by 255/65535;
          float grey is taken as 0..1, or as 0..255 where it goes above 1. Only the first frame is read.
          Nothing is decoded before its size is known to be within `MAX_PIXELS`.
Elsewhere the models' own pixels: qwen_pixels.py, dino_pixels.py.
Source    docs/sources.md#pictures
"""

import hashlib
import io
import os
import struct
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.errors import ImageError

MAX_PIXELS = 80_000_000
# Formats that are pictures and nothing else: EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_SPOILT = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error)
ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """One upright RGB picture."""

    pixels_HWC: NDArray[np.uint8]
    path: str | None  # as the caller wrote it; None when it came from memory
    sha256: str  # of shape and pixels, so equal pictures have equal digests whatever file they came in
    read_ms: float  # what reading and decoding took

    @property
    def width(self) -> int:
        return int(self.pixels_HWC.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels_HWC.shape[0])

    @property
    def size(self) -> Size:
        """(width, height) in pixels."""
        return self.width, self.height


Source = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | Picture


def read_picture(source: Source) -> Picture:
    """Read a picture from a path, file bytes, a PIL image or a (H, W, 3) uint8 RGB array.

    A `Picture` is returned as it is.

    Raises:
        ImageError: it is missing, empty, a directory, damaged, no picture, over `MAX_PIXELS`, or an array of
            another shape or dtype.
    """
    if isinstance(source, Picture):
        return source
    begun = time.monotonic()
    path = str(source) if isinstance(source, (str, os.PathLike)) else None
    pixels_HWC = np.ascontiguousarray(_pixels(source))
    digest = hashlib.sha256(repr(pixels_HWC.shape).encode() + pixels_HWC.tobytes()).hexdigest()
    pixels_HWC.flags.writeable = False
    return Picture(pixels_HWC, path, digest, (time.monotonic() - begun) * 1000)


def _pixels(source: object) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, Image.Image):
        _check_size("image", source.size)
        return _upright_rgb(source, "image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "image bytes")
    if isinstance(source, (str, os.PathLike)):
        return _decode(_file_bytes(Path(source)), str(source))
    raise ImageError(
        f"image: a {type(source).__name__}, "
        "but a path, bytes, a PIL image or a (H, W, 3) uint8 array is needed. Convert it first."
    )


def _checked_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"image array: {array.dtype} of shape {array.shape}, "
            "but uint8 of shape (H, W, 3) in RGB order is needed. Convert it first."
        )
    if 0 in array.shape:
        raise ImageError(
            f"image array: shape {array.shape} has no pixels, at least 1 x 1 is needed. Check the crop."
        )
    _check_size("image array", (array.shape[1], array.shape[0]))
    return array.copy()


def _file_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path}: a directory, but a picture file is needed. Name one in it.") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({error}). Check the path and its permissions.") from error
    if not content:
        raise ImageError(f"{path}: an empty file, but a picture is needed. Copy or download it again.")
    return content


def _decode(content: bytes, name: str) -> NDArray[np.uint8]:
    if not content:
        raise ImageError(f"{name}: empty, but an encoded picture is needed. Check where it comes from.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning: our limit is lower and is an error
            Image.init()  # a build of Pillow may lack a format
            known = [kind for kind in FORMATS if kind in Image.OPEN]
            image = Image.open(io.BytesIO(content), formats=known)
            _check_size(name, image.size)
            return _upright_rgb(image, name)
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, "more than twice Pillow's own limit of pixels")) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not a picture, or of an unknown format ({len(content):,} bytes). "
            f"Use one of {', '.join(FORMATS)}."
        ) from error
    except _SPOILT as error:
        raise _damaged(name, error) from error


def _check_size(name: str, size: Size) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(_too_large(name, f"{size[0]} x {size[1]} = {size[0] * size[1]:,} pixels"))
    if 0 in size:
        raise ImageError(
            f"{name}: {size[0]} x {size[1]} px has no pixels, at least 1 x 1 is needed. Check the crop."
        )


def _too_large(name: str, seen: str) -> str:
    return (
        f"{name}: {seen}, the limit is {MAX_PIXELS:,}. "
        "Scale it down first (the model sees about one megapixel)."
    )


def _upright_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
        rgb = _rgb(image, name)
    except _SPOILT as error:
        raise _damaged(name, error) from error
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name}: damaged or cut short ({error}). Copy it again, or save it anew in an image editor."
    )


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(np.asarray(image, dtype=np.float64), image.mode, name)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(values_HW: NDArray[np.float64], mode: str, name: str) -> Image.Image:
    if not np.isfinite(values_HW).all():
        raise ImageError(
            f"{name}: mode {mode} with values that are not finite, grey values are needed. Save it as 8 bit."
        )
    top = 65535.0
    if mode == "F":
        top = 1.0 if values_HW.max() <= 1 else 255.0
    if values_HW.min() < 0 or values_HW.max() > top:
        raise ImageError(
            f"{name}: mode {mode} with values from {values_HW.min():g} to {values_HW.max():g}, "
            f"0 to {top:g} is needed. Scale it to 8 bit first."
        )
    grey = np.rint(values_HW * (255 / top)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
