"""References name secrets; they never are secrets, and never repeat what was pasted for one."""

from __future__ import annotations

import pytest

from gateway.errors import Refused
from gateway.store.references import SecretRef


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
