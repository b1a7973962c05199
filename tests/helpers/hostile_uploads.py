"""Hostile uploads: hundreds of damaged, foreign and oversized files, the same in every run."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.shapes import draw_shape

Files = dict[str, bytes]

SIDE = 64
CUTS = 12
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive jpeg": ("JPEG", {"quality": 90, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg tiff": ("TIFF", {"compression": "jpeg"}),
}
# Pillow reads these formats too, but uploads must not reach its readers.
FOREIGN = ("AVIF", "DDS", "EPS", "ICNS", "ICO", "JPEG2000", "PCX", "PDF", "PPM", "QOI", "SGI", "TGA")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def picture() -> Image.Image:
    """Return an image with noise, which no format compresses to a tiny file."""
    image = draw_shape("circle", seed=7, side=SIDE)
    grain = np.random.default_rng(0).integers(-20, 20, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


@cache
def sound() -> Files:
    """Return the image in each of the supported formats."""
    return {name: encoded(picture(), kind, **options) for name, (kind, options) in KINDS.items()}


def cut_short() -> Files:
    """Return files truncated to at most nine tenths."""
    return {
        f"{name}, {part}/{CUTS}": data[: len(data) * part // CUTS]
        for name, data in sound().items()
        for part in range(1, CUTS - 1)
    }


def flipped() -> Files:
    """Return files with 1, 4, 16 or 64 bytes changed, anywhere or only in the header."""
    damaged = {}
    for place, (name, data) in enumerate(sound().items()):
        for seed in range(8):
            random = np.random.default_rng([1, place, seed])
            changed = np.frombuffer(data, np.uint8).copy()
            where = random.integers(0, len(data) if seed % 2 else min(len(data), 200), 4 ** (seed // 2))
            changed[where] ^= random.integers(1, 256, len(where), dtype=np.uint8)
            damaged[f"{name}, {len(where)} bytes, seed {seed}"] = changed.tobytes()
    return damaged


def zeroed() -> Files:
    """Return files in which a range is zeros, as after a broken transfer."""
    damaged = {}
    for place, (name, data) in enumerate(sound().items()):
        for seed in range(6):
            random = np.random.default_rng([2, place, seed])
            start = int(random.integers(0, len(data)))
            length = min(int(random.integers(16, len(data) // 3)), len(data) - start)
            damaged[f"{name}, {length} from {start}"] = data[:start] + bytes(length) + data[start + length :]
    return damaged


def with_wrong_magic() -> Files:
    """Return files whose first bytes belong to another format, or to none."""
    magic = {"jpeg": 3, "png": 8, "webp": 12, "gif": 6, "bmp": 2, "tiff": 4}
    files = sound()
    damaged = {
        f"{name} with the beginning of {other}": files[other][:length] + files[name][magic[name] :]
        for name in magic
        for other, length in magic.items()
        if name != other
    }
    damaged |= {f"{name} behind a blank": b" " + files[name] for name in magic}
    damaged |= {f"only the magic of {name}": files[name][:length] for name, length in magic.items()}
    return damaged


def no_images() -> Files:
    """Return files that are not images."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.png", sound()["png"])
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    entities = '<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><svg>&b;</svg>'
    return {
        "nothing": b"",
        "one byte": b"\x00",
        "zeros": bytes(100_000),
        "noise": np.random.default_rng(3).bytes(100_000),
        "text": b"This is a picture of a cat.",
        "html": b"<!doctype html><img src=x onerror=alert(1)>",
        "svg": svg.encode(),
        "xml with entities": entities.encode(),
        "zip": archive.getvalue(),
        "pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        "gzip": zlib.compress(sound()["png"], wbits=31),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(100),
        "mp4": b"\x00\x00\x00\x20ftypisom" + bytes(100),
        "shell": b"#!/bin/sh\nid\n",
        "mvg": b"push graphic-context\nfill 'url(https://127.0.0.1/x.jpg\"|id\")'\npop graphic-context",
    }  # fmt: skip


def foreign_formats() -> Files:
    """Return images of unsupported formats, and headers of some that Pillow cannot write."""
    files = {kind: encoded(picture(), kind) for kind in FOREIGN}
    return files | {
        "PSD": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, SIDE, SIDE, 8, 3) + bytes(200),
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "XPM": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #ffffff",\n"a"};',
        "FLI": struct.pack("<IHHHHHH", 128, 0xAF11, 1, SIDE, SIDE, 8, 0) + bytes(108),
        "CUR": b"\x00\x00\x02\x00\x01\x00" + bytes(100),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(100),
        "MPEG": b"\x00\x00\x01\xb3" + bytes(100),
        "SUN": b"\x59\xa6\x6a\x95" + bytes(100),
    }


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, *, depth: int = 1, color: int = 0, extra: bytes = b"") -> bytes:
    """Return a black PNG of any size, made with little memory.

    Args:
        width, height: in pixels.
        depth: bits per channel.
        color: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA.
        extra: chunks before the pixels.
    """
    row = bytes(1 + (width * depth * {0: 1, 2: 3, 4: 2, 6: 4}[color] + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def tiff(width: int, height: int, pixels: bytes = bytes(16), compression: int = 5, tile: int = 0) -> bytes:
    """Return a gray TIFF with any compression (5 is LZW, 8 is deflate) and any content, in one strip or tile."""
    tags = [(256, width), (257, height), (258, 8), (259, compression), (262, 1), (277, 1)]
    start = 8 + 2 + 12 * (len(tags) + (4 if tile else 3)) + 4
    if tile:
        tags += [(322, tile), (323, tile), (324, start), (325, len(pixels))]
    else:
        tags += [(273, start), (278, height), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def gif(width: int, height: int, frame: tuple[int, int]) -> bytes:
    """Return a GIF with any size of its screen and of its only frame."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + struct.pack("<BHHHHB", 0x2C, 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\0;"


def bmp(width: int, height: int, compression: int = 0, pixels: bytes = bytes(16)) -> bytes:
    """Return a BMP with a palette of two colors; with compression 1 its pixels are run-length encoded."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(pixels), 0, 0, 2, 0)
    head = struct.pack("<IHHI", 62 + len(pixels), 0, 0, 62)
    return b"BM" + head + header + b"\0\0\0\0\xff\xff\xff\0" + pixels


def webps(side: int) -> Files:
    """Return WebPs of any size. The lossless one is complete: with one color, any size takes the same 36 bytes."""
    one_color = encoded(Image.new("RGB", (8, 8), "red"), "WEBP", lossless=True)
    lossless = bytearray(one_color)
    lossless[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14 | lossless[24] >> 4 << 28)
    lossy = bytearray(sound()["webp"])
    lossy[26:30] = struct.pack("<HH", side, side)
    extended = bytearray(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP"))
    extended[24:30] = 2 * struct.pack("<I", side - 1)[:3]
    return {"lossless webp": bytes(lossless), "webp": bytes(lossy), "extended webp": bytes(extended)}


def too_many_pixels() -> Files:
    """Return small files with more pixels than memory; some only declare them, some contain them all."""
    jpeg = bytearray(sound()["jpeg"])
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65500, 65500)
    header_only = bytearray(sound()["png"])
    header_only[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    header_only[29:33] = struct.pack(">I", zlib.crc32(bytes(header_only[12:29])))
    return {
        "jpeg": bytes(jpeg),
        "png": png(20_000, 20_000),
        "png, one row": png(400_000_000, 1),
        "png, header only": bytes(header_only),
        "gif": gif(65535, 65535, (65535, 65535)),
        "gif, frame larger than its screen": gif(1, 1, (65535, 65535)),
        "bmp": bmp(60_000, 60_000),
        "bmp, upside down": bmp(60_000, -60_000),
        "bmp, run lengths": bmp(2**31 - 1, 2**31 - 1, 1, b"\0\2\xff\xff\0\1"),
        "tiff": tiff(60_000, 60_000),
        "tiff, deflate": tiff(20_000, 20_000, zlib.compress(bytes(400_000_000), 1), 8),
        "tiff, most that fits": tiff(2**32 - 1, 2**32 - 1),
        **webps(16383),
    }


def bombs_inside() -> Files:
    """Return images of a few pixels that contain, or declare, something very large."""
    much = zlib.compress(bytes(100_000_000), 9)
    text, profile = _chunk(b"zTXt", b"a\0\0" + much), _chunk(b"iCCP", b"a\0\0" + much)
    many = b"".join(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)) for _ in range(100))
    return {
        "png with a text": png(8, 8, extra=text),
        "png with many texts": png(8, 8, extra=many),
        "png with an international text": png(8, 8, extra=_chunk(b"iTXt", b"a\0\1\0\0\0" + much)),
        "png with a profile": png(8, 8, extra=profile),
        "png with a chunk that declares 2 GB": png(8, 8, extra=struct.pack(">I", 2**31 - 1) + b"tEXt"),
        "tiff with a huge tile": tiff(8, 8, tile=65_520),
        "tiff with a huge tile, deflate": tiff(8, 8, much, 8, tile=65_520),
        "tiff with the hugest tile": tiff(8, 8, tile=2**31),
        "tiff without pixels": tiff(0, 0),
        "tiff with 65535 tags": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(100),
        "bmp without pixels": bmp(0, 0),
        "jpeg with a thousand scans": progressive_jpeg(SIDE, scans=1000),
        "large jpeg with 10 MB of scans": progressive_jpeg(4000, scans=250_000),
    }


def progressive_jpeg(side: int, scans: int) -> bytes:
    """Return a valid gray JPEG with `scans` scans over all pixels, each of about 40 bytes."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    blocks = (-(-side // 8)) ** 2
    # Each table has only the code 0: "no difference" for the means, "the next 2^14 + n blocks are empty" for the rest.
    tables = b"".join(segment(0xC4, bytes([kind, 1, *bytes(15), code])) for kind, code in ((0, 0), (0x10, 0xE0)))
    size = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    means = segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8 + 1)
    bits = ""
    for start in range(0, blocks, 2**14):
        bits += "0" + format(max(0, min(2**14, blocks - start) - 2**14), "014b")
    bits += "1" * (-len(bits) % 8)
    rest = segment(0xDA, b"\1\1\0\1\x3f\0") + int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + segment(0xDB, bytes([0, *[1] * 64])) + size + tables + means + scans * rest + b"\xff\xd9"
