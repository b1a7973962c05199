"""Decoding: files of every mode and format that Pillow writes become the RGB that an image viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mlops_img.preprocessing import decode
from mlops_img.preprocessing.decode import BadImageError, decode_rgb
from tests.helpers.shapes import draw_shape

# pytest resets the warning filters for each test, which removes the filter that decode.py sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

ORIENTATION = 0x0112  # EXIF


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    exif[0x010F] = "a camera"
    return exif


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, color: int, rows: bytes) -> bytes:
    """Write a PNG of a color type and bit depth that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# Image modes.


def test_rgb_pixels_are_unchanged() -> None:
    pixels = noise(5, 7, 3)
    decoded = decode_rgb(encoded(Image.fromarray(pixels), "PNG"))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_gray_becomes_three_equal_channels(kind: str) -> None:
    gray = noise(5, 7)
    decoded = decode_rgb(encoded(Image.fromarray(gray), kind))
    np.testing.assert_array_equal(decoded, np.repeat(gray[:, :, None], 3, axis=2))


def test_rgba_is_composited_on_white() -> None:
    colors, alpha = noise(5, 7, 3), noise(5, 7, 1, seed=1)
    alpha[0, 0], alpha[0, 1] = 0, 255
    decoded = decode_rgb(encoded(Image.fromarray(np.concatenate([colors, alpha], axis=2)), "PNG"))
    share = alpha / 255
    assert difference(decoded, (colors * share + 255 * (1 - share)).round().astype(np.uint8)) <= 1
    np.testing.assert_array_equal(decoded[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(decoded[0, 1], colors[0, 1])


def test_gray_with_alpha_is_composited_on_white() -> None:
    image = Image.fromarray(np.stack([np.full((4, 4), 40, np.uint8), np.full((4, 4), 0, np.uint8)], axis=2), "LA")
    image.putpixel((1, 0), (40, 255))
    decoded = decode_rgb(encoded(image, "PNG"))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[0, 1].tolist() == [40, 40, 40]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_image_becomes_rgb(kind: str) -> None:
    picture = draw_shape("circle", 3)
    image = picture.quantize(16)
    np.testing.assert_array_equal(decode_rgb(encoded(image, kind)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(kind: str) -> None:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((2, 1), 0)
    decoded = decode_rgb(encoded(image, kind, transparency=0))
    assert decoded[1, 2].tolist() == [255, 255, 255]
    assert decoded[0, 0].tolist() == [200, 100, 50]


def test_palette_with_alpha_values_is_composited_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 100, 100, 100])
    image.putpixel((1, 0), 1)
    decoded = decode_rgb(encoded(image, "PNG", transparency=bytes([128, 0])))
    assert decoded[0, 0, 0] == pytest.approx(127, abs=1)
    assert decoded[0, 1].tolist() == [255, 255, 255]


def test_transparent_color_of_an_rgb_png_becomes_white() -> None:
    image = Image.new("RGB", (3, 1), (9, 8, 7))
    image.putpixel((0, 0), (1, 2, 3))
    assert decode_rgb(encoded(image, "PNG", transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [9, 8, 7], [9, 8, 7]]


def test_one_bit_becomes_black_and_white() -> None:
    bits = noise(9, 11) > 127
    decoded = decode_rgb(encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(decoded, np.where(bits, 255, 0)[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("color", ["red", "white", "black", "#3fa07c"])
def test_cmyk_jpeg_is_not_inverted(color: str) -> None:
    # Like Adobe's programs, Pillow writes inverted values, which decoders expect.
    image = Image.new("RGB", (32, 24), color).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert difference(decode_rgb(data), np.asarray(image.convert("RGB"))) <= 4


def test_cmyk_tiff_becomes_rgb() -> None:
    image = Image.fromarray(noise(5, 6, 4), "CMYK")
    np.testing.assert_array_equal(decode_rgb(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 12_850, 65_535, 128, 129]], np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert Image.open(io.BytesIO(data)).mode.startswith("I;16")
    assert decode_rgb(data)[0, :, 0].tolist() == [0, 1, 50, 255, 0, 1]


def test_16_bit_pgm_is_scaled_and_not_clipped() -> None:
    data = b"P5\n3 1\n65535\n" + np.array([0, 12_850, 65_535], ">u2").tobytes()
    assert Image.open(io.BytesIO(data)).mode == "I"
    assert decode_rgb(data)[0, :, 0].tolist() == [0, 50, 255]


def test_12_bit_pgm_is_scaled_by_its_own_maximum() -> None:
    data = b"P5\n3 1\n4095\n" + np.array([0, 2048, 4095], ">u2").tobytes()
    assert decode_rgb(data)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("color", "channels"), [(2, 3), (6, 4)], ids=["RGB", "RGBA"])
def test_16_bit_color_png_keeps_its_colors(color: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65_536, (4, 5, channels)).astype(">u2")
    values[:, :, 3:] = 65_535
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    decoded = decode_rgb(png(5, 4, 16, color, rows))
    assert difference(decoded, (values[:, :, :3] / 257).round().astype(np.uint8)) <= 1


def test_mode_i_image_in_memory_is_decoded_as_16_bits() -> None:
    image = Image.fromarray(np.array([[0, 257, 65_535]], np.int32))
    assert image.mode == "I"
    assert decode_rgb(image)[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("values", [[0, 70_000], [-5, 100]])
def test_values_outside_16_bits_are_rejected_and_not_clipped(values: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    with pytest.raises(BadImageError, match=f"from {values[0]} to {values[1]}"):
        decode_rgb(data)


def test_floating_point_pixels_are_rejected() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).random((4, 4), np.float32)), "TIFF")
    with pytest.raises(BadImageError, match="have no defined white"):
        decode_rgb(data)


# Orientation.


def stored_with(image: Image.Image, orientation: int) -> Image.Image:
    """Transform an upright image to what a camera stores with this orientation."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of the viewer's operation
    return image if orientation == 1 else image.transpose(Image.Transpose(back[orientation]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = draw_shape("stripes", 5)
    stored = stored_with(upright, orientation)
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_rgb(encoded(stored, kind, exif=oriented(orientation), **options))
    np.testing.assert_array_equal(decoded, np.asarray(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg_is_applied_exactly_as_by_pillow(orientation: int) -> None:
    upright = draw_shape("circle", 5)
    data = encoded(stored_with(upright, orientation), "JPEG", exif=oriented(orientation), quality=95)
    decoded = decode_rgb(data)
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert np.abs(decoded.astype(int) - np.asarray(upright)).mean() < 8


def test_exif_orientation_after_a_large_color_profile_is_applied() -> None:
    data = encoded(draw_shape("circle", 5), "JPEG", exif=oriented(6))
    start = data.index(b"Exif\0\0") - 4
    assert data[start : start + 2] == b"\xff\xe1"
    profile = b"\xff\xe2" + (65_535).to_bytes(2) + b"ICC_PROFILE\0" + bytes(65_521)
    np.testing.assert_array_equal(decode_rgb(data[:start] + 3 * profile + data[start:]), decode_rgb(data))


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_invalid_orientation_is_ignored(value: int) -> None:
    image = draw_shape("square", 1)
    plain, odd = encoded(image, "JPEG"), encoded(image, "JPEG", exif=oriented(value))
    np.testing.assert_array_equal(decode_rgb(odd), decode_rgb(plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", [b"junk", b"MM\0*", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_is_ignored(kind: str, block: bytes) -> None:
    image = draw_shape("square", 1)
    damaged = encoded(image, kind, exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode_rgb(damaged), decode_rgb(encoded(image, kind)))


# JPEGs decoded by libjpeg-turbo without Pillow.


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1), (7, 300)])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_pixels_equal_those_of_pillow(subsampling: str, size: tuple[int, int], progressive: bool) -> None:
    image = Image.fromarray(noise(size[1], size[0], 3))
    data = encoded(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    assert decode._decode_jpeg(data) is not None
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("options", [{"keep_rgb": True}, {"restart_marker_blocks": 1}, {"optimize": True}])
def test_pixels_of_unusual_jpegs_equal_those_of_pillow(options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(noise(40, 30, 3)), "JPEG", **options)
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(Image.open(io.BytesIO(data))))


def test_pixels_of_a_gray_jpeg_equal_those_of_pillow() -> None:
    data = encoded(Image.fromarray(noise(40, 30)), "JPEG")
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_jpeg_with_camera_exif_is_decoded_without_pillow() -> None:
    data = encoded(draw_shape("circle", 2), "JPEG", exif=oriented(1))
    assert decode._decode_jpeg(data) is not None


# Other file formats.


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_of_several_frames_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (12, 10), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["BMP", "PPM", "TIFF", "TGA", "WEBP", "JPEG2000", "QOI"])
def test_lossless_formats_give_the_same_pixels(kind: str) -> None:
    image = draw_shape("square", 4)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_rgb(encoded(image, kind, **options)), np.asarray(image))


def test_the_pillow_image_of_the_caller_is_not_changed() -> None:
    data = encoded(draw_shape("circle", 0).convert("RGBA"), "PNG", exif=oriented(6))
    image = Image.open(io.BytesIO(data))
    image.load()
    before = (image.mode, image.size, image.tobytes(), image.getexif()[ORIENTATION])
    decoded = decode_rgb(image)
    assert decoded.shape == (image.width, image.height, 3)
    decoded[:] = 0
    assert (image.mode, image.size, image.tobytes(), image.getexif()[ORIENTATION]) == before
