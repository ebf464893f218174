"""What a grant covers, and in what right somebody reviews: the pure rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.approvals import lifecycle, terms
from gateway.approvals.lifecycle import Capacity, Person, Standing, Vote
from gateway.approvals.terms import Pattern, Terms
from gateway.errors import Refused

NOW = datetime(2026, 1, 5, 9, tzinfo=UTC)
ARGUMENTS = '{"a": {"b/c": [1, {"~": "x"}]}, "d": 1.0, "e": true, "f": null}'


def pattern(*fields: str, arguments: str = ARGUMENTS) -> Pattern:
    wanted = Terms("fields", "app", NOW + timedelta(hours=1), fields)
    return Pattern.of(wanted, arguments, "00")


def test_every_leaf_can_be_chosen_by_its_json_pointer() -> None:
    assert terms.pointers(ARGUMENTS) == ["/a/b~1c/0", "/a/b~1c/1/~0", "/d", "/e", "/f"]
    assert pattern(*terms.pointers(ARGUMENTS)).covers(ARGUMENTS)


@pytest.mark.parametrize(
    "other",
    [
        ARGUMENTS.replace("1.0", "1"),
        ARGUMENTS.replace("true", "1"),
        ARGUMENTS.replace("null", '""'),
        ARGUMENTS.replace('"x"', '"X"'),
        ARGUMENTS.replace("[1,", "[2,"),
        ARGUMENTS.replace('"d"', '"D"'),
        "",
        "{}",
        "[]",
    ],
)
def test_a_field_that_differs_in_value_or_kind_is_not_the_same(other: str) -> None:
    assert not pattern(*terms.pointers(ARGUMENTS)).covers(other)


@pytest.mark.parametrize("pointer", ["", "a", "/x", "/a/b", "/a/b~1c/2", "/a/b~1c/-1", "/d/0"])
def test_a_field_that_is_not_there_cannot_be_chosen(pointer: str) -> None:
    with pytest.raises(Refused):
        pattern(pointer)


def test_what_two_readers_read_differently_is_like_nothing_but_itself() -> None:
    twice = '{"a": 1, "a": 2}'
    with pytest.raises(Refused):
        pattern("/a", arguments=twice)
    assert terms.pointers(twice) == []
    whole = Terms("exact", "app", NOW + timedelta(hours=1))
    assert Pattern.of(whole, twice, "00").covers(twice)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_a_pattern_survives_its_sealing(fields: dict[str, object]) -> None:
    made = Pattern("fields", fields=fields, nonce="ab")
    try:
        document = made.document()
    except TypeError:  # numbers beyond 64 bits, half a character: never read without a hazard
        return
    assert Pattern.read(document) == made


def test_the_digest_covers_everything_and_is_blinded() -> None:
    facts = {"grant": "grt_1", "max_uses": None}
    first = terms.digest(facts, Pattern("exact", exact="x", nonce="00"))
    assert first != terms.digest(facts, Pattern("exact", exact="x", nonce="01"))
    assert first != terms.digest(facts, Pattern("exact", exact="y", nonce="00"))
    assert first != terms.digest({**facts, "max_uses": 1}, Pattern("exact", exact="x", nonce="00"))


DESK = Standing(2, frozenset({"desk"}), False, None, None)
ANN, BO = Person("ann@example.org", frozenset({"desk"})), Person("bo@example.org", frozenset())


def test_ones_own_right_comes_before_that_of_another() -> None:
    assert lifecycle.capacity(DESK, ANN, [ANN]) == Capacity()
    assert lifecycle.capacity(DESK, BO, [ANN]) == Capacity("ann@example.org")
    assert isinstance(lifecycle.capacity(DESK, BO, []), str)


def test_of_several_the_one_who_has_not_spoken_is_stood_in_for() -> None:
    cy = Person("cy@example.org", frozenset({"desk"}))
    heard = [Vote("usr_1", "Ann@example.org", "approve")]
    assert lifecycle.capacity(DESK, BO, [ANN, cy], heard) == Capacity("cy@example.org")
    both = [*heard, Vote("usr_2", "dee@example.org", "approve", "CY@example.org")]
    assert isinstance(lifecycle.capacity(DESK, BO, [ANN, cy], both), str)


def test_who_was_heard_through_another_is_not_heard_again() -> None:
    heard = [Vote("usr_2", "bo@example.org", "approve", "ann@example.org")]
    assert isinstance(lifecycle.capacity(DESK, ANN, [], heard), str)


def test_an_approval_that_does_not_count_makes_no_quorum_and_a_denial_always_denies() -> None:
    gone = Vote("usr_1", "ann@example.org", "approve", counts=False)
    other = Vote("usr_2", "bo@example.org", "approve")
    assert lifecycle.outcome(DESK, [gone, other]) == "pending"
    assert lifecycle.outcome(DESK, [other, Vote("usr_3", "cy", "approve")]) == "approved"
    assert lifecycle.outcome(DESK, [Vote("usr_3", "cy", "deny", counts=False)]) == "denied"
