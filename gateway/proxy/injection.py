"""Credentials go into a round here, and nowhere else: opened before it may be sent, written last.

What is opened is tied to the server as it was registered at that moment: who claims the release
looks whether it still is, and records which version goes along.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.approvals.standing import Opened
from gateway.errors import Conflict, GatepassError
from gateway.exchange.document import dump
from gateway.exchange.messages import Binding, Forward, Json
from gateway.proxy.signing_in import SignIn
from gateway.registry.directory import Directory, ServerView
from gateway.scrubbing import Scrubber
from gateway.vault import Purpose, Secret, SecretRef, Vault

#: Seconds until the credentials of all servers are opened anew to be looked for in answers, and
#: how long those are waited for that nothing is sent with.
_KNOWN_FOR, _PATIENCE = 60.0, 1.0
_AGAIN = Purpose(fresh=False, sent=False)


class Outgoing(bytes):
    """A body with credentials in it; prints as its length."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__


_Secrets = Mapping[int, tuple[ServerView, Secret]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A round with all it takes to be sent. `opened` is by server id, `secrets` by tool index."""

    turn: Forward
    body: bytes = field(repr=False)
    scrubber: Scrubber = field(repr=False)
    opened: Mapping[str, Opened] = field(default_factory=dict)
    secrets: _Secrets = field(default_factory=dict)

    def replay(self) -> bytes:
        """The same with all that the round goes on from written out."""
        return _written(self.turn.replay or self.turn.body, self.secrets)


@dataclass(frozen=True, slots=True)
class _Known:
    """The secrets of all servers, for how long, and as of what: a version of the configuration,
    the number of tokens given so far, and what the gateway itself signed in with.
    """

    version: int
    issues: int
    own: Scrubber = field(repr=False)
    until: float
    secrets: Mapping[SecretRef, Secret]
    scrubber: Scrubber = field(repr=False)


class Injection:
    """Opens credentials for the sender. What the gateway itself signs in with, `own` knows."""

    def __init__(self, directory: Directory, vault: Vault, own: SignIn) -> None:
        self._directory = directory
        self._vault = vault
        self._own = own
        self._known: _Known | None = None
        self._looking = asyncio.Lock()

    async def prepare(self, turn: Forward, purpose: Purpose) -> Prepared:
        """The round with every bound server's credential; raises when one cannot be opened, or
        goes to a server that is not as it was.
        """
        if not turn.bindings:
            scrubber = await self.scrubber()
            return Prepared(turn, _written(turn.body, {}), scrubber)
        opened: dict[str, Opened] = {}
        secrets: dict[int, tuple[ServerView, Secret]] = {}
        for binding in turn.bindings:
            server = self._bound(binding, turn)
            opened[server.id] = Opened(server, None)
            if server.credential is not None:
                secret = await self._vault.open(server.credential.ref, purpose)
                opened[server.id] = Opened(server, secret.version)
                secrets[binding.tool_index] = (server, secret)
        more = [secret.reveal() for _, secret in secrets.values()]
        scrubber = await self.scrubber(purpose.end_user)
        body = _written(turn.body, secrets)
        return Prepared(turn, body, scrubber.with_more(more), opened, secrets)

    async def scrubber(self, end_user: Secret | None = None) -> Scrubber:
        """Takes out the credentials of all servers: what one of them once let out may be in a
        context at Azure, and come back in an answer that has nothing to do with it. What stands
        for an end user is in that user's answers alone.
        """
        scrubber = await self._of_all()
        if end_user is None:
            return scrubber
        theirs = [end_user, *self._vault.issued(end_user)]
        return scrubber.with_more([secret.reveal() for secret in theirs])

    async def _of_all(self) -> Scrubber:
        known = self._known
        if known is not None and (self._is_good(known) or self._looking.locked()):
            return known.scrubber
        async with self._looking:
            if (known := self._known) is None or not self._is_good(known):
                self._known = known = await self._look(known)
            return known.scrubber

    def _is_good(self, known: _Known) -> bool:
        now = asyncio.get_running_loop().time()
        asof = (self._directory.view.version, self._vault.issues, self._own.scrubber)
        return asof == (known.version, known.issues, known.own) and now < known.until

    async def _look(self, before: _Known | None) -> _Known:
        view, now = self._directory.view, asyncio.get_running_loop().time()
        own, issues = self._own.scrubber, self._vault.issues
        refs = [s.credential.ref for s in view.servers.values() if s.credential is not None]
        # A token that nobody was given yet can be in no answer, and is asked for in no glance.
        refs = [ref for ref in refs if ref.store != "oauth"]
        found = await asyncio.gather(*(self._glance(ref) for ref in refs))
        # What a vault does not tell now it told before, and that is as secret as it was.
        earlier = {} if before is None else before.secrets
        secrets = {
            ref: known
            for ref, secret in zip(refs, found, strict=True)
            if (known := secret or earlier.get(ref)) is not None
        }
        values = [secret.reveal() for secret in (*secrets.values(), *self._vault.issued())]
        until = now + _KNOWN_FOR
        return _Known(view.version, issues, own, until, secrets, own.with_more(values))

    async def _glance(self, ref: SecretRef) -> Secret | None:
        with contextlib.suppress(GatepassError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                return await self._vault.open(ref, _AGAIN)
        return None

    def _bound(self, binding: Binding, turn: Forward) -> ServerView:
        """The server of a binding, if all that would be sent to it still goes to its address."""
        server = self._directory.view.servers.get(binding.server_id)
        if server is None or not _goes_to(binding, server.url, (turn.body, turn.replay)):
            raise Conflict(
                f"The server {binding.server_label!r} has been changed or removed.",
                code="server_changed",
            )
        return server


def _goes_to(binding: Binding, url: str, bodies: Sequence[Json | None]) -> bool:
    entries = [body["tools"][binding.tool_index] for body in bodies if body]
    return url == binding.url and all(entry["server_url"] == url for entry in entries)


def _written(body: Json, secrets: _Secrets) -> bytes:
    return Outgoing(dump(_injected(body, secrets))) if secrets else dump(body)


def _injected(body: Json, secrets: _Secrets) -> Json:
    """The body with each secret in the entry of its server."""
    tools = list(body["tools"])
    for index, (server, secret) in secrets.items():
        tools[index] = {**tools[index], **_entry(server, secret)}
    return {**body, "tools": tools}


def _entry(server: ServerView, secret: Secret) -> Json:
    credential = server.credential
    if credential is None:
        return {}
    if server.inject == "authorization":
        return {"authorization": secret.reveal()}
    scheme = f"{credential.scheme} " if credential.scheme else ""
    return {"headers": {credential.header: scheme + secret.reveal()}}
