"""One request to OpenBao or HashiCorp Vault, through the guarded client.

What they answer of an error is read to tell what state they are in, and never repeated.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gateway.egress.client import Bounds, Redirected, TooLarge, open_client
from gateway.errors import Unavailable
from gateway.exchange.messages import Json

SECONDS = 5.0
_LARGEST = 1024 * 1024
_BUSY = frozenset({429})
_REDIRECTS = range(300, 400)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the vault is."""

    address: str
    namespace: str | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What it answered, where it was in a state to: 200, or what the request deserved."""

    status: int
    body: Json


class Http:
    """A few kept connections. Raises `Unavailable` with a clear state, and nothing else."""

    def __init__(self, place: Place) -> None:
        self.address = place.address.rstrip("/")
        self._place = place
        self._client: httpx2.AsyncClient | None = None
        self._lock = asyncio.Lock()

    async def ask(
        self, method: str, path: str, token: Any = None, body: Json | None = None
    ) -> Answer:
        """One request below `/v1/`, with a `Secret` as the token."""
        try:
            async with asyncio.timeout(SECONDS):
                answer = await _exchange(await self._opened(), self._url(method, path), token, body)
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            raise Unavailable(
                f"The vault at {self.address} cannot be reached ({type(error).__name__}).",
                code="vault_unreachable",
            ) from None
        if problem := _state(answer):
            raise Unavailable(f"The vault at {self.address} {problem[1]}.", code=problem[0])
        return answer

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _url(self, method: str, path: str) -> tuple[str, str]:
        return method, f"{self.address}/v1/{path}"

    async def _opened(self) -> httpx2.AsyncClient:
        async with self._lock:
            if self._client is None:
                headers = {"x-vault-request": "true"}
                if self._place.namespace:
                    headers["x-vault-namespace"] = self._place.namespace
                # Reading the certificates takes long enough to be felt by everybody else.
                trust = await asyncio.to_thread(_trusted, self._place.ca_file)
                # Where it is, the operator says: it may well be in a network of their own.
                bounds = Bounds(
                    allow_private_network=True, seconds=SECONDS, most=_LARGEST, trust=trust
                )
                self._client = open_client(bounds, headers=headers)
            return self._client


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(
            f"GATEPASS_VAULT_CA_FILE {ca_file} cannot be read ({type(error).__name__}).",
            code="vault_unreachable",
        ) from None


async def _exchange(
    client: httpx2.AsyncClient, target: tuple[str, str], token: Any, body: Json | None
) -> Answer:
    # Bearer, since the library shows no value of that header where it prints one.
    headers = None if token is None else {"authorization": f"Bearer {token.reveal()}"}
    try:
        answer = await client.request(*target, headers=headers, json=body)
    except Redirected as error:
        return Answer(error.status, {})
    except TooLarge:  # longer than anything that is asked for
        return Answer(200, {})
    return Answer(answer.status_code, _read(answer.content))


def _read(raw: bytes) -> Json:
    """The document; numbers stay as they are written."""
    try:
        found = json.loads(raw or b"{}", parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(answer: Answer) -> tuple[str, str] | None:
    """A code and what the vault is or does, when it is in no state to answer."""
    if answer.status in _REDIRECTS:
        return (
            "vault_standby",
            "sends the gateway elsewhere, which it does not follow: name the active node, or an "
            "address that leads there, in GATEPASS_VAULT_ADDR",
        )
    if answer.status in _BUSY:
        return "vault_busy", "is asked too often: a rate limit of its own (429)"
    if answer.status >= 500 or answer.status in {472, 473}:
        return _failing(answer)
    if answer.status == 200 and not answer.body:
        return "vault_unusable", "answers what cannot be read: is it an OpenBao or HashiCorp Vault?"
    return None


def _failing(answer: Answer) -> tuple[str, str]:
    said = " ".join(str(text) for text in answer.body.get("errors") or ()).lower()
    if "sealed" in said:
        return "vault_sealed", "is sealed: unseal it"
    if "not active" in said or "standby" in said:
        return "vault_standby", "has no active node at the moment"
    if "not initialized" in said:
        return "vault_sealed", "is not initialized"
    return "vault_unavailable", f"cannot answer at the moment ({answer.status})"
