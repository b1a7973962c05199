"""Hostile requests: invalid forms, framing and paths instead of a form with an image."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

from tests.helpers.hostile_uploads import sound
from tests.helpers.raw_http import FORM, form, part, request

Requests = dict[str, bytes | Iterable[bytes]]

MEGABYTE = 2**20
CHARSETS = ("undefined", "punycode", "utf-16", "zlib", "hex", "idna", "nonsense", "unicode_escape")


def image(**options: bytes | None) -> bytes:
    """Return the part of a form with a valid image."""
    return part(sound()["png"], **options)


def good() -> bytes:
    """Return a valid request."""
    return request(form(image()))


def wrong_top_k() -> Requests:
    """Return requests with an invalid number of classes."""
    values = ("0", "-1", "1e9", "1000000000", "9" * 30, "9" * 5000, "abc", "", " ", "\0", "5\0", "1.5", "nan", "inf")
    more = ("٣", "0x5", "true", "null", "5;ls", "[5]", '{"a": 5}', "1_0_0_0_0")
    requests = {
        f"{value[:20]!r}": request(form(image(), part(value.encode(), b"top_k", None))) for value in (*values, *more)
    }
    requests |= {
        f"in the character set {name}": request(
            form(image(), part(b"\xff5\xfe", b"top_k", None)), Content_Type=f"{FORM}; charset={name}"
        )
        for name in CHARSETS
    }
    requests["as a file"] = request(form(image(), part(b"3", b"top_k")))
    requests["twice"] = request(form(image(), part(b"3", b"top_k", None), part(b"4", b"top_k", None)))
    requests["in the address"] = request(form(image()), line="POST /predict?top_k=3 HTTP/1.1")
    return requests


def wrong_forms() -> Requests:
    """Return forms that are malformed, lack the image, or exceed a limit."""
    whole = form(image())
    parts = {
        "wrong field": [part(sound()["png"], b"file")],
        "field of the other route": [part(sound()["png"], b"images")],
        "two files": [image(), image()],
        "a file and a text": [image(), part(b"x", filename=None)],
        "a text instead": [part(b"x", filename=None)],
        "an unknown field too": [image(), part(b"3", b"topk", None)],
        "no parts": [],
        "no name": [b'Content-Disposition: form-data; filename="a"\r\n\r\nx'],
        "no disposition": [b"Content-Type: image/png\r\n\r\nx"],
        "no empty line": [b'Content-Disposition: form-data; name="image"; filename="a"'],
        "broken disposition": [b'Content-Disposition: form-data; name="image; filename=\r\n\r\nx'],
        "header without colon": [b"Content-Disposition\r\n\r\nx"],
        "a null byte in the name": [part(sound()["png"], b"ima\0ge")],
        "file name of 100 kB": [image(filename=b"a" * 100_000)],
        "file name of 2 MB": [image(filename=b"../" * 700_000)],
        "thousands of fields": [*(part(b"x", b"f%d" % number, None) for number in range(5000)), image()],
        "thousands of files": [*(part(b"x", b"f%d" % number) for number in range(2000)), image()],
        "thousands of headers": [b"".join(b"X-%d: y\r\n" % number for number in range(5000)) + image()],
        "a text of 5 MB": [part(b"x" * 5_000_000, b"top_k", None), image()],
    }
    requests: Requests = {name: request(form(*content)) for name, content in parts.items()}
    types = {
        "missing boundary": "multipart/form-data",
        "wrong boundary": "multipart/form-data; boundary=other",
        "empty boundary": "multipart/form-data; boundary=",
        "boundary of 5 kB": f"multipart/form-data; boundary={'b' * 5000}",
        "boundary that is not ASCII": "multipart/form-data; boundary=\xe9\xff",
        "other multipart": "multipart/mixed; boundary=edge",
        "nearly multipart": "multipart/form-datax; boundary=edge",
        "no type": "",
    }
    requests |= {name: request(whole, Content_Type=kind) for name, kind in types.items()}
    requests |= {f"without its last {bytes_} bytes": request(whole[:-bytes_]) for bytes_ in (11, 100, len(whole) - 10)}
    requests["no body"] = request()
    requests["the image alone"] = request(sound()["png"], Content_Type="image/png")
    requests["the image under the form's name"] = request(sound()["png"])
    return requests


def other_types(address: str) -> Requests:
    """Return bodies of other content types, many with a URL instead of an image."""
    body = json.dumps({"image": address, "url": address, "top_k": 1}).encode()
    bodies = {
        "application/json": body,
        "application/vnd.bentoml+pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "application/octet-stream": sound()["png"],
        "application/x-www-form-urlencoded": f"image={address}&top_k=1".encode(),
        "text/plain": address.encode(),
        "text/uri-list": address.encode(),
        "image/svg+xml": f'<svg><image href="{address}"/></svg>'.encode(),
        "application/xml": f'<!DOCTYPE x [<!ENTITY a SYSTEM "{address}">]><x>&a;</x>'.encode(),
        f'message/external-body; access-type=URL; URL="{address}"': b"",
    }
    return {kind.split(";")[0]: request(body, Content_Type=kind) for kind, body in bodies.items()}


def addresses(address: str) -> Requests:
    """Return forms with a URL instead of an image."""
    svg = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{address}"/></svg>'
    texts = {
        "field": part(address.encode(), filename=None),
        "file": part(address.encode(), filename=address.encode()),
        "svg": part(svg.encode(), filename=b"a.svg"),
        "playlist": part(f"#EXTM3U\n{address}\n".encode(), filename=b"a.m3u8"),
        "postscript": part(f"%!PS-Adobe-3.0 EPSF-3.0\n({address}) (r) file\n".encode(), filename=b"a.eps"),
        "magick": part(f"url({address})".encode(), filename=b"a.mvg"),
        "part with a location": f"Content-Location: {address}\r\n".encode() + part(b"", filename=b"a.png"),
        "url field": part(address.encode(), b"url", None),
    }
    requests: Requests = {f"address as {name}": request(form(text)) for name, text in texts.items()}
    requests["address in the query"] = request(form(), line=f"POST /predict?image={address} HTTP/1.1")
    return requests


def wrong_lengths() -> Requests:
    """Return requests whose length is wrong or too large."""
    whole = form(image())
    values = ("-5", "+5", "abc", "1e3", "0x10", "1 2", "5,5", " ", "9" * 30, "\xb2")
    requests: Requests = {f"length {value[:10]!r}": request(whole, length=value) for value in values}
    requests["two lengths"] = request(whole, content_length="5")
    requests["length and chunks"] = request(b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked")
    encodings = {"gzip": whole, "chunked, identity": b"0\r\n\r\n", "xchunked": whole}
    for name, body in encodings.items():
        requests[f"transfer encoding {name}"] = request(body, length=None, Transfer_Encoding=name)
    chunks = {
        "no chunks": b"0\r\n\r\n",
        "chunks that are no form": b"5\r\nhello\r\n0\r\n\r\n",
        "chunk of no size": b"zz\r\nhello\r\n0\r\n\r\n",
        "chunk of negative size": b"-5\r\nhello\r\n0\r\n\r\n",
        "chunk of enormous size": b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n",
        "chunk longer than it says": b"2\r\nhello\r\n0\r\n\r\n",
    }
    for name, body in chunks.items():
        requests[name] = request(body, length=None, Transfer_Encoding="chunked")
    start = form(image())[: -len("\r\n--edge--\r\n")]
    requests["chunks of 100 MB"] = itertools.chain(
        [request(length=None, Transfer_Encoding="chunked"), b"%x\r\n%s\r\n" % (len(start), start)],
        itertools.repeat(b"%x\r\n%s\r\n" % (MEGABYTE, bytes(MEGABYTE)), 100),
        [b"0\r\n\r\n"],
    )
    requests["length of 100 MB"] = itertools.chain(
        [request(start, length=str(len(start) + 100 * MEGABYTE))], itertools.repeat(bytes(MEGABYTE), 100)
    )
    requests["length of 100 MB, and nothing of it"] = request(length=str(100 * MEGABYTE))
    return requests


def wrong_addresses() -> Requests:
    """Return requests with unknown paths or wrong methods."""
    paths = {
        "deep": "/a" * 5000,
        "as long as fits": "/" + "a" * 60_000,
        "longer than an address may be": "/" + "a" * 200_000,
        "null byte": "/%00",
        "null byte behind a file": "/page.js%00",
        "up": "/../../../etc/passwd",
        "up, encoded": "/..%2f..%2f..%2fetc/passwd",
        "up from the samples": "/samples/..%2f..%2fmanifest.json",
        "two slashes": "//etc/passwd",
        "backslashes": "/..\\..\\etc\\passwd",
        "not UTF-8": "/%ff%fe",
        "slash behind a file": "/page.js/",
        "slash behind a route": "/model/",
        "sample -1": "/samples/-1",
        "sample 999": "/samples/999",
        "sample of 5000 digits": f"/samples/{'9' * 5000}",
        "sample that is no number": "/samples/abc",
        "asterisk": "*",
        "bento's assets": "/assets/index.js",
        "docs": "/docs",
        "capitals": "/MODEL",
    }
    requests: Requests = {name: request(line=f"GET {path} HTTP/1.1", length=None) for name, path in paths.items()}
    methods = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "FOO", "post", "")
    requests |= {f"method {method!r}": request(line=f"{method} /predict HTTP/1.1", length=None) for method in methods}
    requests |= {
        f"POST {path}": request(form(image()), line=f"POST {path} HTTP/1.1") for path in ("/", "/model", "/livez")
    }
    upgrade = {"Connection": "Upgrade", "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    requests["websocket"] = request(line="GET /predict HTTP/1.1", length=None, Upgrade="websocket", **upgrade)
    return requests


def not_http() -> Requests:
    """Return bytes that are not a request, or one of unlimited size."""
    return {
        "zeros": bytes(1000),
        "noise": bytes(range(256)) * 10,
        "tls": bytes.fromhex("16030100a5010000a10303") + bytes(160),
        "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
        "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "smtp": b"EHLO there\r\n",
        "version 9": request(line="GET / HTTP/9.9", length=None),
        "header without a name": request(line="GET / HTTP/1.1\r\n: x", length=None),
        "header with a null byte": request(line="GET / HTTP/1.1\r\nA: x\0y", length=None),
        "header of 50 MB": itertools.chain([b"GET / HTTP/1.1\r\nA: "], itertools.repeat(b"a" * MEGABYTE, 50)),
        "50 MB of headers": itertools.chain([b"GET / HTTP/1.1\r\n"], itertools.repeat(b"A: b\r\n" * 100_000, 90)),
    }


def never_finished(slow_bytes: Iterator[bytes]) -> Requests:
    """Return requests that never end; one of them sends a byte now and then."""
    half = form(image())[:500]
    chunked = request(length=None, Transfer_Encoding="chunked")
    return {
        "nothing": b"",
        "half a line": b"GET /mod",
        "a line": b"GET /model HTTP/1.1\r\n",
        "half a head": good()[:60],
        "a head without its end": b"POST /predict HTTP/1.1\r\nHost: a\r\n",
        "http/0.9": b"GET /\r\n",
        "a head and no body": request(length="1000"),
        "half a body": request(half, length="1000"),
        "one chunk": chunked + b"%x\r\n%s\r\n" % (len(half), half),
        "half a chunk": chunked + b"ffff\r\n" + half,
        "a form without its end": chunked + b"%x\r\n%s\r\n" % (len(half), half[:-2] + b"\r\n"),
        "a body sent slowly": itertools.chain([request(half, length="100000")], slow_bytes),
    }
