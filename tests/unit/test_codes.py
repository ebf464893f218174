"""Codes and tokens: their shape, that only digests are compared, and in full."""

from __future__ import annotations

import hashlib

import pytest

from gateway.identity import codes


def test_a_token_has_the_documented_shape() -> None:
    token_id, token = codes.new_token()
    assert token == f"gp_pat_{token_id}_{token[-43:]}"
    assert codes.token_id(token) == token_id
    assert codes.digest(token) == hashlib.sha256(token.encode()).digest()


def test_codes_carry_256_bits_and_do_not_repeat() -> None:
    made = {codes.new_code() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(code) for code in made} == {43}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gp_pat_",
        "gp_app_abcdefgh_" + "x" * 43,
        "gp_pat_abcdefg_" + "x" * 43,
        "gp_pat_abcdefgh_" + "x" * 42,
        "gp_pat_abcdefgh_" + "x" * 44,
        "gp_pat_abcdefgh_" + "x" * 42 + "\n",
        "gp_pat_abcdefgh_" + "x" * 43 + "\n",
        " gp_pat_abcdefgh_" + "x" * 43,
        "gp_pat_abcdefg'_" + "x" * 43,
    ],
)
def test_nothing_else_has_the_shape(text: str) -> None:
    assert codes.token_id(text) is None


def test_two_tokens_with_the_same_id_and_beginning_are_distinct() -> None:
    one = "gp_pat_abcdefgh_" + "x" * 42 + "a"
    two = "gp_pat_abcdefgh_" + "x" * 42 + "b"
    assert codes.same(one, codes.digest(one))
    assert not codes.same(two, codes.digest(one))


def test_an_unknown_id_is_compared_too_and_never_matches() -> None:
    assert not codes.same("gp_pat_abcdefgh_" + "x" * 43, None)
    assert not codes.same("", None)


def test_hostile_text_is_only_a_wrong_code() -> None:
    assert not codes.same("\ud800", codes.digest("x"))
