"""The configuration as the hot path sees it: one immutable view in memory.

`Directory` replaces the view as a whole when `config_version` has grown, and only once a signed
head covers what it was read from: a change that is not signed is not in force. Look-ups and
authentication are dictionary reads without I/O; keys are compared in constant time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from urllib.parse import urlsplit

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.records import Actor
from gateway.egress import addresses
from gateway.errors import GatepassError, Refused, Unavailable
from gateway.exchange.messages import ServerFacts
from gateway.policy import Policy
from gateway.registry import bindings, keys, pauses, policies, versions
from gateway.registry.pauses import PauseView
from gateway.registry.settings import IdentitySettings
from gateway.store.database import Database
from gateway.store.notifications import CONFIGURED, Notifications
from gateway.store.references import SecretRef
from gateway.store.tables import App, AppKey, PolicyVersion, Server
from gateway.telemetry import log

_SECONDS_BETWEEN_RECHECKS = 1.0
_SECONDS_BETWEEN_LOOKS = 1.0

#: Returns when everything that was committed before stands in a signed head.
Settle = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class AppView:
    """An app that may call us. `servers` holds labels; None means every registered server."""

    id: str
    name: str
    owner: str | None = None
    wait: str = "hold"
    plain: str = "patient"
    heartbeat: str = "auto"
    servers: frozenset[str] | None = None
    identity: IdentitySettings | None = None
    auth: str = "key"

    @property
    def actor(self) -> Actor:
        """The app as audit records name it, with how it was known: `key` or `token`."""
        return Actor("app", self.id, self.auth)

    def may_use(self, label: str) -> bool:
        """Whether the app may use the server of that label."""
        return self.servers is None or label in self.servers


@dataclass(frozen=True, slots=True)
class CredentialBinding:
    """Which header carries which secret: `header: scheme secret`, without scheme when None."""

    header: str
    scheme: str | None
    ref: SecretRef


@dataclass(frozen=True, slots=True)
class ServerView:
    """A registered server; its credential goes to `url` and nowhere else."""

    id: str
    label: str
    url: str
    inject: str = "headers"
    credential: CredentialBinding | None = None
    description: str | None = None
    allow_private_network: bool = False
    pin: str = "on_first_use"

    def facts(self) -> ServerFacts:
        """What the pure core may know of it."""
        return ServerFacts(self.id, self.label, self.url, self.description)


@dataclass(frozen=True, slots=True)
class View:
    """Everything configured, at one moment. `policy_digest` names the rules in force.

    `shadow` are rules of which it is only recorded what they would say.
    """

    version: int = 0
    apps: Mapping[str, AppView] = field(default_factory=dict)
    apps_by_key_id: Mapping[str, tuple[bytes, AppView]] = field(default_factory=dict, repr=False)
    apps_by_issuer: Mapping[str, tuple[AppView, ...]] = field(default_factory=dict)
    servers: Mapping[str, ServerView] = field(default_factory=dict)
    servers_by_label: Mapping[str, ServerView] = field(default_factory=dict)
    servers_by_url: Mapping[str, ServerView] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    shadow: Policy | None = None
    pauses: tuple[PauseView, ...] = ()

    def paused(self, app: str, server: str) -> PauseView | None:
        """A pause that covers calls of this app on the server of this label, if there is one."""
        return next((pause for pause in self.pauses if pause.covers(app, server)), None)

    def app_paused(self, app: str) -> PauseView | None:
        """A pause that covers whatever this app asks for, if there is one."""
        wide = (pause for pause in self.pauses if pause.scope != "server")
        return next((pause for pause in wide if pause.covers(app, "")), None)

    def reaches_server(self, domain: str) -> bool:
        """Whether who may reach `domain` (and what is below it) may reach a registered server."""
        wanted = domain.lower()
        hosts = (urlsplit(server.url).hostname or "" for server in self.servers.values())
        return any(host == wanted or host.endswith(f".{wanted}") for host in hosts)

    @property
    def policy_digest(self) -> str:
        """`sha256:…` of the active rules; that of an empty list while there is no policy."""
        return self.policy.digest

    def match_server(self, url: str | None, label: str) -> ServerView | None:
        """The server that an app means: by its URL where one is given, else by its label.

        A label never overrules a URL, and a URL that we would not have registered is no server's.
        """
        if url is None:
            return self.servers_by_label.get(label)
        try:
            return self.servers_by_url.get(addresses.normalise(url).url)
        except Refused:
            return None

    def matcher(self, app: AppView) -> Callable[[str | None, str], ServerFacts | None]:
        """`match_server` limited to what `app` may use, for step 3 of the path."""

        def match(url: str | None, label: str) -> ServerFacts | None:
            server = self.match_server(url, label)
            return server.facts() if server is not None and app.may_use(server.label) else None

        return match

    def authenticate(self, key: str) -> AppView | None:
        """The app whose key this is; takes as long for an unknown key as for a wrong one."""
        found = self.apps_by_key_id.get(keys.public_id(key) or "")
        expected, app = found if found is not None else (bytes(32), None)
        same = hmac.compare_digest(keys.digest(key), expected)
        return app if same else None


class Directory:
    """Holds the current view. Call `reload` once before use, `refresh` as often as you like.

    `run` keeps it as new as the database: at once when another process says that something was
    changed, and within a second when nobody does.
    """

    def __init__(
        self,
        db: Database,
        settle: Settle | None = None,
        notifications: Notifications | None = None,
    ) -> None:
        self._db = db
        self._settle = settle
        self._changed = asyncio.Event()
        if notifications is not None:
            notifications.on(CONFIGURED, lambda _: self._changed.set())
        self._view: View | None = None
        self._problem: Unavailable | None = None
        self._lock = asyncio.Lock()
        self._rechecked = float("-inf")

    @property
    def view(self) -> View:
        """The configuration in force; raises `Unavailable` while it cannot be relied on."""
        if self._problem is not None:
            raise self._problem
        if self._view is None:
            raise Unavailable("The configuration has not been read yet.", code="config_unread")
        return self._view

    def authenticate(self, key: str) -> AppView | None:
        """The app whose key this is, from memory. See `recheck` for a key made a moment ago."""
        return self.view.authenticate(key)

    async def recheck(self, key: str) -> AppView | None:
        """After `authenticate` found nothing: read the database, once a second at most; retry."""
        await self.look_again()
        return self.authenticate(key)

    async def look_again(self) -> None:
        """Refresh for somebody who was not found: once a second at most, whoever asks."""
        now = asyncio.get_running_loop().time()
        if now - self._rechecked >= _SECONDS_BETWEEN_RECHECKS:
            self._rechecked = now
            await self.refresh()

    async def refresh(self) -> None:
        """Replace the view if the configuration was changed, here or by another replica."""
        async with self._db.reading() as session:
            version = await versions.current(session)
        if self._view is None or self._problem is not None or version != self._view.version:
            await self.reload()

    async def start(self) -> None:
        """`reload`, for a start that must not fail because something cannot be signed now.

        There is no view then until it can. Raises `Unavailable` when what is stored is broken.
        """
        try:
            await self.reload()
        except Unavailable as error:
            if self._problem is not None:
                raise
            log.warning("configuration.not_signed", problem=error.message)

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            try:
                await self.refresh()
            except Exception as error:
                log.warning("configuration.not_refreshed", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS_BETWEEN_LOOKS):
                    await self._changed.wait()
            self._changed.clear()

    async def reload(self) -> None:
        """Read everything anew, and rely on it once it is in the signed head.

        Raises `Unavailable` when what is stored cannot be relied on; `view` then does, too, until
        a reload succeeds. When it only cannot be signed, the view stays as it was.
        """
        async with self._lock:
            try:
                async with self._db.reading() as session:
                    view = await _load(session)
            except GatepassError as error:
                self._problem = Unavailable(error.message, code="config_broken")
                raise self._problem from None
            if self._settle is not None:
                await self._settle()
            self._view, self._problem = view, None


async def _load(session: AsyncSession) -> View:
    # The version first: a change that comes in between is then read again, never missed.
    version = await versions.current(session)
    live_apps = select(App).where(col(App.disabled_at).is_(None))
    apps = {row.id: _app(row) for row in await session.exec(live_apps)}
    live_servers = select(Server).where(col(Server.removed_at).is_(None))
    bound = await bindings.origins(session)
    servers = [_server(row, bound) for row in await session.exec(live_servers)]
    live_keys = select(AppKey).where(col(AppKey.revoked_at).is_(None))
    found = [row for row in await session.exec(live_keys) if row.app_id in apps]
    return View(
        version=version,
        apps=MappingProxyType(apps),
        apps_by_key_id=MappingProxyType({row.id: (row.digest, apps[row.app_id]) for row in found}),
        apps_by_issuer=_by_issuer(apps.values()),
        servers=_by(lambda server: server.id, servers),
        servers_by_label=_by(lambda server: server.label, servers),
        servers_by_url=_by(lambda server: server.url, servers),
        policy=await _policy(session),
        shadow=await _shadow(session),
        pauses=tuple(await pauses.read(session)),
    )


def _by(
    key: Callable[[ServerView], str], servers: Iterable[ServerView]
) -> Mapping[str, ServerView]:
    return MappingProxyType({key(server): server for server in servers})


def _by_issuer(apps: Iterable[AppView]) -> Mapping[str, tuple[AppView, ...]]:
    """The apps that may come with a token of each issuer, as they are when they do."""
    found: dict[str, tuple[AppView, ...]] = {}
    for app in apps:
        if app.identity is not None:
            known = found.get(app.identity.issuer, ())
            found[app.identity.issuer] = (*known, replace(app, auth="token"))
    return MappingProxyType(found)


def _app(row: App) -> AppView:
    servers = None if row.servers is None else frozenset(row.servers)
    identity = None if row.identity is None else IdentitySettings(**row.identity)
    return AppView(
        row.id, row.name, row.owner, row.wait, row.plain, row.heartbeat, servers, identity
    )


def _server(row: Server, bound: Mapping[tuple[str, str], str]) -> ServerView:
    return ServerView(
        id=row.id,
        label=row.label,
        url=row.url,
        inject=row.inject,
        credential=_credential(row, bound),
        description=row.description,
        allow_private_network=row.allow_private_network,
        pin=row.pin,
    )


def _credential(row: Server, bound: Mapping[tuple[str, str], str]) -> CredentialBinding | None:
    if row.credential is None:
        return None
    source = row.credential["from"]
    # For this server at this address, if somebody who may has said so.
    ref = SecretRef.parse(source).to(row.id, row.url, bound.get((source, row.id)))
    return CredentialBinding(row.credential["header"], row.credential.get("scheme"), ref)


async def _policy(session: AsyncSession) -> Policy:
    active = select(PolicyVersion).where(
        col(PolicyVersion.activated_at).is_not(None), col(PolicyVersion.deactivated_at).is_(None)
    )
    rows = list(await session.exec(active))
    if not rows:
        return Policy()
    if len(rows) > 1:
        raise Unavailable("More than one policy version is active.", code="config_broken")
    return policies.checked(rows[0])


async def _shadow(session: AsyncSession) -> Policy | None:
    row = await policies.shadow_row(session)
    try:
        return None if row is None else policies.checked(row)
    except GatepassError:
        # It decides nothing, so nothing may stop because of it.
        log.warning("shadow.unreadable")
        return None
