"""The argument viewer's model: one raw string, read strictly, with everything odd about it named.

Pure. The raw string is what will be sent and what the digest covers; the tree is only a reading
aid and keeps repeated keys, their order and every number's own spelling (RFC 8259 §4, §6).
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from web.visible import Segment, hidden, mixed_words, segments, tagged, visible

MAX_DEPTH = 32
_EXACT = 2**53
_LOADED_KEYS = frozenset({"__proto__", "constructor", "prototype"})


@dataclass(frozen=True)
class Hazard:
    """One thing a reader could be misled by: a stable code and what it was seen in."""

    code: str
    seen: str = ""


@dataclass(frozen=True)
class Token:
    """A piece of a pretty-printed line: `kind` is key, string, number, word or mark."""

    kind: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Line:
    """One line of the pretty view, `depth` steps in."""

    depth: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class ArgumentView:
    """What the viewer shows. `lines` is empty when the string is not JSON or nests too deep."""

    raw: tuple[Segment, ...]
    lines: tuple[Line, ...]
    hazards: tuple[Hazard, ...]
    characters: int
    bytes: int
    digest: str
    summary: str = ""


@dataclass(frozen=True)
class _Number:
    literal: str


@dataclass(frozen=True)
class _Object:
    pairs: tuple[tuple[str, object], ...]


@dataclass
class _Findings:
    seen: dict[Hazard, None] = field(default_factory=dict)

    def add(self, code: str, seen: str = "") -> None:
        self.seen.setdefault(Hazard(code, seen))


def view(raw: str) -> ArgumentView:
    """Read `raw` for display; never raises, whatever a model or an app has sent."""
    findings = _Findings()
    octets = raw.encode("utf-8", "surrogatepass")
    lines: tuple[Line, ...] = ()
    summary = visible(raw)
    try:
        tree = _parse(raw, findings)
        _inspect(tree, findings, 1)
        lines = tuple(_value(tree, 0, (), ""))
        summary = _summary(tree)
    except ValueError:
        findings.add("not_json")
    except RecursionError:
        findings.add("too_deep")
    _inspect_text(raw, findings)
    return ArgumentView(
        raw=tuple(segments(raw)),
        lines=lines,
        hazards=tuple(findings.seen),
        characters=len(raw),
        bytes=len(octets),
        digest="sha256:" + hashlib.sha256(octets).hexdigest(),
        summary=summary,
    )


def summary(raw: str, limit: int = 120) -> str:
    """One line for a list: names and values, cut at `limit` with the number of bytes left out."""
    text = view(raw).summary
    if len(text) <= limit:
        return text
    return f"{text[:limit]}…"


def _parse(raw: str, findings: _Findings) -> object:
    def constant(literal: str) -> _Number:
        findings.add("not_a_number", literal)
        return _Number(literal)

    return json.loads(
        raw,
        object_pairs_hook=lambda pairs: _Object(tuple(pairs)),
        parse_int=_Number,
        parse_float=_Number,
        parse_constant=constant,
    )


def _inspect(node: object, findings: _Findings, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RecursionError
    match node:
        case _Object(pairs):
            _inspect_keys([key for key, _ in pairs], findings)
            for _, value in pairs:
                _inspect(value, findings, depth + 1)
        case list():
            for value in node:
                _inspect(value, findings, depth + 1)
        case _Number(literal):
            _inspect_number(literal, findings)
        case str():
            _inspect_text(node, findings)
        case _:
            pass


def _inspect_keys(keys: list[str], findings: _Findings) -> None:
    for key, count in Counter(keys).items():
        _inspect_text(key, findings)
        if count > 1:
            findings.add("repeated_key", visible(key, spaces=True))
        if key in _LOADED_KEYS:
            findings.add("loaded_key", key)
    folded = Counter(_folded(key) for key in dict.fromkeys(keys))
    for key in dict.fromkeys(keys):
        if folded[_folded(key)] > 1:
            findings.add("similar_key", visible(key, spaces=True))


def _inspect_number(literal: str, findings: _Findings) -> None:
    try:
        exact = Decimal(literal)
        double = float(literal)
        lossy = Decimal(repr(double)) != exact
    except (InvalidOperation, OverflowError, ValueError):
        lossy, exact = True, Decimal(0)
    large = exact == exact.to_integral_value() and abs(exact) > _EXACT
    minus_zero = exact == 0 and literal.startswith("-")
    if lossy or large or minus_zero:
        findings.add("number_precision", literal)


def _inspect_text(text: str, findings: _Findings) -> None:
    for found in hidden(text):
        findings.add("hidden_character", found)
    if spelled := tagged(text):
        findings.add("hidden_message", visible(spelled))
    for word in mixed_words(text):
        findings.add("mixed_script", visible(word))


def _folded(key: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", key).casefold())


# --- the pretty view ------------------------------------------------------------------------


def _value(node: object, depth: int, lead: tuple[Token, ...], tail: str) -> Iterator[Line]:
    end = (mark(tail),) if tail else ()
    match node:
        case _Object(pairs) if pairs:
            yield Line(depth, (*lead, mark("{")))
            for position, (key, value) in enumerate(pairs):
                comma = "," if position < len(pairs) - 1 else ""
                yield from _value(value, depth + 1, (quoted("key", key), mark(": ")), comma)
            yield Line(depth, (mark("}"), *end))
        case list() if node:
            yield Line(depth, (*lead, mark("[")))
            for position, value in enumerate(node):
                comma = "," if position < len(node) - 1 else ""
                yield from _value(value, depth + 1, (), comma)
            yield Line(depth, (mark("]"), *end))
        case _:
            yield Line(depth, (*lead, _leaf(node), *end))


def _leaf(node: object) -> Token:
    match node:
        case str():
            return quoted("string", node)
        case _Number(literal):
            return Token("number", tuple(segments(literal)))
        case _Object():
            return mark("{}")
        case list():
            return mark("[]")
        case _:
            return Token("word", (Segment(json.dumps(node)),))


def mark(text: str) -> Token:
    """Punctuation of JSON."""
    return Token("mark", (Segment(text),))


def quoted(kind: str, text: str) -> Token:
    """A text between quotation marks."""
    return Token(kind, (Segment('"'), *inside(text), Segment('"')))


def inside(text: str) -> tuple[Segment, ...]:
    """What stands between the quotation marks; no value can pretend to have ended there."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return tuple(segments(escaped, spaces=True))


def _summary(tree: object) -> str:
    match tree:
        case _Object(pairs):
            return ", ".join(f"{visible(key, spaces=True)}: {_brief(v)}" for key, v in pairs)
        case _:
            return _brief(tree)


def _brief(node: object) -> str:
    match node:
        case _Object(pairs):
            return "{…}" if pairs else "{}"
        case list():
            return "[…]" if node else "[]"
        case _:
            return "".join(segment.text for segment in _leaf(node).segments)
