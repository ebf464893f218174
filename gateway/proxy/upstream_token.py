"""Signing in to Azure by the gateway's own identity: one token, renewed before it ends.

The hot path reads it from memory. A request waits only where there is none; many that wait cause
one request. A failed renewal leaves the token that there is until its end.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.errors import Unavailable
from gateway.flight import Flight
from gateway.telemetry import Clock, log

#: Seconds: a token that ends sooner is not sent any more; the pause between two looks at whether
#: there is a newer one; how long a token may take; the pause between renewals that a 401 causes.
_MARGIN, _PAUSE, _PATIENCE, _REST = 30.0, 30.0, 30.0, 30.0


class Given(Protocol):
    """A token of azure-identity. `expires_on` is in seconds since 1970."""

    @property
    def token(self) -> str:
        """The token itself."""
        ...

    @property
    def expires_on(self) -> int:
        """When it ends."""
        ...


class TokenSource(Protocol):
    """What gives tokens: a credential of azure-identity, or what behaves like one.

    It keeps what it was given, and renews that well before its end. After `close` it has
    forgotten, and may be used again.
    """

    async def get_token(self, *scopes: str) -> Given:
        """A token that is good now."""
        ...

    async def close(self) -> None:
        """Close its connections, forget its tokens."""
        ...


class UpstreamToken:
    """The token of one resource. One per process; `run` keeps it new."""

    def __init__(self, source: TokenSource, scope: str, clock: Clock) -> None:
        self._source = source
        self._scope = scope
        self._clock = clock
        self._ends = 0.0
        self._rests_until = 0.0
        self._flight: Flight[str] = Flight()
        #: The newest token and the one before: they must come back in no answer.
        self.values: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "<UpstreamToken>"

    @property
    def current(self) -> str | None:
        """The token while it is good; without waiting."""
        good = self._clock().timestamp() < self._ends - _MARGIN
        return self.values[0] if good and self.values else None

    async def get(self) -> str:
        """A token that is good; raises `Unavailable` when there is none to be had."""
        return self.current or await self._flight.share(self._scope, self._ask)

    async def renew(self, refused: str) -> bool:
        """After Azure did not accept the token `refused`: whether there is another one now."""
        now = self._clock().timestamp()
        if self.values[:1] == (refused,) and now >= self._rests_until:
            self._rests_until = now + _REST
            try:
                await self._source.close()  # it would give the same one again
                await self._flight.share(self._scope, self._ask)
            except Unavailable as error:
                log.warning("upstream.token_not_renewed", problem=error.message)
        return self.values[:1] != (refused,)

    async def run(self) -> None:
        """Take over what is newer, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """Take over what is newer. The source asks for that only when it is time."""
        try:
            await self._flight.share(self._scope, self._ask)
        except Unavailable as error:
            log.warning("upstream.token_not_renewed", problem=error.message)

    async def close(self) -> None:
        """Close the source."""
        await self._source.close()

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(_PATIENCE):
                given = await self._source.get_token(self._scope)
        except Unavailable:
            raise
        except Exception as error:
            # What Entra says of a failure may quote what it was given: only the type goes on.
            raise Unavailable(
                f"There is no token for the Azure resource ({type(error).__name__}).",
                code="upstream_token_unavailable",
            ) from None
        if self.values[:1] != (given.token,):
            self.values = (given.token, *self.values[:1])
        self._ends = float(given.expires_on)
        return given.token
