"""How the gateway signs in to OpenBao or HashiCorp Vault: a token, AppRole, or Kubernetes.

One sign-in serves everybody who waits for it. A token is renewed when two thirds of its time are
over; where it cannot be, another is obtained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.config import Settings
from gateway.errors import Unavailable
from gateway.vault.files import read_value
from gateway.vault.openbao_http import Answer, Http
from gateway.vault.secret import Secret, opened

#: Seconds since some moment, never set back.
Now = Callable[[], float]
_RENEWED_AT = 2 / 3


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its life: `due` to be renewed at, `over` at; None where it has no end."""

    secret: Secret
    due: float | None = None
    over: float | None = None
    renewable: bool = False

    @classmethod
    def lasting(cls, secret: Secret, seconds: Any, renewable: Any, began: float) -> Token:
        """One of so many seconds, as the vault writes them, from `began` on."""
        life = float(seconds) if str(seconds).isdigit() else 0.0
        if life == 0.0:
            return cls(secret)
        return cls(secret, began + life * _RENEWED_AT, began + life, renewable is True)


class Way(Protocol):
    """One way to come by a token."""

    async def obtain(self, http: Http, began: float) -> Token:
        """A token; raises `Unavailable` when there is none for us."""
        ...

    def replaced(self) -> bool:
        """Whether somebody has given us another token since the last one was obtained."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """A value from a setting, or a file that holds it, read whenever it is needed."""

    variable: str
    value: Secret | None = None
    file: Path | None = None

    async def read(self) -> Secret:
        """The value as it is now; `Unavailable` when there is none."""
        if self.file is None:
            return self.value or opened(self.variable, "")
        return await asyncio.to_thread(read_value, f"{self.variable}_FILE {self.file}", self.file)

    def stamp(self) -> tuple[int, ...]:
        """What changes when another file is put there."""
        try:
            status = self.file.stat() if self.file is not None else None
        except OSError:
            return ()
        return () if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)


@dataclass(frozen=True, slots=True)
class ByLogin:
    """A sign-in at a mount: the role in the clear, and what only we have as `member`."""

    mount: str
    role: tuple[str, str]
    member: str
    given: Given

    async def obtain(self, http: Http, began: float) -> Token:
        """Sign in."""
        secret, (name, role) = await self.given.read(), self.role
        answer = await http.ask(
            "POST", f"auth/{self.mount}/login", body={name: role, self.member: secret.reveal()}
        )
        if answer.status != 200:
            raise _refused(http, answer)
        return _issued(http, answer, began)

    def replaced(self) -> bool:
        """What was signed in with matters no more once there is a token."""
        return False


class ByToken:
    """A token that somebody gives us. How long it lives is asked."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._stamp: tuple[int, ...] = ()

    async def obtain(self, http: Http, began: float) -> Token:
        """Look the token up."""
        self._stamp = self._given.stamp()
        secret = await self._given.read()
        answer = await http.ask("GET", "auth/token/lookup-self", secret)
        data = answer.body.get("data")
        if answer.status != 200 or not isinstance(data, dict):
            # A token that may not look at itself may be good all the same: reading will tell.
            return Token(secret)
        return Token.lasting(secret, data.get("ttl"), data.get("renewable"), began)

    def replaced(self) -> bool:
        """Whether the file is another one by now."""
        return self._given.stamp() != self._stamp


def way_of(settings: Settings) -> Way:
    """The way that the settings name."""
    if settings.vault_auth == "approle":
        role = ("role_id", settings.vault_role_id or "")
        secret_id = _given("VAULT_SECRET_ID", settings)
        return ByLogin(settings.vault_mount or "approle", role, "secret_id", secret_id)
    if settings.vault_auth == "kubernetes":
        role = ("role", settings.vault_role or "")
        jwt = Given("GATEPASS_VAULT_JWT", file=settings.vault_jwt_file)
        return ByLogin(settings.vault_mount or "kubernetes", role, "jwt", jwt)
    return ByToken(_given("VAULT_TOKEN", settings))


def _given(name: str, settings: Settings) -> Given:
    variable, value = f"GATEPASS_{name}", getattr(settings, name.lower())
    secret = None if value is None else opened(variable, value.get_secret_value())
    return Given(variable, secret, getattr(settings, f"{name.lower()}_file"))


class SignIn:
    """The token in use. One per process."""

    def __init__(self, http: Http, way: Way, now: Now) -> None:
        self._http = http
        self._way = way
        self._now = now
        self._held: Token | None = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return "<SignIn>"

    async def token(self) -> Secret:
        """A token that has not come to its end; raises `Unavailable` when there is none."""
        held = self._good()
        if held is None:
            async with self._lock:
                held = self._good() or await self._renewed_or_obtained()
        return held.secret

    async def again(self, refused: Secret) -> bool:
        """The vault did not accept `refused`: whether there is another one now."""
        async with self._lock:
            if self._held is not None and self._held.secret is not refused:
                return True
            if await self._accepts(refused):
                return False  # it is good, and may not do what was asked
            return (await self._obtained()).secret.reveal() != refused.reveal()

    def _good(self) -> Token | None:
        held = self._held
        if held is None or self._way.replaced():
            return None
        return held if held.due is None or self._now() < held.due else None

    async def _accepts(self, token: Secret) -> bool:
        return (await self._http.ask("GET", "auth/token/lookup-self", token)).status == 200

    async def _renewed_or_obtained(self) -> Token:
        held, began = self._held, self._now()
        usable = held is not None and held.renewable and not self._way.replaced()
        if held is None or held.over is None or held.over <= began or not usable:
            return await self._obtained()
        answer = await self._http.ask("POST", "auth/token/renew-self", held.secret, {})
        if answer.status != 200:
            return await self._obtained()
        auth = answer.body.get("auth") or {}
        found = Token.lasting(held.secret, auth.get("lease_duration"), auth.get("renewable"), began)
        # At the end of its days a renewal adds little: another token is needed then.
        if found.over is not None and found.over - began < (held.over - began) * 1.1:
            return await self._obtained()
        self._held = found
        return found

    async def _obtained(self) -> Token:
        self._held = None
        self._held = found = await self._way.obtain(self._http, self._now())
        return found


def _issued(http: Http, answer: Answer, began: float) -> Token:
    auth = answer.body.get("auth")
    if not isinstance(auth, dict) or not isinstance(auth.get("client_token"), str):
        raise _refused(http, answer)
    secret = opened("the token of the vault", auth["client_token"])
    return Token.lasting(secret, auth.get("lease_duration"), auth.get("renewable"), began)


def _refused(http: Http, answer: Answer) -> Unavailable:
    return Unavailable(
        f"The vault at {http.address} does not let the gateway sign in ({answer.status}): look at "
        "the role, the secret and the mount that GATEPASS_VAULT_… name.",
        code="vault_login",
    )
