"""References name secrets; they never are secrets, and never repeat what was pasted for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.egress.addresses import normalise
from gateway.errors import Refused
from gateway.store.references import SecretRef, origin_of


@pytest.mark.parametrize(
    "text",
    [
        "sealed:crm",
        "env:WIKI_TOKEN",
        "file:/run/secrets/crm",
        "vault:kv/mcp/crm#token",
        "keyvault:corp/crm",
        "oauth:crm",
    ],
)
def test_they_print_as_they_were_written(text: str) -> None:
    assert str(SecretRef.parse(text)) == text


def test_scope_is_not_printed_and_counts() -> None:
    bound = SecretRef("sealed", "crm", scope="srv_1 https://a.example/")
    assert str(bound) == "sealed:crm"
    assert bound != SecretRef("sealed", "crm")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "canary-7f3a",
        "sk-canary-7f3a:x",
        "Bearer canary-7f3a",
        "env:",
        "env:canary-7f3a",
        "env:1X",
        "env:A B",
        "sealed:canary/7f3a",
        "sealed:x#canary-7f3a",
        "file:canary/7f3a",
        "file:/x\ncanary-7f3a",
        "vault:kv/x#canary 7f3a",
        "vault:#x",
        "VAULT:kv/canary-7f3a",
    ],
)
def test_what_is_no_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Refused) as caught:
        SecretRef.parse(text)
    assert caught.value.code == "secret_reference_invalid"
    assert "canary" not in str(caught.value)


SCOPES = st.tuples(
    st.sampled_from(["srv_1", "srv_2", "srv_11"]),
    st.sampled_from(["http", "https"]),
    st.sampled_from(["crm.example", "evil.example", "crm.example.evil.example", "[::1]"]),
    st.sampled_from(["", ":80", ":443", ":8443"]),
    st.sampled_from(["/", "/mcp", "/mcp?x=https://crm.example/"]),
)


@given(SCOPES, SCOPES)
def test_S_17_a_reference_is_good_for_the_server_and_origin_it_is_bound_to(
    wanted: tuple[str, ...], given_for: tuple[str, ...]
) -> None:
    (owner, *rest), (other, *more) = wanted, given_for
    here, there = (normalise(f"{a}://{b}{c}{d}") for a, b, c, d in (rest, more))
    good = SecretRef.parse("env:X").to(other, there.url, origin_of(there.url)).bound
    ref = replace(SecretRef.parse("env:X"), scope=f"{owner} {here.url}", bound=good)
    same_place = (here.scheme, here.host, here.port) == (there.scheme, there.host, there.port)
    assert ref.is_bound == (owner == other and same_place)


def test_S_17_what_nobody_has_bound_is_good_for_nothing() -> None:
    ref = SecretRef.parse("env:X")
    assert not ref.is_bound
    assert not ref.to("srv_1", "https://crm.example/", None).is_bound
    bound = ref.to("srv_1", "https://crm.example/", "https://crm.example:443")
    assert bound.is_bound
    assert not replace(bound, scope="srv_2 https://crm.example/").is_bound
    assert not replace(bound, scope="srv_1").is_bound
    assert not replace(bound, scope=None).is_bound
    assert replace(bound, scope="srv_1 https://crm.example/other").is_bound


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://CRM.example/mcp", "https://crm.example:443"),
        ("https://crm.example:443", "https://crm.example:443"),
        ("http://crm.example:443/", "http://crm.example:443"),
        ("https://\uff43rm\u3002example/", "https://crm.example:443"),
        ("https://\u0441rm.example/", "https://xn--rm-nmc.example:443"),  # a Cyrillic letter
        ("https://[2001:DB8::1]:8443/", "https://[2001:db8::1]:8443"),
    ],
)
def test_S_17_one_origin_is_written_in_one_way(url: str, origin: str) -> None:
    assert origin_of(normalise(url).url) == origin


@pytest.mark.parametrize("dot", [".", "\u3002", "\uff0e"])
def test_S_17_a_dot_at_the_end_is_refused_in_every_script(dot: str) -> None:
    with pytest.raises(Refused):
        normalise(f"https://crm.example{dot}/mcp")
