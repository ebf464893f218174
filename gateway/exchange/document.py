"""Strict JSON in, the same document out: what was inspected is what is sent.

Two parsers that read one body differently are a way round an inspector. So a member that stands
twice, a number out of range, half a surrogate pair, or a text that is not UTF-8 is refused here,
and only the re-serialised document ever goes on. Numbers go on as they were written, digit by
digit: one that our serialiser would write differently is a fragment, opaque to everybody.
"""

from __future__ import annotations

import copyreg
import json
import math
from collections import Counter
from typing import Any, NoReturn

import orjson

from gateway.errors import Refused
from gateway.exchange.messages import Json

#: Below what the serialiser can write, with room for what is put around a body (a snapshot).
_DEEPEST = 200
#: More than any context holds; reading a million members takes a second. Texts may hold some, too.
_MOST_MEMBERS, _MOST_VALUES = 100_000, 1_000_000
_PROTOTYPE = b"__proto__"
_LEAST_INTEGER, _GREATEST_INTEGER = -(2**63), 2**64 - 1


# A fragment cannot be looked into and never changes: a copy of a document may share it.
copyreg.pickle(orjson.Fragment, lambda _: "Fragment")


def parse(raw: bytes) -> Json:
    """Read a request body; raises `Refused` with what is wrong with it.

    What is returned can be written again: `dump` does not fail on it.
    """
    if raw.count(b'":') > _MOST_MEMBERS or raw.count(b",") > _MOST_VALUES:
        raise Refused("The body holds too many values.", code="json_too_large", status=413)
    try:
        document = None if _PROTOTYPE in raw else _lossless(raw)
        document = document or _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(
            f"The body is not valid UTF-8 (byte {error.start}).", code="invalid_json"
        ) from None
    except json.JSONDecodeError as error:
        raise Refused(
            f"The body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
            code="invalid_json",
        ) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(document, dict):
        raise Refused("The body must be a JSON object.", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") > _DEEPEST:
        _check_depth(document)
    if b"\\u" in raw:
        dump(document)  # only an escape can have made a text that is none: half of a pair
    return document


def read(raw: bytes) -> Any:
    """Read what Azure says, every number as it was written; raises ValueError if it is no JSON.

    What is returned can be written again. Nothing else is refused: whether Azure may say it is
    not for us to judge.
    """
    if document := _lossless(raw):
        return document
    try:
        document = _EXACT.decode(raw.decode("utf-8"))
        orjson.dumps(document)
    except (TypeError, RecursionError):
        raise ValueError("a document that is too deep, or holds half a pair") from None
    return document


def _lossless(raw: bytes) -> Any:
    """The document, where writing it gives the same bytes again: then no member stood twice, no
    number was changed, and any reader reads the same. Most clients write so compactly.
    """
    try:
        document = orjson.loads(raw)
        return document if orjson.dumps(document) == raw else None
    except (orjson.JSONDecodeError, TypeError):
        return None  # it may be but a number that is too large


def dump(document: Json) -> bytes:
    """Write a document compactly; raises `Refused` for what cannot be written faithfully."""
    try:
        return orjson.dumps(document)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise Refused(
            f"The body holds a value that cannot be passed on faithfully: {error}.",
            code="json_not_representable",
        ) from None


def _check_depth(document: Json) -> None:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Refused:
    return Refused(f"The body is nested more than {_DEEPEST} levels deep.", code="json_too_deep")


def _object(pairs: list[tuple[str, Any]]) -> Json:
    document = dict(pairs)
    if _PROTOTYPE.decode() in document:
        raise Refused(
            "A member named '__proto__' changes objects in some languages.",
            code="member_misspelt",
        )
    if len(document) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise Refused(
            f"The member {twice[:80]!r} stands twice in one object.", code="duplicate_member"
        )
    return document


def _integer(text: str) -> int | orjson.Fragment:
    number = _any_integer(text)
    if isinstance(number, int) or text == "-0":
        return number
    raise Refused(f"The number {text[:40]} is out of range.", code="number_out_of_range")


def _any_integer(text: str) -> int | orjson.Fragment:
    # The length comes first: reading a very long integer takes very long.
    if len(text) <= len(str(_LEAST_INTEGER)):
        number = int(text)
        if _LEAST_INTEGER <= number <= _GREATEST_INTEGER and text != "-0":
            return number
    return orjson.Fragment(text)


def _number(text: str) -> float | orjson.Fragment:
    if math.isinf(float(text)):
        raise Refused(f"The number {text[:40]} is out of range.", code="number_out_of_range")
    return _any_number(text)


def _any_number(text: str) -> float | orjson.Fragment:
    number = float(text)
    return number if orjson.dumps(number) == text.encode() else orjson.Fragment(text)


def _constant(text: str) -> NoReturn:
    raise json.JSONDecodeError(f"{text} is not a JSON value", text, 0)


# Made once: making one costs as much as reading a small body.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_constant,
)
_EXACT = json.JSONDecoder(parse_int=_any_integer, parse_float=_any_number, parse_constant=_constant)
