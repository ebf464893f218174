"""What claims say in our words: only what is mapped, exactly, and never a guess."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refused
from gateway.identity.claims import Identity, Rules, SignInRefused, found, identity, lacks
from gateway.identity.roles import ROLES

RULES = Rules(
    "roles",
    "groups",
    {"Gatepass.Review": ("reviewer",), "Gatepass.All": ("admin", "reviewer")},
    {"0b1c": ("treasury",), "0b1d": ("treasury", "desk")},
)
GOOD = {"iss": "https://idp.example", "sub": "s-1", "email": "Ann@Example.org", "name": " Ann "}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def read(**claims: Any) -> Identity:
    return identity({**GOOD, **claims}, RULES)


def code(**claims: Any) -> str:
    with pytest.raises(SignInRefused) as refused:
        read(**claims)
    return refused.value.code


def test_roles_and_groups_are_those_that_are_mapped():
    got = read(roles=["Gatepass.All", "Other", "admin"], groups=["0b1d", "treasury", 7])
    assert got.roles == ("reviewer", "admin")
    assert got.groups == ("desk", "treasury")
    assert (got.email, got.name) == ("ann@example.org", "Ann")
    assert read(roles="Gatepass.Review").roles == ("reviewer",)


def test_values_are_compared_exactly():
    assert read(roles=["gatepass.review", "Gatepass.Review "]).roles == ()


def test_an_address_is_needed_and_one_that_is_not_verified_is_refused():
    assert code(email=None) == code(email="ann") == code(email="a b@c") == "no_email"
    assert code(email=None, preferred_username="ann@example.org") == "no_email"
    assert code(email_verified=False) == code(email_verified="false") == "email_unverified"
    assert code(email_verified=None) == "email_unverified"
    assert read(email_verified=True).email == "ann@example.org"


@pytest.mark.parametrize("subject", [None, "", 7, "x" * 256, "a\n", "é", ["s"]])
def test_somebody_without_a_name_at_the_provider_is_nobody(subject: Any):
    assert code(sub=subject) == "subject_invalid"


def test_more_groups_than_fit_are_a_refusal_and_not_none():
    for claims in ({"_claim_names": {"groups": "src1"}}, {"hasgroups": True}):
        assert code(**claims) == "groups_overage"
        rules = Rules("roles", "groups", RULES.roles, {})
        assert identity({**GOOD, **claims}, rules).groups == ()  # where groups say nothing anyway
    assert not lacks({**GOOD, "roles": [], "hasgroups": True}, RULES)


def test_a_claim_is_found_by_its_name_or_by_the_way_to_it():
    claims = {"https://x.example/roles": ["a"], "realm_access": {"roles": ["b"]}, "a.b": 1}
    assert found(claims, "https://x.example/roles") == ["a"]
    assert found(claims, "realm_access.roles") == ["b"]
    assert found(claims, "a.b") == 1
    assert found(claims, "realm_access.roles.c") is None


def test_what_is_lacking_is_known():
    assert lacks(GOOD, RULES)
    assert not lacks({**GOOD, "roles": [], "groups": []}, RULES)
    assert not lacks({**GOOD, "roles": []}, Rules("roles", "groups", RULES.roles, {}))


def test_a_role_that_there_is_not_is_named():
    with pytest.raises(Refused, match="'owner'"):
        Rules("roles", "groups", {"x": ("owner",)}, {})


@given(st.dictionaries(st.sampled_from(["roles", "groups", "name", "sub", "email", "hasgroups",
                                        "_claim_names", "email_verified"]), JSON))  # fmt: skip
def test_whatever_claims_hold_gives_mapped_roles_or_a_refusal(claims: dict[str, Any]):
    try:
        got = read(**claims)
    except SignInRefused:
        return
    mapped = {role for values in RULES.roles.values() for role in values}
    assert set(got.roles) <= mapped <= set(ROLES)
    assert set(got.groups) <= {"treasury", "desk"}
    said = claims.get("roles")
    if not (isinstance(said, list | str) and any(value in said for value in RULES.roles)):
        assert got.roles == ()


@given(st.lists(st.sampled_from([*RULES.roles, "x"])), st.sampled_from(list(RULES.roles)))
def test_one_value_more_never_takes_a_role_away(values: list[str], more: str):
    assert set(read(roles=values).roles) <= set(read(roles=[*values, more]).roles)
