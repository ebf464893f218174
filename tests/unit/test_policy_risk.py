"""Risk signals: each hazard has one, and ordinary calls have none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import CallFacts, signals

READS = {"name": "t", "annotations": {"read_only": True}}


def codes(arguments: str, tool: str = "get", definition: Any = READS) -> list[str]:
    facts = CallFacts("bot", "crm", tool, arguments, definition=definition)
    found = signals(facts)
    assert all(signal.sentence.endswith(".") for signal in found)
    return [signal.code for signal in found]


HOSTILE = [
    ('{"a": "x\u202ey"}', "bidi_characters"),
    ('{"a": "x\\u202ey"}', "bidi_characters"),
    ('{"a": "\u2066x"}', "bidi_characters"),
    ('{"a": "x\u200by"}', "hidden_characters"),
    ('{"a": "x\u00ady"}', "hidden_characters"),
    ('{"a": "\u3164"}', "hidden_characters"),
    ('{"a": "\u2800"}', "hidden_characters"),
    ('{"a": "\U000e0041\U000e0042"}', "hidden_characters"),
    ('{"a": "x\ufe00"}', "hidden_characters"),
    ('{"a": "x\u200dy"}', "hidden_characters"),
    ('{"a": "x\\u001b[31m"}', "hidden_characters"),
    ('{"x\u200b": 1}', "hidden_characters"),
    ('{"a": 1, "a": 1}', "duplicate_keys"),
    ('{"d": {"a": 1, "a": 2}}', "duplicate_keys"),
    ('{"amount": 1, "Amount": 2}', "lookalike_keys"),
    ('{"\u017f": 1, "s": 2}', "lookalike_keys"),
    ('{"K": 1, "\u212a": 2}', "lookalike_keys"),
    ('{"e\u0301": 1, "\u00e9": 2}', "lookalike_keys"),
    ('{"__proto__": {}}', "prototype_keys"),
    ('{"a": 9007199254740993}', "inexact_numbers"),
    ('{"a": 1e400}', "inexact_numbers"),
    ('{"a": 0.123456789012345678901}', "inexact_numbers"),
    ('{"a": ' + "9" * 5000 + "}", "inexact_numbers"),
    ('{"a": -0}', "inexact_numbers"),
    ('{"a": NaN}', "not_json"),
    ('{"a": 1} x', "not_json"),
    ('\ufeff{"a": 1}', "not_json"),
    ("{'a': 1}", "not_json"),
    ("[1]", "not_an_object"),
    ('"x"', "not_an_object"),
    ('{"a": "\\ud800"}', "broken_text"),
    ('{"a": "x\\u0000y"}', "broken_text"),
    ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", "deep"),
    (json.dumps({"a": "x" * 20_000}), "very_large"),
    ('{"a": "sk-proj-' + "a1B2" * 8 + '"}', "secret_like"),
    ('{"a": "ghp_' + "a1B2" * 9 + '"}', "secret_like"),
    ('{"a": "AKIAIOSFODNN7EXAMPLE"}', "secret_like"),
    ('{"a": "-----BEGIN RSA PRIVATE KEY-----"}', "secret_like"),
    ('{"a": "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.x"}', "secret_like"),
    ('{"a": "gp_app_abcd1234_' + "x" * 43 + '"}', "secret_like"),
    ('{"a": "https://\u0430pple.com/x"}', "lookalike_host"),
    ('{"a": "https://\u0430\u0440\u0440\u04cf\u0435.com/x"}', "lookalike_host"),
    ('{"a": "see http://xn--pple-43d.com"}', "lookalike_host"),
    ('{"a": "https://bank\uff11.example"}', "lookalike_host"),
    ('{"a": "https://user@\u0440aypal.com/"}', "lookalike_host"),
]


@pytest.mark.parametrize(
    ("arguments", "code"), HOSTILE, ids=[f"{c}-{i}" for i, (_, c) in enumerate(HOSTILE)]
)
def test_hazards_are_named(arguments: str, code: str) -> None:
    assert code in codes(arguments)


@pytest.mark.parametrize(
    "value",
    [
        "Grüße an Zoë",
        "Привет, мир",
        "日本語のテキスト、カタカナ",
        "مرحبا بالعالم",
        "می\u200cخواهم",
        "👨\u200d👩\u200d👧 ❤\ufe0f",
        "क्\u200dष",
        "line one\nline two\ttabbed",
        "https://example.org/path?x=1",
        "https://пример.рф/",
        "https://例え.jp/",
        "https://münchen.example/",
        "The sk- prefix and AKIA are words",
        3.25,
        -17,
        2**53,
        [1, 2, {"Name": "x", "value": None}],
        {"id": 1, "identity": 2},
    ],
)
def test_ordinary_values_have_no_signal(value: Any) -> None:
    assert codes(json.dumps({"a": value})) == []
    assert codes(json.dumps({"a": value}, ensure_ascii=False)) == []


def test_an_empty_string_means_no_arguments() -> None:
    assert codes("") == []


@pytest.mark.parametrize(
    ("annotations", "code"),
    [
        ({"destructiveHint": True}, "destructive_tool"),
        ({"readOnlyHint": True, "destructiveHint": True}, "destructive_tool"),
        ({"read_only": False}, "writing_tool"),
        ({"readOnlyHint": False}, "writing_tool"),
        ({}, "unannotated_tool"),
        (None, "unannotated_tool"),
        ("x", "unannotated_tool"),
        ({"readOnlyHint": "true"}, "unannotated_tool"),
        ({"readOnlyHint": False, "destructiveHint": False}, None),
    ],
)
def test_what_a_server_says_of_its_tool(annotations: Any, code: str | None) -> None:
    found = codes("{}", definition={"name": "t", "annotations": annotations})
    assert found == ([] if code is None else [code])


def test_an_unknown_definition_is_unannotated() -> None:
    assert codes("{}", definition=None) == ["unannotated_tool"]


def test_the_name_of_the_tool_counts() -> None:
    assert codes("{}", tool="get\u200b") == ["hidden_characters"]


def test_points_are_named_and_counted() -> None:
    facts = CallFacts("a", "s", "t", '{"a": "\u200b\u200c\u2060\u00ad"}', definition=READS)
    sentence = signals(facts)[0].sentence
    assert "(U+00AD, U+200B, U+200C and 1 more)" in sentence


@given(st.text(max_size=300))
def test_no_argument_string_raises(arguments: str) -> None:
    codes(arguments)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
        max_leaves=20,
    )
)
def test_plain_json_is_read_without_hazard(value: Any) -> None:
    assert "not_json" not in codes(json.dumps({"a": value}))
