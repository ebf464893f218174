"""OAuth clients in declarative files: what they may say, and each mistake with its place."""

from __future__ import annotations

import pytest

from gateway.errors import Refused
from gateway.registry.declaration import parse
from gateway.store.oauth import OAuthClient

GOOD = """
oauth_clients:
  - name: crm
    grant: client_credentials
    token_url: https://LOGIN.example/token
    client_id: gatepass
    client_secret: {from: "env:CRM_SECRET"}
    scope: crm.read crm.write
  - name: graph
    grant: on_behalf_of
    tenant: 11111111-2222-3333-4444-555555555555
    client_id: gatepass
    assertion: workload_identity
    scope: https://graph.microsoft.com/.default
  - name: files
    grant: token_exchange
    issuer: https://login.example/realm
    client_id: gatepass
    client_secret: {from: "sealed:files"}
    client_auth: post
    audience: https://files.example
"""
CLIENT = (
    "oauth_clients:\n  - name: crm\n    client_id: x\n    client_secret: {from: 'env:X'}\n"
    "    token_url: https://login.example/token\n"
)
TENANT = (
    "oauth_clients:\n  - name: crm\n    client_id: x\n    client_secret: {from: 'env:X'}\n"
    "    grant: on_behalf_of\n"
)


def test_clients_are_read() -> None:
    crm, graph, files = parse({"good.yaml": GOOD}).oauth_clients
    assert crm == OAuthClient(
        "crm",
        "client_credentials",
        "gatepass",
        token_url="https://login.example/token",
        client_secret="env:CRM_SECRET",
        scope="crm.read crm.write",
    )
    assert (graph.assertion, graph.for_user) == ("workload_identity", True)
    assert graph.where == "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555"
    assert (files.client_auth, files.for_user, crm.for_user) == ("post", True, False)
    for client in (crm, graph, files):
        assert OAuthClient(**client.row()) == client


def test_a_secret_is_good_for_its_client_and_token_server_alone() -> None:
    files = parse({"good.yaml": GOOD}).oauth_clients[2]
    ref = files.secret_ref()
    assert ref is not None
    assert ref.scope == "oauth/files https://login.example/realm"
    assert ref.stored_as == "oauth/files/files"


def test_a_file_without_clients_has_the_digest_that_it_had_before_there_were_any() -> None:
    text = "reviewer_groups:\n  - name: a\n    members: [ann@example.org]\n"
    found = parse({"x.yaml": text}).digest
    assert parse({"x.yaml": text + "oauth_clients: []\n"}).digest == found
    assert parse({"x.yaml": text + GOOD}).digest != found


WRONG = [
    (CLIENT, "bad.yaml:2: oauth_clients[0]: needs a grant: client_credentials or token_exchange"),
    (CLIENT + "    grant: password\n", "bad.yaml:6: oauth_clients[0].grant: must be client_cred"),
    (
        CLIENT + "    grant: client_credentials\n    issuer: https://login.example\n",
        "bad.yaml:2: oauth_clients[0]: needs one of token_url, issuer and tenant",
    ),
    (
        CLIENT + "    grant: client_credentials\n    assertion: workload_identity\n",
        "bad.yaml:2: oauth_clients[0]: needs one of client_secret and assertion",
    ),
    (
        CLIENT + "    grant: client_credentials\n    secret: canary-7f3a\n",
        "bad.yaml:7: unknown member 'secret' in oauth_clients[0]; known: name, grant",
    ),
    (
        CLIENT.replace("env:X", "canary-7f3a") + "    grant: client_credentials\n",
        "bad.yaml:4: oauth_clients[0].client_secret.from: A secret is named by one of",
    ),
    (
        CLIENT.replace("env:X", "oauth:other") + "    grant: client_credentials\n",
        "bad.yaml:4: oauth_clients[0].client_secret: must be in another store than oauth:",
    ),
    (
        CLIENT.replace("https://login.example", "http://login.example")
        + "    grant: client_credentials\n",
        "bad.yaml:5: oauth_clients[0].token_url: The address plain http needs allow_private",
    ),
    (
        CLIENT.replace("login.example", "169.254.169.254")
        + "    grant: client_credentials\n    allow_private_network: true\n",
        "bad.yaml:5: oauth_clients[0].token_url: The address 169.254.169.254 is a link-local",
    ),
    (
        CLIENT + "    grant: client_credentials\n    scope: a  b\n",
        "bad.yaml:7: oauth_clients[0].scope: has characters that do not belong there",
    ),
    (CLIENT + "    grant: on_behalf_of\n", "bad.yaml:6: oauth_clients[0].grant: on_behalf_of is"),
    (TENANT + "    tenant: t\n", "bad.yaml:2: oauth_clients[0]: needs a scope"),
    (
        TENANT + "    tenant: common\n    scope: s\n",
        "bad.yaml:6: oauth_clients[0].tenant: has characters that do not belong there",
    ),
    (
        TENANT + "    tenant: t\n    scope: s\n    audience: a\n",
        "bad.yaml:5: oauth_clients[0].grant: on_behalf_of takes a scope",
    ),
    (
        TENANT + "    tenant: t\n    scope: s\n    authority: https://login.example/other\n",
        "bad.yaml:8: oauth_clients[0].authority: must be https:// and a host",
    ),
    (GOOD + "  - name: crm\n", "the name 'crm' of oauth_clients is taken by"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_mistake_is_told_with_its_place(text: str, message: str) -> None:
    if "is taken by" in message:
        text = GOOD + GOOD.removeprefix("\noauth_clients:\n").partition("  - name: graph")[0]
    with pytest.raises(Refused) as caught:
        parse({"bad.yaml": text})
    place, _, sentence = message.partition(": ")
    found = [line for line in caught.value.message.splitlines() if sentence in line]
    assert found or message in caught.value.message, caught.value.message
    if place.startswith("bad.yaml"):
        assert found[0].startswith(f"{place}:"), found
    assert "canary" not in caught.value.message
