"""Pictures from anything, upright and RGB, or a clear refusal."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rexthinker_edge.runtime.errors import ImageError
from rexthinker_edge.runtime.image import MAX_PIXELS, read_picture

GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 20), np.arange(0, 180, 20)), axis=-1).astype(np.uint8)
RGB = np.concatenate([GRADIENT, np.full((9, 12, 1), 77, np.uint8)], axis=2)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_one_picture_from_every_source(tmp_path):
    path = tmp_path / "bench.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    pictures = [read_picture(s) for s in (path, str(path), path.read_bytes(), Image.open(path), RGB)]
    for picture in pictures:
        np.testing.assert_array_equal(picture.pixels_HWC, RGB)
        assert picture.size == (12, 9)
    assert len({picture.sha256 for picture in pictures}) == 1
    assert [picture.path for picture in pictures] == [str(path), str(path), None, None, None]
    assert read_picture(pictures[0]) is pictures[0]


def test_digest_tells_shape_and_pixels_apart():
    other = RGB.copy()
    other[3, 4, 1] += 1
    assert len({read_picture(a).sha256 for a in (RGB, other, RGB.reshape(12, 9, 3))}) == 3


def test_the_callers_array_is_not_shared():
    array = RGB.copy()
    picture = read_picture(array)
    array[:] = 0
    np.testing.assert_array_equal(picture.pixels_HWC, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """Undo each of the eight by its EXIF meaning: where row 0 and column 0 of the stored picture belong."""
    upright = RGB
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read_picture(content).pixels_HWC, upright)


def grey(mode: str) -> Image.Image:
    return Image.fromarray(RGB).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_common_modes(mode):
    expected = np.asarray(grey(mode).convert("RGB"))
    np.testing.assert_array_equal(read_picture(grey(mode)).pixels_HWC, expected)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("1", "PNG"), ("P", "GIF"), ("L", "WEBP")]
)
def test_modes_through_files(mode, kind):
    content = encoded(grey(mode), kind)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(read_picture(content).pixels_HWC, expected)


def test_transparency_is_laid_over_white():
    red = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    red.putpixel((1, 0), (200, 0, 0, 0))
    assert read_picture(red).pixels_HWC.tolist() == [[[200, 0, 0], [255, 255, 255]]]
    half = Image.new("LA", (1, 1), (100, 51))  # 100 at a fifth, white at four fifths: 224
    assert read_picture(half).pixels_HWC.tolist() == [[[224, 224, 224]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((1, 0), 1)
    content = encoded(palette, transparency=0)
    assert read_picture(content).pixels_HWC.tolist() == [[[255, 255, 255], [9, 8, 7]]]


def test_deep_grey_is_scaled():
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    for content in (encoded(Image.fromarray(deep)), encoded(Image.fromarray(deep), "TIFF")):
        assert read_picture(content).pixels_HWC[0, :, 0].tolist() == [0, 1, 128, 255]
    integers = Image.fromarray(deep.astype(np.int32))
    assert integers.mode == "I"
    assert read_picture(integers).pixels_HWC[0, :, 0].tolist() == [0, 1, 128, 255]
    assert read_picture(Image.fromarray(np.array([[0, 0.5, 1]], np.float32))).pixels_HWC[
        0, :, 0
    ].tolist() == [0, 128, 255]
    assert read_picture(Image.fromarray(np.array([[0, 99, 255]], np.float32))).pixels_HWC[
        0, :, 0
    ].tolist() == [0, 99, 255]


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises a picture of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_bombs_are_refused_before_they_are_decoded():
    with pytest.raises(ImageError) as caught:
        read_picture(bomb(10_000, 8_001))
    assert str(caught.value) == (
        "image bytes: 10000 x 8001 = 80,010,000 pixels, the limit is 80,000,000. "
        "Scale it down first (the model sees about one megapixel)."
    )
    with pytest.raises(
        ImageError, match="more than twice Pillow's own limit of pixels, the limit is 80,000,000"
    ):
        read_picture(bomb(100_000, 100_000))
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # or Pillow would warn where we should speak


def test_one_pixel():
    assert read_picture(np.full((1, 1, 3), 7, np.uint8)).size == (1, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_short(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    refused = 0
    for part in (0.2, 0.5, 0.9):
        with pytest.raises(ImageError, match=r"damaged or cut short|not a picture"):
            read_picture(whole[: int(len(whole) * part)])
        refused += 1
    assert refused == 3


def test_every_byte_of_a_small_picture_may_be_wrong():
    """Whatever one wrong byte does, it is a picture or an ImageError, never another exception."""
    whole = encoded(Image.fromarray(RGB), exif=_exif())
    for index in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[index] ^= 0xFF
        try:
            read_picture(bytes(spoilt))
        except ImageError:
            continue


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture at all")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    cases = [
        (tmp_path / "none.png", "none.png: no such file. Check the path."),
        (
            tmp_path / "empty.png",
            "empty.png: an empty file, but a picture is needed. Copy or download it again.",
        ),
        (tmp_path, ": a directory, but a picture file is needed. Name one in it."),
        (
            tmp_path / "text.png",
            "text.png: not a picture, or of an unknown format (20 bytes). Use one of JPEG, ",
        ),
        (postscript, "image bytes: not a picture, or of an unknown format"),
        (b"", "image bytes: empty, but an encoded picture is needed. Check where it comes from."),
        ("nul\0byte.png", "cannot be read (embedded null byte)"),
        (7, "image: a int, but a path, bytes, a PIL image or a (H, W, 3) uint8 array is needed."),
        (RGB.astype(np.float32), "image array: float32 of shape (9, 12, 3), but uint8 of shape (H, W, 3)"),
        (RGB[..., 0], "image array: uint8 of shape (9, 12), but uint8 of shape (H, W, 3)"),
        (RGB[:0], "image array: shape (0, 12, 3) has no pixels"),
        (Image.new("RGB", (0, 4)), "image: 0 x 4 px has no pixels"),
        (Image.fromarray(np.array([[np.nan]], np.float32)), "mode F with values that are not finite"),
        (
            Image.fromarray(np.array([[70000]], np.int32)),
            "mode I with values from 70000 to 70000, 0 to 65535",
        ),
        (
            Image.fromarray(np.array([[-1.0]], np.float32)),
            "image: mode F with values from -1 to -1, 0 to 1 is needed",
        ),
    ]
    for source, message in cases:
        with pytest.raises(ImageError, match=re.escape(message)):
            read_picture(source)
