"""Where a secret lives, without the secret: what configuration, records and pages speak of.

A reference may be shown to anybody. Its value is opened by `gateway.vault` alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from gateway.errors import Refused

#: Every store that a reference may name, and the form of its names.
STORES = {
    "sealed": "sealed:NAME",
    "env": "env:VARIABLE",
    "file": "file:/path/to/file",
    "vault": "vault:MOUNT/PATH#FIELD",
    "keyvault": "keyvault:VAULT/NAME",
    "oauth": "oauth:NAME",
}
_NAMES = {
    "sealed": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"),
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}"),
    "file": re.compile(r"/[^\x00-\x1f\x7f#]{1,500}"),
}
_ANY = re.compile(r"[^\x00-\x20\x7f#]{1,500}")
_PORTS = {"http": 80, "https": 443}
_FIELD = re.compile(r"[A-Za-z0-9._-]{1,80}")


@dataclass(frozen=True, slots=True)
class SecretRef:
    """`store:name` or `store:name#field`; prints as it is written in the configuration.

    `scope` says what the value is wanted for (a server's id and address); a sealed value opens
    under the scope it was written for and no other. `bound` says what it may be used for (a
    server's id and origin); the vault opens nothing for a scope outside of that.
    """

    store: str
    name: str
    field: str | None = None
    scope: str | None = None
    bound: str | None = None

    def __str__(self) -> str:
        return f"{self.store}:{self.name}" + (f"#{self.field}" if self.field else "")

    @property
    def stored_as(self) -> str:
        """The name under which the versions of a sealed value are stored."""
        # The first word of a scope is the id of the server: two servers never share a value.
        owner = (self.scope or "").partition(" ")[0]
        return f"{owner}/{self.name}" if owner else self.name

    def to(self, owner: str, url: str, bound: str | None) -> SecretRef:
        """The reference for what is sent to `owner` at `url` (in normal form).

        `bound` is the origin for which somebody who may has bound it to this owner, None when
        nobody has.
        """
        where = None if bound is None else f"{owner} {bound}"
        return replace(self, scope=f"{owner} {url}", bound=where)

    @property
    def is_bound(self) -> bool:
        """Whether what it is wanted for is what it may be used for."""
        owner, _, url = (self.scope or "").partition(" ")
        return bool(url) and self.bound == f"{owner} {origin_of(url)}"

    @classmethod
    def parse(cls, text: str) -> SecretRef:
        """Read a reference; raises `Refused` with what is wrong and which forms there are."""
        store, colon, rest = text.partition(":")
        if not colon or store not in STORES:
            # The text may be a secret that someone pasted here: it is not repeated.
            forms = ", ".join(STORES.values())
            raise Refused(
                f"A secret is named by one of {forms}; its value itself never stands here.",
                code="secret_reference_invalid",
            )
        name, hash_sign, field = rest.partition("#")
        if not _NAMES.get(store, _ANY).fullmatch(name):
            raise Refused(
                f"A {store} reference must have the form {STORES[store]}.",
                code="secret_reference_invalid",
            )
        if hash_sign and (store in _NAMES or not _FIELD.fullmatch(field)):
            raise Refused(
                f"A {store} reference must have the form {STORES[store]}.",
                code="secret_reference_invalid",
            )
        return cls(store, name, field or None)


def origin_of(url: str) -> str:
    """`scheme://host:port` of a URL in normal form, the port always there (RFC 6454 §4)."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{parts.port or _PORTS[parts.scheme]}"
