"""Where Azure is, and how a request to it is signed: by the resource's key, or by a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.proxy.upstream_token import UpstreamToken
from gateway.scrubbing import Scrubber


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where Azure is and how to sign in there: by key, or by `token`. Neither prints."""

    url: str
    key: str
    timeout: float
    token: UpstreamToken | None = None

    def __repr__(self) -> str:
        return f"Upstream({self.url!r})"


class SignIn:
    """Signs requests, and takes out of answers what they were signed with."""

    def __init__(self, upstream: Upstream | None) -> None:
        self._token = upstream.token if upstream else None
        self._key = {"api-key": upstream.key} if upstream else {}
        self._scrubber = Scrubber([upstream.key] if upstream else [])
        self._scrubbed: tuple[str, ...] = ()

    @property
    def at_hand(self) -> Mapping[str, str] | None:
        """The header that signs a request, without waiting; None while there is no good token."""
        if self._token is None:
            return self._key
        token = self._token.current
        return None if token is None else {"authorization": f"Bearer {token}"}

    async def header(self) -> Mapping[str, str]:
        """The header that signs a request; raises `Unavailable` when there is no token."""
        if self._token is None:
            return self._key
        return {"authorization": f"Bearer {await self._token.get()}"}

    async def renewed(self, refused: Mapping[str, str]) -> bool:
        """Whether a request that got a 401 for the header `refused` can be signed anew.

        Azure asks who comes before it begins anything: what got a 401 can be sent again.
        """
        if self._token is None:
            return False
        return await self._token.renew(refused["authorization"].removeprefix("Bearer "))

    @property
    def scrubber(self) -> Scrubber:
        """Takes the key, or the tokens, out of answers: some services show them in errors."""
        if self._token is not None and self._token.values is not self._scrubbed:
            self._scrubbed = self._token.values
            self._scrubber = Scrubber(self._scrubbed)
        return self._scrubber

    def with_own(self, scrubber: Scrubber) -> Scrubber:
        """One that was made before, with what a request has been signed with since."""
        return scrubber if self._token is None else scrubber.with_more(self._token.values)

    async def run(self) -> None:
        """Keep the token new, where there is one."""
        if self._token is not None:
            await self._token.run()

    async def close(self) -> None:
        """Close what gives tokens."""
        if self._token is not None:
            await self._token.close()
