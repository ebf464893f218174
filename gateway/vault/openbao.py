"""`vault:MOUNT/PATH#FIELD`: values in a key/value engine, version 2, of OpenBao or HashiCorp Vault.

The newest version is read. One that was deleted or destroyed, a field that is not there, a value
that is no text: each is a sentence of its own, and nothing is sent.
"""

from __future__ import annotations

import time
from typing import Any

from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.exchange.messages import Json
from gateway.store.references import SecretRef
from gateway.vault.openbao_http import Answer, Http, Place
from gateway.vault.openbao_sign_in import SignIn, way_of
from gateway.vault.secret import Purpose, Secret, opened


class OpenBaoStore:
    """Reads with the rights of the gateway's own sign-in. Asks at every call."""

    def __init__(self, http: Http, sign_in: SignIn) -> None:
        self._http = http
        self._sign_in = sign_in

    def __repr__(self) -> str:
        return "<OpenBaoStore>"

    async def open(self, ref: SecretRef, _purpose: Purpose) -> Secret:
        """The field's value in the newest version; `Unavailable` when there is none."""
        mount, _, path = ref.name.partition("/")
        answer = await self._read(f"{mount}/data/{path}")
        match answer.status:
            case 200:
                return _value(ref, answer.body.get("data"))
            case 403:
                raise Unavailable(
                    f"The vault does not let the gateway read {ref}: its policy needs the "
                    f"capability 'read' on {mount}/data/{path}.",
                    code="vault_forbidden",
                )
            case 404:
                raise await self._missing(ref, mount, answer)
            case status:
                raise Unavailable(
                    f"The vault does not understand what {ref} stands for ({status}).",
                    code="vault_unusable",
                )

    async def ping(self) -> None:
        """Sign in, where that is due, and see that the vault is in a state to answer."""
        await self._sign_in.token()
        await self._http.ask("GET", "sys/seal-status")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _read(self, path: str) -> Answer:
        """What is there; asked again once when the token has come to an end before its time."""
        token = await self._sign_in.token()
        answer = await self._http.ask("GET", path, token)
        if answer.status == 403 and await self._sign_in.again(token):
            return await self._http.ask("GET", path, await self._sign_in.token())
        return answer

    async def _missing(self, ref: SecretRef, mount: str, answer: Answer) -> Unavailable:
        data = answer.body.get("data")
        metadata = data.get("metadata") if isinstance(data, dict) else None
        if isinstance(metadata, dict):
            return _ended(ref, metadata)
        # Asked only now, since it says more than most may know: what is mounted there?
        about = await self._read(f"sys/internal/ui/mounts/{ref.name}")
        found = about.body.get("data") if about.status == 200 else None
        if about.status == 200 and isinstance(found, dict) and not _is_kv2(found):
            return Unavailable(
                f"{ref}: what is mounted at '{mount}' is no key/value engine of version 2; move "
                "the secret to one.",
                code="vault_unusable",
            )
        return Unavailable(
            f"There is no secret at {ref}: store it there, or look at the mount and the path.",
            code="secret_missing",
        )


def openbao_store(settings: Settings) -> OpenBaoStore | None:
    """The store that the settings name, if they do."""
    if settings.vault_addr is None:
        return None
    place = Place(settings.vault_addr, settings.vault_namespace, settings.vault_ca_file)
    http = Http(place)
    return OpenBaoStore(http, SignIn(http, way_of(settings), time.monotonic))


def _is_kv2(mount: Json) -> bool:
    options = mount.get("options")
    version = options.get("version") if isinstance(options, dict) else None
    return mount.get("type") == "kv" and version == "2"


def _value(ref: SecretRef, data: Any) -> Secret:
    fields = data.get("data") if isinstance(data, dict) else None
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(fields, dict) or not isinstance(metadata, dict):
        raise Unavailable(
            f"{ref}: the vault's answer is not that of a key/value engine of version 2.",
            code="vault_unusable",
        )
    if fields.get(ref.field) is None:
        raise Unavailable(
            f"The secret of {ref} has no field '{ref.field}'.", code="secret_field_missing"
        )
    version = metadata.get("version")
    return opened(str(ref), _text(ref, fields[ref.field]), str(version) if version else None)


def _text(ref: SecretRef, value: Any) -> str:
    """Numbers as they stand there, truth values as JSON writes them."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case _:
            raise Unavailable(
                f"The value of {ref} is an object or a list; name a field that holds a text.",
                code="secret_unusable",
            )


def _ended(ref: SecretRef, metadata: Json) -> Unavailable:
    if metadata.get("destroyed") is True:
        how = "destroyed: store it again"
    else:
        how = "deleted: undelete it, or store it again"
    return Unavailable(f"The newest version of {ref} was {how}.", code="secret_missing")
