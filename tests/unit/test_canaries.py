"""The search for secrets finds what was written, in whichever way, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.canaries import ENCODINGS, MARK, canary, find, write_as

SECRETS = {str(number): canary(number) for number in range(50)}
OTHERS = {"key": "gp_app_k3v9x2ma_Zm9vYmFyYmF6cXV4", "token": "8f1c-77aa/b"}
_NOISE = st.binary(max_size=200)
_BEFORE = st.text("abcXYZ 0:{,", max_size=9)


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 49), _BEFORE, _NOISE, _NOISE)
def test_what_is_planted_is_found(
    encoding: str, number: int, before: str, left: bytes, right: bytes
) -> None:
    for written in write_as(encoding, canary(number), before):
        # What joins and unpacks needs the beginning of what it reads to be where it is.
        noise = (b"", b"") if encoding in {"split", "gzip"} else (left, right)
        data = noise[0] + b"\n" + written + b"\n" + noise[1]
        assert str(number) in {found.secret for found in find(data, SECRETS)}, written


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_secrets_of_other_forms_are_found_too(encoding: str, name: str) -> None:
    for written in write_as(encoding, OTHERS[name], "ab"):
        found = find(b"x" + b"\n" + written, OTHERS)
        assert name in {each.secret for each in found}, written


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 49), st.integers(0, 49))
def test_one_is_not_taken_for_another(number: int, other: int) -> None:
    found = {each.secret for each in find(canary(number).encode(), {str(other): canary(other)})}
    assert found == ({str(other)} if number == other else set())


@settings(deadline=None, max_examples=25)
@given(_NOISE)
def test_nothing_is_found_in_noise(data: bytes) -> None:
    assert find(data, SECRETS) == set()


def test_a_part_of_one_is_none() -> None:
    assert find(canary(3)[:-3].encode() + MARK.encode(), SECRETS) == set()


def test_it_looks_into_what_is_packed_twice() -> None:
    [outer, *_] = write_as("gzip", "")
    inner = write_as("gzip", canary(7))[1]
    packed = write_as("base64+0", canary(8))[0]
    assert find(inner + outer, SECRETS)
    assert {each.secret for each in find(b"\n" + packed, SECRETS)} == {"8"}


def test_the_way_it_was_written_is_named() -> None:
    for encoding in ENCODINGS:
        ways = {found.encoding for found in find(write_as(encoding, canary(5))[0], SECRETS)}
        assert encoding in ways
