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
        "vault:team-kv/a.b/c_d/e@f#client.secret-1",
        "keyvault:corp/crm",
        "keyvault:corp-2/crm-token#0123456789abcdef0123456789abcdef",
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
        "vault:canary-7f3a#x",
        "vault:kv/canary-7f3a",
        "vault:kv/canary-7f3a#",
        "vault:kv/canary-7f3a/#x",
        "vault:kv//canary-7f3a#x",
        "vault:/kv/canary-7f3a#x",
        "vault:kv/../canary-7f3a#x",
        "vault:kv/./canary-7f3a#x",
        "vault:kv/canary-7f3a/..#x",
        "vault:kv/canary-7f3a?version=1#x",
        "vault:kv/%2e%2e/canary-7f3a#x",
        "vault:kv/" + "canary-7f3a/" * 30 + "a#x",
        "vault:kv/x#canary-7f3a#y",
        "keyvault:canary-7f3a",
        "keyvault:corp/canary_7f3a",
        "keyvault:corp.example/canary-7f3a",
        "keyvault:corp/canary/7f3a",
        "keyvault:corp/x#canary-7f3a",
        "keyvault:c/canary-7f3a",
        "keyvault:corp--2/canary-7f3a",
        "VAULT:kv/canary-7f3a",
    ],
)
def test_what_is_no_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Refused) as caught:
        SecretRef.parse(text)
    assert caught.value.code == "secret_reference_invalid"
    assert "canary" not in str(caught.value)
