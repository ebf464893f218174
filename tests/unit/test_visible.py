"""What a reviewer reads is exactly what will be sent: marks are injective and hide nothing."""

import hashlib
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from web import arguments
from web.visible import CLOSE, OPEN, hidden, host, mixed_words, segments, shown, tagged, visible

ANY = st.characters(codec=None, exclude_categories=())
HOSTILE = st.sampled_from(
    list(
        "⟨⟩ \t\n\r\x00\x1b\u00a0\u00ad\u034f\u061c\u115f\u180e\u200b\u200d\u200e\u2028\u202a\u202e"
    )
    + list("\u2060\u2066\u2069\u2800\u3000\u3164\ufe0f\ufeff\uffa0\ufffc\ud800\udfff\U000e0041")
    + list("U+0123ABC aеоé\u0301\U0001d159\U000e0100\uffff\U0010ffff")
)
TEXTS = st.text(st.one_of(HOSTILE, ANY), max_size=60)


@given(TEXTS, TEXTS, st.booleans())
@example("⟨U+202E⟩", "\u202e", False)
@example("⟨LF⟩", "\n", False)
@example(" a", "⟨U+0020⟩a", True)
def test_equal_views_mean_equal_strings(one, other, spaces):
    assert (visible(one, spaces=spaces) == visible(other, spaces=spaces)) == (one == other)


@given(TEXTS, st.booleans())
def test_a_view_can_be_read_back(text, spaces):
    names = {"LF": "\n", "TAB": "\t", "CR": "\r"}
    back, rest = [], visible(text, spaces=spaces)
    while rest:
        plain, opened, rest = rest.partition(OPEN)
        back.append(plain)
        if opened:
            label, closed, rest = rest.partition(CLOSE)
            assert closed
            back.append(names.get(label) or chr(int(label.removeprefix("U+"), 16)))
    assert "".join(back) == text


@given(TEXTS)
def test_nothing_hidden_is_drawn_raw(text):
    for segment in segments(text, spaces=True):
        for character in segment.text:
            category = unicodedata.category(character)
            assert category[0] not in "CM"
            assert character == " " or category[0] != "Z"
    visible(text).encode("utf-8")  # no lone surrogate is left either


@given(TEXTS)
def test_segments_join_to_the_view(text):
    assert "".join(segment.text for segment in segments(text)) == visible(text)


@pytest.mark.parametrize(
    "character",
    "\u202e\u2066\u200b\u200d\u00ad\u3164\u2800\ufe0f\U000e0041\u00a0\u2003\u0301\x1b\x00\x07\r"
    "\ufeff\u115f\u180e\u2028\u0378\ue000\ud800",
)
def test_each_disguise_is_marked(character):
    assert not shown(character)
    assert visible(f"a{character}b") != f"a{character}b"


def test_ordinary_text_stays_as_it_is():
    for text in ("Hello, world!", "Überweisung 10 €", "Перевод № 5", "送金", "שלום", "a → b 😀"):
        assert visible(text) == text
        assert not hidden(text)


def test_a_message_in_tag_characters_is_spelled_out():
    assert tagged("ok\U000e0072\U000e006d") == "rm"


def test_look_alike_words_are_named():
    assert mixed_words("pаypal and full ｗidth") == ("pаypal", "ｗidth")
    assert mixed_words("Привет hello") == ()


def test_hosts_show_punycode_and_both_forms():
    seen = host("https://bаnk.example:8443/mcp")
    assert seen.text.startswith("xn--")
    assert seen.text.endswith(":8443")
    assert seen.other == "bаnk.example"
    assert host("https://bank.example@evil.example/").text == "evil.example"
    assert host("http://127.0.0.1:4111/mcp").text == "127.0.0.1:4111"
    assert host("https://[::1").text == "https://[::1"


@given(TEXTS)
def test_hosts_never_raise(text):
    shown_host = host(f"https://{text}/")
    assert all(shown(c) or c in (OPEN, CLOSE) for c in shown_host.text)


# --- arguments ------------------------------------------------------------------------------


def codes(raw):
    return {hazard.code for hazard in arguments.view(raw).hazards}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ('{"a":1,"a":2}', "repeated_key"),
        ('{"Amount":1,"amount":2}', "similar_key"),
        ('{"K":1,"\u212a":2}', "similar_key"),
        ('{"n":9007199254740993}', "number_precision"),
        ('{"n":1e400}', "number_precision"),
        ('{"n":-0}', "number_precision"),
        ('{"n":0.1000000000000000055}', "number_precision"),
        ('{"n":NaN}', "not_a_number"),
        ('{"__proto__":1}', "loaded_key"),
        ('{"a":1} {"b":2}', "not_json"),
        ("\ufeff{}", "not_json"),
        ("", "not_json"),
        ("[" * 40 + "]" * 40, "too_deep"),
        ("[" * 200_000, "too_deep"),
        ('{"a":"\\u202e"}', "hidden_character"),
        ('{"a":"\u202e"}', "hidden_character"),
        ('{"a":"\\ud800"}', "hidden_character"),
        ('{"a":"\U000e0072\U000e006d"}', "hidden_message"),
        ('{"a":"pаypal"}', "mixed_script"),
    ],
)
def test_each_hazard_is_named(raw, code):
    assert code in codes(raw)


def test_ordinary_arguments_carry_no_hazard():
    assert not codes('{"to":"DE02 1203","amount":1250.5,"memo":"Rent\\nMay","tags":[1,true,null]}')


def test_length_and_digest_are_of_the_exact_bytes():
    raw = '{"q": "Привет"}'
    seen = arguments.view(raw)
    assert seen.bytes == len(raw.encode())
    assert seen.digest == "sha256:" + hashlib.sha256(raw.encode()).hexdigest()


def test_the_pretty_view_keeps_repeated_keys_and_spellings():
    lines = [
        "".join(s.text for t in line.tokens for s in t.segments)
        for line in arguments.view('{"a":1.0,"a":1e2,"b":[],"c":[{"d":"x\\"y"}]}').lines
    ]
    assert lines == [
        "{",
        '"a": 1.0,',
        '"a": 1e2,',
        '"b": [],',
        '"c": [',
        "{",
        '"d": "x\\"y"',
        "}",
        "]",
        "}",
    ]


def test_a_value_cannot_pretend_to_have_ended():
    pretended = arguments.view('{"a":"1\\", \\"b\\": \\"2"}').lines
    real = arguments.view('{"a":"1","b":"2"}').lines
    assert pretended != real
    assert len(pretended) == 3


@given(TEXTS)
def test_no_argument_string_breaks_the_viewer(text):
    seen = arguments.view(text)
    assert "".join(s.text for s in seen.raw) == visible(text)
    for line in seen.lines:
        for token in line.tokens:
            for segment in token.segments:
                assert all(shown(c) or c in (OPEN, CLOSE) for c in segment.text)


def test_summary_is_one_line():
    assert (
        arguments.summary('{"to": "DE02", "amount": 5, "x": {"y": 1}}')
        == 'to: "DE02", amount: 5, x: {…}'
    )
    assert arguments.summary("x" * 500) == "x" * 120 + "…"
