"""Decoding of files that are damaged, truncated, not images or too large."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from mlops_img.preprocessing import decode
from mlops_img.preprocessing.decode import BadImageError, decode_rgb
from tests.helpers.shapes import draw_shape
from tests.preprocessing.test_decode import encoded, noise, oriented, png

# pytest resets the warning filters for each test, which removes the filter that decode.py sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_truncated_jpeg_is_rejected(jpeg: bytes, fraction: float) -> None:
    with pytest.raises(BadImageError, match=r"(?i)truncated"):
        decode_rgb(jpeg[: int(len(jpeg) * fraction)])


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9])
def test_truncated_png_is_rejected(fraction: float) -> None:
    data = encoded(Image.fromarray(noise(64, 64, 3)), "PNG")
    with pytest.raises(BadImageError, match=r"(?i)truncated"):
        decode_rgb(data[: int(len(data) * fraction)])


def test_png_with_a_changed_byte_is_rejected() -> None:
    data = bytearray(encoded(Image.fromarray(noise(64, 64, 3)), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImageError, match="broken data stream"):
        decode_rgb(bytes(data))


def test_empty_file_and_text_file_have_their_own_messages(tmp_path: Path) -> None:
    text = tmp_path / "page.jpg"
    text.write_text("<html>404 Not Found</html>")
    with pytest.raises(BadImageError, match=r"^empty file$"):
        decode_rgb(b"")
    with pytest.raises(BadImageError, match=r"^not an image$"):
        decode_rgb(text.read_bytes())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "ICO"])
def test_damaged_files_are_decoded_or_raise_bad_image_error(
    kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A damaged size may ask for gigabytes, and still be within the limit.
    monkeypatch.setattr(decode, "MAX_PIXELS", 10**6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6 // 2)
    generator = random.Random(kind)
    data = encoded(draw_shape("circle", 0), kind)
    reasons = []
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(min(len(damaged), 400))] = generator.randrange(256)
        if generator.random() < 0.3:
            del damaged[generator.randrange(len(damaged)) :]
        try:
            assert decode_rgb(bytes(damaged)).ndim == 3
        except BadImageError as error:
            reasons.append(str(error))
    assert reasons
    assert all(reason and "\n" not in reason for reason in reasons)
    capfd.readouterr()  # discard the messages that libtiff writes to stderr


# Size.


def test_a_180_megapixel_scan_is_decoded() -> None:
    data = encoded(Image.new("L", (13_400, 13_400)), "JPEG", exif=oriented(1))
    assert decode_rgb(data).shape == (13_400, 13_400, 3)


def test_size_limit_allows_a_180_megapixel_png() -> None:
    with pytest.raises(BadImageError, match="truncated"):  # and not "more than ... pixels"
        decode_rgb(png(13_400, 13_400, 8, 0, b""))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_decompression_bomb_is_rejected_by_its_header(kind: str) -> None:
    side = 40_000
    if kind == "PNG":
        data = png(side, side, 8, 2, b"")
    else:
        small = encoded(Image.new("RGB", (16, 16)), "JPEG")
        frame = small.index(b"\xff\xc0") + 5  # offset of height and width
        data = small[:frame] + 2 * side.to_bytes(2) + small[frame + 4 :]
    with pytest.raises(BadImageError, match="more than 536,870,912 pixels"):
        decode_rgb(data)


# Warnings.


def test_pillow_warnings_that_do_not_concern_pixels_are_suppressed(tmp_path: Path) -> None:
    image, path = Image.new("P", (4, 4)), tmp_path / "palette.png"
    image.save(path, transparency=bytes([128, 0]))
    decoding = f"from mlops_img.preprocessing.decode import decode_rgb; decode_rgb(open({str(path)!r}, 'rb').read())"
    opening = f"from PIL import Image; Image.open({str(path)!r}).convert('RGB')"
    outcomes = [
        subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
        for program in (decoding, opening)
    ]
    assert outcomes[0].returncode == 0, outcomes[0].stderr
    assert "UserWarning: Palette images with Transparency" in outcomes[1].stderr


def test_decoding_in_threads_is_deterministic_and_keeps_the_warning_filters() -> None:
    data = encoded(Image.new("P", (20, 20)), "PNG", transparency=bytes([128, 0]))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(decode_rgb, [data] * 200))
    assert list(warnings.filters) == before
    assert all((one == decoded[0]).all() for one in decoded)
