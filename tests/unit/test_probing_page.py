"""What a test of a server found, read for a page: whatever it is, it can be shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from web.pages import probing

EXPIRES = datetime(2027, 1, 5, tzinfo=UTC)
REPORT: dict[str, Any] = {
    "url": "https://mcp.crm.example/mcp",
    "label": "crm",
    "credential": "sealed:crm",
    "visit": {
        "outcome": "answered",
        "sentence": "The server listed 2 tools.",
        "address": "203.0.113.7",
        "tls": {
            "version": "TLSv1.3",
            "cipher": "TLS_AES_256_GCM_SHA384",
            "subject": "mcp.crm.example",
            "issuer": "Example CA",
            "expires": EXPIRES,
        },
        "server": {"name": "crm", "version": "2", "protocol": "2025-06-18", "instructions": None},
        "tools": (
            {"name": "find", "description": "Finds.", "annotations": {"readOnlyHint": True}},
            {"name": "send", "description": None, "annotations": {}},
        ),
        "complete": True,
        "challenge": None,
        "milliseconds": {"connect": 3, "tls": 9, "initialize": 40, "list_tools": None},
    },
    "without_credential": {"outcome": "credential_wanted", "sentence": "It wants one (401)."},
    "warnings": ({"code": "plain_http", "sentence": "Not encrypted."},),
}


def test_a_report_is_read_whole() -> None:
    found = probing.of(REPORT)
    assert (found.ok, found.outcome.code, found.listed) == (True, "answered", 2)
    assert dict(found.facts) == {
        "Calls itself": "crm 2",
        "Protocol": "2025-06-18",
        "Reached at": "203.0.113.7",
        "Encryption": "TLSv1.3, TLS_AES_256_GCM_SHA384",
        "Certificate of": "mcp.crm.example",
        "Issued by": "Example CA",
    }
    assert found.expires == EXPIRES
    assert [milliseconds for _, milliseconds in found.steps] == [3, 9, 40]
    assert [(tool.name, tool.effect) for tool in found.tools] == [
        ("find", "reads"),
        ("send", "unsaid"),
    ]
    assert found.stranger is not None
    assert found.stranger.code == "credential_wanted"
    assert [warning.code for warning in found.warnings] == ["plain_http"]


NAMES = st.sampled_from(
    [
        "visit",
        "tls",
        "server",
        "tools",
        "warnings",
        "without_credential",
        "milliseconds",
        "outcome",
        "expires",
        "name",
    ]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
)


@given(st.dictionaries(NAMES, ANY))
def test_nothing_that_a_test_gives_breaks_the_page(report: dict[str, Any]) -> None:
    found = probing.of(report)
    assert found.listed >= len(found.tools)
