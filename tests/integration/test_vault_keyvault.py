"""keyvault: with the real clients of Azure, against a stub of the vault and of the identity."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.config import load
from gateway.demo.runner import serve
from gateway.errors import Unavailable
from gateway.vault import Purpose, Secret, SecretRef
from gateway.vault.azure_identity import AzureCredential, azure_credential
from gateway.vault.keyvault import KeyVaultStore
from tests.support.keyvault import KeyVault, identity_service
from tests.support.tls import over_tls

VALUE = "canary-7f3a-9e21"


@dataclass
class House:
    """A store, the vault it reads, and who asked for an identity."""

    vault: KeyVault
    store: KeyVaultStore
    signed_in: list[dict[str, str]]
    make: Callable[[AzureCredential], KeyVaultStore]

    async def open(self, text: str = "keyvault:corp/crm") -> Secret:
        return await self.store.open(SecretRef.parse(text), Purpose())

    async def fails(self, code: str, text: str = "keyvault:corp/crm") -> str:
        with pytest.raises(Unavailable) as caught:
            await self.open(text)
        assert caught.value.code == code, caught.value.message
        assert "canary" not in caught.value.message
        assert caught.value.__cause__ is None
        return caught.value.message


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    vault, signed_in = KeyVault(), []
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(serve(vault.app()))
        url, ca = await stack.enter_async_context(over_tls(plain, tmp_path))
        imds = await stack.enter_async_context(serve(identity_service(signed_in)))
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds)
        options = {"connection_verify": str(ca), "verify_challenge_resource": False}

        def make(credential: AzureCredential) -> KeyVaultStore:
            return KeyVaultStore(credential, lambda: datetime.now(UTC), lambda _: url, options)

        credential = azure_credential(load({"GATEPASS_AZURE_CREDENTIAL": "managed"}))
        house = House(vault, make(credential), signed_in, make)
        yield house
        await house.store.close()


async def test_the_newest_version_is_read_or_the_one_that_is_named(house: House):
    first = house.vault.put("crm", VALUE)
    newest = house.vault.put("crm", "canary-2")
    secret = await house.open()
    assert (secret.reveal(), secret.version) == ("canary-2", newest)
    pinned = await house.open(f"keyvault:corp/crm#{first}")
    assert (pinned.reveal(), pinned.version) == (VALUE, first)
    assert repr(secret) == "<secret keyvault:corp/crm>"


async def test_one_identity_serves_all_who_wait(house: House):
    house.vault.put("crm", VALUE)
    secrets = await asyncio.gather(*(house.open() for _ in range(5)))
    assert {secret.reveal() for secret in secrets} == {VALUE}
    assert [asked["resource"] for asked in house.signed_in] == ["https://vault.azure.net"]


async def test_S_16_what_cannot_be_read_is_told(house: House):
    assert "There is no secret" in await house.fails("secret_missing")
    house.vault.put("crm", VALUE)
    assert "There is no secret" in await house.fails(
        "secret_missing", "keyvault:corp/crm#" + "f" * 32
    )
    house.vault.put("crm", VALUE, enabled=False)
    assert "is disabled" in await house.fails("secret_missing")
    house.vault.put("crm", VALUE, exp=int(time.time()) - 1)
    assert "has expired" in await house.fails("secret_missing")
    house.vault.put("crm", VALUE, nbf=int(time.time()) + 900)
    assert "may not be used yet" in await house.fails("secret_missing")
    house.vault.put("crm", "canary\nX-Evil: 1")
    assert "a line break" in await house.fails("secret_unusable")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "vault_forbidden", "the role 'Key Vault Secrets User' for the vault 'corp'"),
        (429, "vault_busy", "asked too often"),
        (500, "vault_unavailable", "(500)"),
        (503, "vault_unavailable", "(503)"),
    ],
)
async def test_S_16_each_state_is_told_at_once(house: House, status: int, code: str, said: str):
    house.vault.put("crm", VALUE)
    await house.open()
    house.vault.fails = status
    assert said in await house.fails(code)
    assert house.vault.asked == ["crm", "crm"], "nothing is tried again"
    house.vault.fails = 0
    assert (await house.open()).reveal() == VALUE


async def test_S_16_a_vault_that_cannot_be_reached(house: House):
    house.store._address = lambda name: "https://localhost:9"
    assert "cannot be reached" in await house.fails("vault_unreachable")


async def test_without_an_identity_the_sentence_says_what_to_do(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    async with serve(identity_service([], 400)) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds)
        house.store = house.make(AzureCredential("managed", "client-1"))
        said = await house.fails("azure_identity_unavailable")
        await house.store.close()
    assert "assign a managed identity" in said


async def test_an_identity_is_asked_for_by_its_client_id(house: House):
    credential = AzureCredential("managed", "client-1")
    token = await credential.get_token("https://vault.azure.net/.default")
    await credential.get_token("https://vault.azure.net/.default")
    assert token.token == "kv-token"
    assert [asked["client_id"] for asked in house.signed_in] == ["client-1"]
    assert "kv-token" not in repr(credential)
    await credential.close()


@pytest.mark.parametrize("kind", ["default", "workload"])
async def test_the_other_kinds_are_built_from_the_environment(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("CLIENT_ID", "TENANT_ID", "FEDERATED_TOKEN_FILE"):
        monkeypatch.setenv(f"AZURE_{name}", str(tmp_path / "token"))
    # No address is asked: there is no token to sign in with.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "WorkloadIdentityCredential")
    credential = AzureCredential(kind, None)
    with pytest.raises(Unavailable, match="Azure gives the gateway no token"):
        await credential.get_token("https://vault.azure.net/.default")
    await credential.close()


def test_the_libraries_of_azure_are_not_imported_before_they_are_needed():
    code = "import sys, gateway.app; assert not [m for m in sys.modules if m.startswith('azure')]"
    subprocess.run([sys.executable, "-c", code], check=True)
