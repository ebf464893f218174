"""OAuth clients as configuration speaks of them: who asks where for which tokens; no secret.

May be shown to anybody. Tokens are obtained by `gateway.vault` alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gateway.store.references import SecretRef, origin_of

CLIENT_CREDENTIALS, TOKEN_EXCHANGE, ON_BEHALF_OF = (
    "client_credentials", "token_exchange", "on_behalf_of",
)  # fmt: skip
GRANTS = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE, ON_BEHALF_OF)
#: The public cloud's Microsoft Entra ID.
ENTRA = "https://login.microsoftonline.com"


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """A client of a token server, referred to as `oauth:NAME`.

    The server is at `token_url`, or found by discovery at `issuer`, or is the `tenant` of Entra at
    `authority`. The client proves itself with the secret at `client_secret` (a reference), or with
    an `assertion` of where it runs.
    """

    name: str
    grant: str
    client_id: str
    token_url: str | None = None
    issuer: str | None = None
    tenant: str | None = None
    authority: str = ENTRA
    client_secret: str | None = None
    assertion: str | None = None  # workload_identity
    client_auth: str = "basic"  # basic | post: how the secret is sent
    scope: str | None = None
    audience: str | None = None
    resource: str | None = None
    allow_private_network: bool = False

    @property
    def key(self) -> str:
        """What tells one from another."""
        return self.name

    @property
    def for_user(self) -> bool:
        """Whether its tokens stand for the app's end user, whose own token they are given for."""
        return self.grant != CLIENT_CREDENTIALS

    @property
    def where(self) -> str:
        """Where its secret is sent to, as configured."""
        return self.token_url or self.issuer or f"{self.authority}/{self.tenant}"

    def secret_ref(self) -> SecretRef | None:
        """Where its secret lives, good for this client at this token server alone."""
        if self.client_secret is None:
            return None
        # Who may set credentials, and nobody else, says where a client asks: that binds it.
        ref = SecretRef.parse(self.client_secret)
        return ref.to(f"oauth/{self.name}", self.where, origin_of(self.where))

    def row(self) -> dict[str, Any]:
        """The form in which it is stored: what is not at its default."""
        plain = OAuthClient(self.name, self.grant, self.client_id)
        return {
            member: value
            for member, value in asdict(self).items()
            if member in ("grant", "client_id") or value != getattr(plain, member)
        } | {"name": self.name}
