"""Strict JSON: what was inspected is what is sent, and nothing else is taken."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Refused
from gateway.exchange.document import dump, parse, read

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = TEXT.filter(lambda name: name != "__proto__")
DOCUMENTS = st.dictionaries(
    NAMES,
    st.recursive(
        st.none() | st.booleans() | NUMBERS | TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)


def refused(raw: bytes, status: int = 400) -> str:
    with pytest.raises(Refused) as caught:
        parse(raw)
    assert caught.value.status == status
    assert len(caught.value.message) < 200
    return caught.value.code


@settings(deadline=None)
@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_any_document_survives(document: dict, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    parsed = parse(raw)
    assert json.loads(dump(parsed)) == document
    assert list(parsed) == list(document), "the order is kept"


def test_values_that_parsers_like_to_change_survive() -> None:
    raw = b'{"a":1.0,"b":1,"c":[],"d":null,"e":"\\u00e4\\ud83d\\ude42","f":18446744073709551615}'
    parsed = parse(raw)
    assert (
        dump(parsed)
        == '{"a":1.0,"b":1,"c":[],"d":null,"e":"ä🙂","f":18446744073709551615}'.encode()
    )
    assert isinstance(parsed["a"], float)
    assert isinstance(parsed["b"], int)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tools":[],"tools":[]}',
        b'{"tools":[{"require_approval":"always","require_approval":"never"}]}',
        b'{"a":[[{"b":{"c":1,"\\u0063":2}}]]}',
        b'{"a":1,"b":{},"a":1}',
    ],
)
def test_B_19_a_member_that_stands_twice_is_refused_at_any_depth(raw: bytes) -> None:
    assert refused(raw) == "duplicate_member"


def test_a_member_of_a_long_name_is_not_repeated_to_the_caller() -> None:
    name = b'"' + b"x" * 5000 + b'"'
    assert refused(b"{" + name + b":1," + name + b":2}") == "duplicate_member"


def test_many_members_with_a_late_duplicate_are_refused_quickly() -> None:
    members = ",".join(f'"m{number}":0' for number in [*range(90_000), 89_999])
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
def test_B_18_what_two_parsers_could_read_differently_is_refused(raw: bytes, code: str) -> None:
    assert refused(raw) == code


@pytest.mark.parametrize("depth", [201, 300, 100_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_that_is_nested_too_deeply_is_refused(depth: int, pair: tuple[bytes, bytes]) -> None:
    opening, closing = pair
    depth -= 1
    assert refused(b'{"a":' + opening * depth + b"1" + closing * depth + b"}") == "json_too_deep"


@pytest.mark.parametrize("body", [b'{"__proto__":{"tools":[]}}', b'{"a":[{"\\u005f_proto__":1}]}'])
def test_R_19_a_prototype_is_no_member(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse(body)
    assert caught.value.code == "member_misspelt"
    assert read(body), "Azure may say what it likes"


def test_a_body_may_hold_many_objects_side_by_side() -> None:
    raw = b'{"input":[' + b",".join([b"{}"] * 300) + b"]}"
    assert len(parse(raw)["input"]) == 300


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


# --- numbers --------------------------------------------------------------------------------

ODD = [
    "1e2",
    "1E2",
    "-0",
    "-0.0",
    "1.10",
    "1E-7",
    "1e-7",
    "0.1",
    "1.0",
    "100",
    "1e+2",
    "0e0",
    "2.50",
]
ODD += ["9007199254740993.0", "0.10000000000000000555", "1e16", "1e400"[:-1], "5e-324", "1e-400"]
HUGE = ["18446744073709551616", "-9223372036854775809", "9" * 5000, "1e400", "-1.5E+999"]


@pytest.mark.parametrize("text", ODD)
def test_R_17_a_number_goes_on_as_it_was_written(text: str) -> None:
    raw = b'{"a":[%b,{"b":%b}]}' % (text.encode(), text.encode())
    assert dump(parse(raw)) == raw
    assert orjson.dumps(read(raw)) == raw


@pytest.mark.parametrize("text", HUGE)
def test_R_17_a_number_out_of_range_is_refused_to_apps_and_passed_on_from_azure(text: str) -> None:
    raw = b'{"a":%b}' % text.encode()
    assert refused(raw) == "number_out_of_range"
    assert orjson.dumps(read(raw)) == raw


NUMBER_TEXTS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)


def out_of_range(texts: list[str]) -> bool:
    whole = [int(text) for text in texts if text.lstrip("-").isdigit()]
    return any(math.isinf(float(text)) for text in texts) or any(
        not -(2**63) <= number < 2**64 for number in whole
    )


@settings(deadline=None)
@given(st.lists(NUMBER_TEXTS, max_size=5), st.sampled_from(["", " ", "\n"]))
def test_R_17_any_number_is_refused_or_goes_on_as_it_was_written(
    texts: list[str], gap: str
) -> None:
    raw = ('{"n":[' + f",{gap}".join(texts) + "]}").encode()
    written = re.sub(rb"[ \n]", b"", raw)
    assert orjson.dumps(read(raw)) == written
    if out_of_range(texts):
        assert refused(raw) == "number_out_of_range"
        return
    document = parse(raw)
    assert dump(document) == written
    assert orjson.dumps(document, option=orjson.OPT_SORT_KEYS) == written


@settings(deadline=None)
@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_what_azure_says_is_read_as_it_is(
    document: dict, ascii_only: bool, indent: int | None
) -> None:
    raw = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    assert orjson.loads(orjson.dumps(read(raw))) == orjson.loads(raw)
    plain = orjson.dumps(document)
    assert read(plain) == orjson.loads(plain)
    assert orjson.dumps(read(plain)) == plain


@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b'{"a":Infinity}', b'"\xff"', b"{} {}", b"01"])
def test_what_is_no_json_is_a_value_error_whoever_sends_it(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(raw)


def test_what_azure_says_may_repeat_itself_but_must_be_possible_to_say_again() -> None:
    assert read(b'{"a": 1, "a": 2}') == {"a": 2}
    assert read(b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}")
    for depth in (300, 1000, 10**5):
        with pytest.raises(ValueError, match=r"\w"):
            read(b'{"a": ' + b"[" * depth + b"1.10" + b"]" * depth + b"}")
    with pytest.raises(ValueError, match=r"\w"):
        read(b'{"a":"\\ud800"}')


def test_a_document_with_odd_numbers_can_be_copied_and_saved() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        document: dict

    raw = b'{"a":1.10,"b":[1e2,{"c":-0}]}'
    document = parse(raw)
    assert dump(copy.deepcopy(document)) == raw
    assert orjson.dumps(dataclasses.asdict(Holder(document))["document"]) == raw


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_its_value(number: float) -> None:
    raw = f'{{"a":{number!r}}}'.encode()
    assert dump(parse(raw)) == raw
    assert orjson.loads(dump(parse(raw)))["a"] == number


# --- hostile bodies -------------------------------------------------------------------------

MEGA = 10**6
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "10^5 lists deep": (b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}", "json_too_deep"),
    "10 MB of brackets": (b'{"a":' + b"[" * 10**7, "json_too_deep"),
    "a 10 MB integer": (b'{"a":' + b"9" * 10**7 + b"}", "number_out_of_range"),
    "a 10 MB exponent": (b'{"a":1e' + b"9" * 10**7 + b"}", "number_out_of_range"),
    "a 10 MB fraction": (b'{"a":0.' + b"1" * 10**7 + b"}", None),
    "10 MB of spaces": (b" " * 10**7, "invalid_json"),
    "a 10 MB string without an end": (b'{"a":"' + b"x" * 10**7, "invalid_json"),
    "10 MB of backslashes": (b'{"a":"' + b"\\" * 10**7, "invalid_json"),
    "10^6 escapes and half a pair": (
        b'{"a":"' + b"\\u00e4" * MEGA + b'\\ud800"}',
        "json_not_representable",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_D_04_a_hostile_body_costs_little(what: str) -> None:
    raw, code = HOSTILE[what]
    started = time.process_time()
    if code is None:
        assert dump(parse(raw)) == raw
    else:
        assert refused(raw) == code
    # Ten times what it takes here: a machine may be busy, and what is quadratic takes hours.
    assert time.process_time() - started < 1


def test_D_04_more_values_than_any_context_holds_are_refused_unread() -> None:
    members = b",".join(b'"k%d":%d' % (number, number) for number in range(MEGA))
    bodies = (
        b"{%b}" % members,
        b'{"a":[%b1]}' % (b"1," * (MEGA + 1)),
        b'{"a":[%b{}]}' % (b"{}," * (MEGA + 1)),
    )
    for raw in bodies:
        started = time.process_time()
        assert refused(raw, 413) == "json_too_large"
        assert time.process_time() - started < 0.5
    assert parse(b"{" + members[: members.index(b',"k90000"')] + b"}")
