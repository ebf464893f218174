"""One form for one address, and the addresses that are out of bounds."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.egress.addresses import check, normalise, problem_with_address
from gateway.errors import Refused


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("https://MCP.Crm.Example:443/mcp", "https://mcp.crm.example/mcp"),
        ("HTTPS://a.example", "https://a.example/"),
        ("https://a.example/mcp/", "https://a.example/mcp/"),
        ("https://a.example/MCP", "https://a.example/MCP"),
        ("https://a.example:8443/x?y=1", "https://a.example:8443/x?y=1"),
        ("http://a.example:80/", "http://a.example/"),
        ("http://a.example:443/", "http://a.example:443/"),
        ("https://пример.рф/x", "https://xn--e1afmkfd.xn--p1ai/x"),
        ("https://BÜCHER.example/", "https://xn--bcher-kva.example/"),
        ("https://ⓔxample.com/", "https://example.com/"),
        ("https://[2001:0db8::0001]/", "https://[2001:db8::1]/"),
        ("https://a.example/%2f", "https://a.example/%2f"),
    ],
)
def test_one_form(url: str, form: str) -> None:
    assert normalise(url).url == form
    assert normalise(form).url == form


def test_a_slash_at_the_end_makes_another_address() -> None:
    assert normalise("https://a.example/mcp").url != normalise("https://a.example/mcp/").url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "1 to 2048 characters"),
        ("https://a.example/" + "x" * 2048, "1 to 2048 characters"),
        ("mcp.crm.example", "must begin with https://"),
        ("ftp://a.example/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("gopher://a.example/", "must begin with https://"),
        ("unix:/run/x.sock", "must begin with https://"),
        ("stdio:python", "must begin with https://"),
        ("https:/a.example/", "must begin with https://"),
        ("https:a.example", "must begin with https://"),
        ("//a.example/", "must begin with https://"),
        ("https:///x", "needs a host name"),
        ("https://:443/", "needs a host name"),
        ("https://user@a.example/", "must not contain a user name"),
        ("https://user:pw@a.example/", "must not contain a user name"),
        ("https://@a.example/", "must not contain a user name"),
        ("https://a.example@evil.example/", "must not contain a user name"),
        ("https://a.example/#x", "must not contain a fragment"),
        ("https://a.example#", "must not contain a fragment"),
        ("https://a.example\\@evil.example/", "backslashes"),
        ("https://a.example/x y", "must not contain spaces"),
        ("https://a.example/\r\nX: y", "must not contain spaces"),
        ("https://a\t.example/", "must not contain spaces"),
        ("https://a.example/\0", "must not contain spaces"),
        ("https://a.example./", "not valid"),
        ("https://a..example/", "not valid"),
        ("https://-a.example/", "not valid"),
        ("https://a.example%2eevil.example/", "needs a host name"),
        ("https://" + "a" * 64 + ".example/", "not valid"),
        ("https://a.example:0/", "port"),
        ("https://a.example:/", "port"),
        ("https://a.example:65536/", "port"),
        ("https://a.example:8x/", "port"),
        ("https://a.example/a/../b", "has . or .. in its path"),
        ("https://a.example/./b", "has . or .. in its path"),
        ("https://a.example/a/%2E%2e/b", "has . or .. in its path"),
        ("https://a.example/.%2e", "has . or .. in its path"),
        ("https://a.example/é", "percent-encoded"),
        ("https://a.example/?q=<x>", "percent-encoded"),
        ("https://[::1", "is not a URL"),
        ("https://[fe80::1%25eth0]/", "IPv6 address that is not valid"),
        ("https://[fe80::1%eth0]/", "IPv6 address that is not valid"),
        ("http://2130706433/", "not a plain a.b.c.d"),
        ("http://0x7f000001/", "not a plain a.b.c.d"),
        ("http://0x7f.1/", "not a plain a.b.c.d"),
        ("http://0177.0.0.1/", "not a plain a.b.c.d"),
        ("http://127.1/", "not a plain a.b.c.d"),
        ("http://127.0.0.01/", "not a plain a.b.c.d"),
        ("http://1.2.3.4.5/", "not a plain a.b.c.d"),
        ("http://a.example.0x1/", "not a plain a.b.c.d"),
    ],
)
def test_what_parsers_could_read_differently_is_refused(url: str, message: str) -> None:
    with pytest.raises(Refused, match="The address") as caught:
        check(url, allow_private_network=True)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://127.9.9.9/",
        "https://10.0.0.5/",
        "https://172.16.0.1/",
        "https://192.168.1.1/",
        "https://100.64.1.1/",
        "https://198.18.0.1/",
        "https://[::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://[2002:7f00:1::]/",
        "https://１２７.０.０.１/",
        "https://localhost/",
        "https://LOCALHOST/",
        "https://a.localhost/",
        "https://intranet/",
        "https://printer.local/",
        "https://mcp.corp.internal/",
        "http://a.example/",
        "http://8.8.8.8/",
    ],
)
def test_private_and_plain_addresses_must_be_allowed(url: str) -> None:
    with pytest.raises(Refused, match="allow_private_network: true"):
        check(url, allow_private_network=False)
    assert check(url, allow_private_network=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.170.2/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://168.63.129.16/",
        "http://100.100.100.200/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://metadata.google.internal/",
        "http://metadata/",
        "http://0.0.0.0/",
        "http://0.1.2.3/",
        "http://[::]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://[ff02::1]/",
    ],
)
def test_some_addresses_are_never_contacted(url: str) -> None:
    for allowed in (False, True):
        with pytest.raises(Refused):
            check(url, allow_private_network=allowed)


@pytest.mark.parametrize("url", ["https://8.8.8.8/mcp", "https://[2606:4700::1111]/"])
def test_public_addresses_pass(url: str) -> None:
    assert check(url, allow_private_network=False).url == url


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_like_the_one_inside(address: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    for allowed in (False, True):
        inside = problem_with_address(address, allow_private_network=allowed)
        outside = problem_with_address(mapped, allow_private_network=allowed)
        assert (inside is None) == (outside is None)


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/"):
        try:
            form = normalise(url).url
        except Refused:
            continue
        assert normalise(form).url == form
