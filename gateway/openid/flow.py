"""From the button to the session: set out to the provider, come back, be let in or not.

What has to survive the way there and back travels sealed in a cookie of this one browser: state,
nonce, verifier and where to go afterwards. Nothing is stored for somebody who never comes back.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from gateway.audit.ledger import Ledger
from gateway.errors import GatepassError, Unavailable
from gateway.identity import codes, federation
from gateway.identity.claims import Rules, SignInRefused, identity, lacks
from gateway.identity.federation import Arrival, Notice
from gateway.identity.login import SignedIn
from gateway.openid.provider import Answered, Asked, Provider
from gateway.openid.tokens import LEEWAY
from gateway.store.envelope import Envelope

PATIENCE = timedelta(minutes=10)
_OWNER, _NAME = "sign-in", "attempt"
_WRAPPED = 12 + 32 + 16


@dataclass(frozen=True)
class Wish:
    """What somebody sets out for. `next` is a page of ours, `link` the code of a one-time link;
    `again` asks for a fresh sign-in.
    """

    next: str = ""
    again: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Attempt:
    """What is remembered on the way. `began` in seconds, `link` a digest."""

    state: str
    nonce: str
    verifier: str
    began: float
    next: str
    again: bool
    link: str | None


class SignIn:
    """Signs people in through one provider. One per process; keeps nothing of anybody."""

    def __init__(
        self,
        provider: Provider,
        rules: Rules,
        ledger: Ledger,
        envelope: Envelope,
        step_up: timedelta,
    ) -> None:
        self._provider = provider
        self._rules = rules
        self._ledger = ledger
        self._envelope = envelope
        self._max_age = max(1, int(step_up.total_seconds()))

    async def begin(self, wish: Wish, *, now: datetime) -> tuple[str, str]:
        """Where to send the browser, and the cookie to give it. Raises `Unavailable`."""
        attempt = Attempt(
            state=codes.new_code(),
            nonce=codes.new_code(),
            verifier=codes.new_code(),
            began=now.timestamp(),
            next=wish.next,
            again=wish.again,
            link=codes.hex_digest(wish.link) if wish.link else None,
        )
        return await self._provider.address(self._asked(attempt)), self._sealed(attempt)

    async def finish(
        self,
        said: Mapping[str, str],
        cookie: str | None,
        *,
        previous: str | None = None,
        now: datetime,
    ) -> tuple[str, str]:
        """The code of a fresh session, and the page that was asked for.

        `said` is what the provider sent along, `previous` the code of a session that the browser
        still holds. Raises `SignInRefused`, `NotAllowed` for a dead link, `Unavailable`; whatever
        is a refusal stands in the ledger.
        """
        try:
            attempt = self._opened(cookie, now)
            code = await self._answer(said, attempt)
            answered = await self._provider.redeem(code, self._asked(attempt))
            arrival = await self._arrival(answered, attempt)
            session = await federation.sign_in(
                self._ledger, self._envelope, arrival, previous=previous, now=now
            )
        except GatepassError as error:
            if not isinstance(error, Unavailable):
                await federation.refuse(self._ledger, error, now=now)
            raise
        return session, attempt.next

    async def hear(self, token: str, *, now: datetime) -> int:
        """Take the provider's notice that a session has ended; how many of ours did with it."""
        try:
            claims = await self._provider.checker.logout_token(token)
            notice = Notice(
                issuer=claims["iss"],
                subject=claims.get("sub"),
                sid=claims.get("sid"),
                once=f"logout {claims['iss']} {claims['jti']}",
            )
            return await federation.sign_out(self._ledger, notice, now=now)
        except GatepassError as error:
            if not isinstance(error, Unavailable):
                await federation.refuse(self._ledger, error, now=now)
            raise

    async def farewell(self, id_token: str | None) -> str | None:
        """Where the browser signs out at the provider too, if it can."""
        return await self._provider.farewell(id_token)

    def _asked(self, attempt: Attempt) -> Asked:
        max_age = self._max_age if attempt.again else None
        return Asked(attempt.state, attempt.nonce, attempt.verifier, max_age)

    async def _answer(self, said: Mapping[str, str], attempt: Attempt) -> str:
        """The code in the answer, once that is known to be the answer to this attempt."""
        if not hmac.compare_digest(said.get("state", "").encode(), attempt.state.encode()):
            raise SignInRefused("state_wrong", "This is not the answer to this browser's question.")
        await self._provider.check_origin(said.get("iss"))
        if "error" in said:
            raise SignInRefused("provider_refused", "The identity provider did not sign you in.")
        if not said.get("code"):
            raise SignInRefused("state_wrong", "The answer of the identity provider is empty.")
        return said["code"]

    async def _arrival(self, answered: Answered, attempt: Attempt) -> Arrival:
        claims = answered.claims
        at = _authenticated(claims, attempt)
        if lacks(claims, self._rules):
            claims = await self._provider.more(answered)
        sid = claims.get("sid")
        how = SignedIn(
            "oidc", at, claims["iss"], sid if isinstance(sid, str) else None, answered.id_token
        )
        once = f"sign-in {attempt.state}"
        return Arrival(identity(claims, self._rules), how, once, attempt.link)

    def _sealed(self, attempt: Attempt) -> str:
        key = self._envelope.new_data_key(_OWNER)
        sealed = self._envelope.seal(key, _OWNER, _NAME, orjson.dumps(asdict(attempt)))
        return base64.urlsafe_b64encode(key + sealed).rstrip(b"=").decode()

    def _opened(self, cookie: str | None, now: datetime) -> Attempt:
        if not cookie:
            raise SignInRefused("no_attempt", "This browser has not asked to sign in.")
        try:
            raw = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            plain = self._envelope.open(raw[:_WRAPPED], _OWNER, _NAME, raw[_WRAPPED:])
        except (Unavailable, ValueError, binascii.Error):
            raise SignInRefused("no_attempt", "This browser has not asked to sign in.") from None
        attempt = Attempt(**orjson.loads(plain))
        if not 0 <= now.timestamp() - attempt.began + LEEWAY <= PATIENCE.total_seconds() + LEEWAY:
            raise SignInRefused("attempt_expired", "Signing in took too long.")
        return attempt


def _authenticated(claims: Mapping[str, Any], attempt: Attempt) -> datetime | None:
    """When they proved who they are; where a fresh sign-in was asked for, since then."""
    at = claims.get("auth_time")
    if attempt.again and (at is None or at < attempt.began - LEEWAY):
        raise SignInRefused("not_fresh", "The identity provider did not ask you again.")
    return None if at is None else datetime.fromtimestamp(at, UTC)
