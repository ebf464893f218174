"""Looks for secrets in bytes, in the twelve ways in which something may have written them.

Pure. `find(data, secrets)` says which secrets stand in `data`, and how: as they are, in base64 (at
each of three offsets, both alphabets), percent-encoded, in hex, inside of a JSON string (once or
twice), backwards, inside of something compressed, in UTF-16 of both orders, cut into pieces over
several members or deltas, and in other letter case.
"""

from __future__ import annotations

import base64
import codecs
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, quote_plus

#: What every canary begins with: where this is not, in any encoding, there is none of them.
MARK = "gpCanary7"
#: Letters that URLs, JSON, HTML and shells write in ways of their own.
AWKWARD = '/+="\\&<~'
ENCODINGS = (
    "raw", "base64+0", "base64+1", "base64+2", "url", "hex", "json", "reversed", "gzip", "utf-16",
    "split", "case",
)  # fmt: skip
_STRINGS = re.compile(rb'"((?:[^"\\]|\\.){0,400})"\s*(:?)')
_SPACE = re.compile(rb"\s+")
_RUNS = re.compile("[A-Za-z0-9_-]+")
_DEEPEST = 4
_ZLIB = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
_LARGEST = 64 << 20


@dataclass(frozen=True, order=True)
class Found:
    """A secret, by the name of what it is, and how it was written."""

    secret: str
    encoding: str


def canary(number: int) -> str:
    """A secret of its own for each number, that can travel in a header."""
    # Never two alike letters together: what folds case or runs must still be found.
    return f"{MARK}x{number:03d}q{AWKWARD}{(number * 7919) % 99991:05d}Zw"


def find(data: bytes, secrets: Mapping[str, str | bytes]) -> set[Found]:
    """Which of `secrets` (name → value) stand in `data`, and how."""
    marked = {
        name: value
        for name, value in secrets.items()
        if isinstance(value, str) and value.startswith(MARK)
    }
    others = {name: value for name, value in secrets.items() if name not in marked}
    found: set[Found] = set()
    for way, view in _views(data):
        here = {**others, **marked} if _any(view, MARK) else others
        for name, value in here.items():
            found |= {Found(name, way or how) for how in _how(view, value)}
    return found


def forms(value: str | bytes) -> Iterator[tuple[str, bytes]]:
    """Each way to write `value` that can be found as bytes in their place."""
    raw = value.encode() if isinstance(value, str) else value
    yield "raw", raw
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield f"base64+{offset}", _inner(encode, raw, offset)
    quoted_whole = quote(value, safe="")
    lower = re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), quoted_whole)
    for quoted in {quote(value), quoted_whole, quote_plus(value), lower}:
        yield "url", quoted.encode()
    yield "hex", raw.hex().encode()
    for separator in " :-":
        yield "hex", raw.hex(separator).encode()
    yield "reversed", raw[::-1]
    if isinstance(value, bytes):
        return
    for text in _json(value):
        yield "json", text
    yield "utf-16", value.encode("utf-16-le")
    yield "utf-16", value.encode("utf-16-be")


def _json(value: str) -> set[bytes]:
    once = {json.dumps(value)[1:-1], "".join(f"\\u{ord(c):04x}" for c in value)}
    once |= {_escaped(value, letters) for letters in ("/", "<>&'", "\"<>&'+`")}
    twice = {json.dumps(text)[1:-1] for text in once}
    return {text.encode() for text in once | twice}


def _escaped(value: str, letters: str) -> str:
    """As serialisers that are wary of HTML or of slashes write it."""
    return "".join(
        (r"\/" if c == "/" else f"\\u{ord(c):04x}") if c in letters else json.dumps(c)[1:-1]
        for c in value
    )


def _inner(encode: object, raw: bytes, offset: int) -> bytes:
    """The letters of base64 that come out whatever stands before and after."""
    assert callable(encode)
    padded = encode(b"\0" * offset + raw)
    before = 0 if offset == 0 else offset + 1
    whole = (offset + len(raw)) * 8 // 6
    result: bytes = padded[before:whole]
    return result


@lru_cache(maxsize=4096)
def _needles(value: str | bytes) -> tuple[tuple[str, bytes, bytes], ...]:
    return tuple((how, form, form.lower()) for how, form in forms(value))


def _any(view: bytes, value: str) -> bool:
    folded = view.lower()
    return any(low in folded for _, _, low in _needles(value))


@lru_cache(maxsize=4096)
def _oddly(value: str) -> tuple[bytes, re.Pattern[bytes]]:
    """The longest run of plain letters, and `value` with each other one escaped in any way: what
    `repr` and serialisers do to it, one after another.
    """
    core = max(_RUNS.findall(value), key=len, default="").encode()
    letters = (
        re.escape(c.encode())
        if _RUNS.fullmatch(c)
        else rb"\\*(?:%b|u00%02x|x%02x)" % (re.escape(c.encode()), ord(c), ord(c))
        for c in value
    )
    return core, re.compile(b"".join(letters), re.IGNORECASE)


def _how(view: bytes, value: str | bytes) -> Iterator[str]:
    folded = view.lower()
    if isinstance(value, str):
        core, oddly = _oddly(value)
        if core in view and oddly.search(view):
            yield "raw" if value.encode() in view else "json"
    for how, form, low in _needles(value):
        if form in view:
            yield how
        elif low in folded and not how.startswith("base64"):
            yield "case"


def _views(data: bytes, depth: int = 0) -> Iterator[tuple[str | None, bytes]]:
    """`data`, and what else it says once it is joined or unpacked, with the name of that."""
    yield None, data
    for joined in _joined(data):
        yield "split", joined
    if depth < _DEEPEST:
        for inner in _unpacked(data):
            for _, view in _views(inner, depth + 1):
                yield "gzip", view


def _joined(data: bytes) -> Iterator[bytes]:
    """Texts of JSON that follow one another, without what stands between; lines without breaks."""
    yield _SPACE.sub(b"", data)
    by_name: dict[bytes, list[bytes]] = {}
    values: list[bytes] = []
    name = b""
    for match in _STRINGS.finditer(data):
        text, colon = match.groups()
        if colon:
            name = text
            continue
        plain = _unescaped(text)
        by_name.setdefault(name, []).append(plain)
        values.append(plain)
    for texts in (values, *(texts for texts in by_name.values() if len(texts) > 1)):
        yield b"".join(texts)


def _unescaped(text: bytes) -> bytes:
    try:
        plain: str = json.loads(b'"' + text + b'"')
    except ValueError:
        return text
    return plain.encode("utf-8", "surrogatepass")


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Whatever is compressed in it, wherever it begins."""
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                for name in packed.namelist():
                    yield name.encode() + b"\n" + packed.read(name)
        except zipfile.BadZipFile:
            pass
    for match in _ZLIB.finditer(data):
        opener = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            plain = opener.decompress(memoryview(data)[match.start() :], _LARGEST)
        except zlib.error:
            continue
        if plain:
            yield plain


def write_as(encoding: str, value: str, before: str = "") -> Sequence[bytes]:
    """`value` written in each way that `encoding` stands for: what the search must find."""
    pad, raw = before.encode(), value.encode()
    match encoding:
        case "raw":
            return [raw]
        case "base64+0" | "base64+1" | "base64+2":
            filler = b"A" * int(encoding[-1])
            text = base64.b64encode(pad + b"A" * (-len(pad) % 3) + filler + raw + b"Az")
            return [text, base64.urlsafe_b64encode(filler + raw), base64.encodebytes(filler + raw)]
        case "url":
            return [quote(value, safe="").encode(), quote_plus(before + value).encode()]
        case "hex":
            return [(pad + raw).hex().encode(), raw.hex().upper().encode(), raw.hex(":").encode()]
        case "json":
            once = json.dumps({"a": before + value})
            told = json.dumps({"detail": f"not {before + value!r}"})
            return [once.encode(), json.dumps({"b": once}).encode(), told.encode()]
        case "reversed":
            return [(before + value)[::-1].encode()]
        case "gzip":
            squeezed = codecs.encode(pad + raw, "zlib")
            writer = zlib.compressobj(wbits=31)
            return [pad + squeezed, writer.compress(raw) + writer.flush() + pad]
        case "utf-16":
            return [(before + value).encode("utf-16-le"), (before + value).encode("utf-16-be")]
        case "split":
            return [_in_deltas(value, size) for size in (1, 3, len(value) // 2)]
        case "case":
            return [raw.upper(), raw.lower(), quote(value).upper().encode()]
        case _:
            raise ValueError(encoding)


def _in_deltas(value: str, size: int) -> bytes:
    pieces = [value[start : start + size] for start in range(0, len(value), size)]
    frames = (
        "data: " + json.dumps({"type": "x.delta", "item_id": "msg_1", "delta": piece}) + "\n\n"
        for piece in pieces
    )
    return "".join(frames).encode()
