"""References as a server's are once somebody who may has bound them."""

from __future__ import annotations

from gateway.store.references import SecretRef, origin_of

SERVER = "srv_1"
ADDRESS = "https://crm.example/mcp"


def bound(text: str, owner: str = SERVER, url: str = ADDRESS) -> SecretRef:
    """The reference, for what is sent to `owner` at `url`, and bound to that."""
    return SecretRef.parse(text).to(owner, url, origin_of(url))
