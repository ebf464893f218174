"""Strict JSON: what was inspected is what is sent, and nothing else is taken."""

from __future__ import annotations

import json
import math

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Refused
from gateway.exchange.document import dump, parse

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | NUMBERS | TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)


def refused(raw: bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse(raw)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200
    return caught.value.code


@settings(deadline=None)
@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_any_document_survives(document: dict, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    read = parse(raw)
    assert read == document
    assert orjson.loads(dump(read)) == json.loads(raw)
    assert list(read) == list(document), "the order is kept"


def test_values_that_parsers_like_to_change_survive() -> None:
    raw = b'{"a":1.0,"b":1,"c":[],"d":null,"e":"\\u00e4\\ud83d\\ude42","f":18446744073709551615}'
    read = parse(raw)
    assert (
        dump(read) == '{"a":1.0,"b":1,"c":[],"d":null,"e":"ä🙂","f":18446744073709551615}'.encode()
    )
    assert isinstance(read["a"], float)
    assert isinstance(read["b"], int)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tools":[],"tools":[]}',
        b'{"tools":[{"require_approval":"always","require_approval":"never"}]}',
        b'{"a":[[{"b":{"c":1,"\\u0063":2}}]]}',
        b'{"a":1,"b":{},"a":1}',
    ],
)
def test_b_19_a_member_that_stands_twice_is_refused_at_any_depth(raw: bytes) -> None:
    assert refused(raw) == "duplicate_member"


def test_a_member_of_a_long_name_is_not_repeated_to_the_caller() -> None:
    name = b'"' + b"x" * 5000 + b'"'
    assert refused(b"{" + name + b":1," + name + b":2}") == "duplicate_member"


def test_many_members_with_a_late_duplicate_are_refused_quickly() -> None:
    members = ",".join(f'"m{number}":0' for number in [*range(100_000), 99_999])
    assert refused(b"{" + members.encode() + b"}") == "duplicate_member"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"a":NaN}', "invalid_json"),
        (b'{"a":Infinity}', "invalid_json"),
        (b'{"a":-Infinity}', "invalid_json"),
        (b'{"a":1e400}', "number_out_of_range"),
        (b'{"a":-1e999}', "number_out_of_range"),
        (b'{"a":18446744073709551616}', "number_out_of_range"),
        (b'{"a":-9223372036854775809}', "number_out_of_range"),
        (b'{"a":' + b"9" * 10_000 + b"}", "number_out_of_range"),
        (b'{"a":"\\ud800"}', "json_not_representable"),
        (b'{"\\udc00":1}', "json_not_representable"),
        (b'{"a":"\xff"}', "invalid_json"),
        (b'{"a":"\xed\xa0\x80"}', "invalid_json"),
        (b'{"a":"\xc0\xaf"}', "invalid_json"),
        (b'\xef\xbb\xbf{"a":1}', "invalid_json"),
        ('{"a":1}'.encode("utf-16"), "invalid_json"),
        ('{"a":1}'.encode("utf-16-le"), "invalid_json"),
        ('{"a":1}'.encode("utf-32"), "invalid_json"),
        (b'{"a":1} {}', "invalid_json"),
        (b'{"a":1,}', "invalid_json"),
        (b'{"a":01}', "invalid_json"),
        (b'{"a":"\n"}', "invalid_json"),
        (b"{'a':1}", "invalid_json"),
        (b'{"a":1}//', "invalid_json"),
        (b"", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"\x1f\x8b\x08\x00", "invalid_json"),
    ],
)
def test_b_18_what_two_parsers_could_read_differently_is_refused(raw: bytes, code: str) -> None:
    assert refused(raw) == code


@pytest.mark.parametrize("depth", [201, 300, 100_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_that_is_nested_too_deeply_is_refused(depth: int, pair: tuple[bytes, bytes]) -> None:
    opening, closing = pair
    depth -= 1
    assert refused(b'{"a":' + opening * depth + b"1" + closing * depth + b"}") == "json_too_deep"


def test_the_deepest_body_can_still_be_saved_inside_something_else() -> None:
    document = parse(b'{"a":' + b"[" * 199 + b"]" * 199 + b"}")
    for _ in range(20):
        document = {"in": document}
    assert dump(document)


@pytest.mark.parametrize("value", ["\ud800", 2**64, b"bytes", {1: 2}], ids=repr)
def test_what_cannot_be_written_faithfully_is_refused(value: object) -> None:
    with pytest.raises(Refused) as caught:
        dump({"a": value})
    assert caught.value.code == "json_not_representable"


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_others_read_them_or_refused(raw: bytes) -> None:
    try:
        document = parse(raw)
    except Refused:
        return
    assert document == orjson.loads(raw)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_its_value(number: float) -> None:
    read = parse(f'{{"a":{number!r}}}'.encode())["a"]
    assert math.isclose(read, number, rel_tol=0, abs_tol=0)
