"""The pages' pure parts: hosts allowed, preferences, languages, spans and sizes."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.kinds import KINDS
from gateway.policy import risk
from web import preferences, translation, words
from web.formats import Reader
from web.frame import local
from web.preferences import Preferences
from web.security import site

NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


def test_a_public_name_shuts_loopback_out_unless_it_is_listened_on() -> None:
    public = site("https://gate.example", "10.0.0.7:8080", ("other.example:443",))
    assert public.hosts == {"gate.example", "10.0.0.7", "other.example"}
    assert "localhost" in site("https://gate.example", "127.0.0.1:8080").hosts
    assert "0.0.0.0" not in site("https://gate.example", "0.0.0.0:8080").hosts


@given(st.text(max_size=80))
def test_any_cookie_gives_preferences_that_survive(cookie: str) -> None:
    read = preferences.read(cookie)
    assert preferences.read(read.cookie()) == read
    assert read.theme in preferences.THEMES


def test_preferences_keep_what_was_not_said() -> None:
    kept = preferences.changed(Preferences("ru", "dark", "UTC", keys=False), {"theme": "light"})
    assert kept == Preferences("ru", "light", "UTC", keys=False)


@given(st.text(max_size=40))
def test_only_paths_of_ours_are_gone_to(path: str) -> None:
    led = local(path)
    assert led.startswith("/")
    assert not led.startswith(("//", "/\\"))
    assert led.isprintable()


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("de,en;q=0.3,ru;q=0.2", "en"),
        ("ru;q=0, de", "en"),
        ("", "en"),
        ("*;q=x,,;;q=", "en"),
    ],
)
def test_the_best_language_is_chosen(header: str, language: str) -> None:
    assert translation.negotiate(header, translation.catalogs()) == language


def test_every_kind_of_record_is_told_in_every_language() -> None:
    for path in (translation._LOCALES).glob("*/LC_MESSAGES/kinds.po"):
        with path.open("rb") as source:
            catalog = read_po(source)
        said = {message.id: message.string for message in catalog if message.id}
        wanted = {text for kind in KINDS.values() for text in (kind.says, kind.meaning)}
        assert wanted == set(said)
        for text, told in said.items():
            names = {name for _, name, _, _ in string.Formatter().parse(text) if name}
            assert told, text
            assert {name for _, name, _, _ in string.Formatter().parse(told) if name} == names


def test_every_risk_signal_has_words_in_other_languages() -> None:
    named = {str(hazard) for hazard in risk._HAZARDS}
    assert named <= set(words.SIGNALS)
    assert set(words.COVERED) <= set(words.SIGNALS)
    assert set(words.COVERED.values()) <= set(words.HAZARDS)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (("approved", "not_sent", None), "approved"),
        (("approved", "sending", None), "approved sending"),
        (("approved", "executed", True), "approved executed"),
        (("approved", "executed", False), "approved mismatch"),
        (("approved", "executed", None), "approved unmatched"),
        (("approved", "failed", None), "approved failed"),
        (("approved", "unknown", None), "approved unknown"),
        (("denied", "not_sent", None), "denied"),
        (("expired", "not_sent", None), "expired"),
        (("cancelled", "not_sent", None), "cancelled"),
    ],
)
def test_every_outcome_has_words(facts: tuple[str, str, bool | None], told: str) -> None:
    assert words.outcome_of(*facts) == told
    assert told in words.OUTCOMES


def test_times_name_their_offset_and_utc() -> None:
    reader = Reader("en", ZoneInfo("Asia/Kolkata"), NOW)
    assert ">5 Jan 2026, 14:30:00 UTC+05:30<" in reader.time(NOW)
    assert 'title="2026-01-05 09:00:00 UTC"' in reader.time(NOW)
    assert reader.ago(NOW + timedelta(minutes=29)).endswith(">in 29 minutes</time>")
    assert Reader("ru", UTC, NOW).ago(NOW - timedelta(minutes=3)).endswith(">3 минуты назад</time>")
    assert "6 Jan, 09:00 UTC" in Reader("en", UTC, NOW).clock(NOW + timedelta(days=1))


def test_sizes_and_spans_are_in_the_readers_units() -> None:
    reader = Reader("en", UTC, NOW)
    assert [reader.size(n) for n in (1, 812, 48_000, 1_500_000)] == [
        "1 byte",
        "812 bytes",
        "48 kB",
        "1.5 MB",
    ]
    assert reader.duration(timedelta(seconds=1.234)) == "1.2 sec"
    assert Reader("ru", UTC, NOW).size(2) == "2 байта"
