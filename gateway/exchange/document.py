"""Strict JSON in, the same document out: what was inspected is what is sent.

Two parsers that read one body differently are a way round an inspector. So a member that stands
twice, a number that does not survive, or a text that is not UTF-8 is refused here, and only the
re-serialised document ever goes on.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import orjson

from gateway.errors import Refused
from gateway.exchange.messages import Json


def parse(raw: bytes) -> Json:
    """Read a request body; raises `Refused` with what is wrong with it."""
    try:
        text = raw.decode("utf-8")
        document = json.loads(
            text, object_pairs_hook=_object, parse_float=_number, parse_constant=_constant
        )
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
        raise Refused("The body is nested too deeply.", code="json_too_deep") from None
    if not isinstance(document, dict):
        raise Refused("The body must be a JSON object.", code="invalid_json")
    return document


def dump(document: Json) -> bytes:
    """Write a document compactly; raises `Refused` for what cannot be written faithfully."""
    try:
        return orjson.dumps(document)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise Refused(
            f"The body holds a value that cannot be passed on faithfully: {error}.",
            code="json_not_representable",
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> Json:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"The member {twice!r} stands twice in one object.", code="duplicate_member")
    return document


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Refused(f"The number {text[:40]} is out of range.", code="number_out_of_range")
    return number


def _constant(text: str) -> NoReturn:
    raise Refused(f"{text} is not a JSON value.", code="invalid_json")
