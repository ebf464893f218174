"""The composition root: builds every collaborator and the application; nothing else does.

Requests of apps (`/openai`, `/v1`) go straight to the proxy, past the whole of FastAPI's
machinery; everything else is FastAPI's: `/api`, the pages, health.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

import web
from gateway import api, config
from gateway.api import health
from gateway.approvals.lease import LENGTH, Lease
from gateway.approvals.wakeups import Wakeups
from gateway.audit.ledger import Ledger
from gateway.audit.signing import load_signer
from gateway.config import Settings
from gateway.egress import addresses
from gateway.errors import Refused
from gateway.identity.claims import Rules
from gateway.jobs import Jobs
from gateway.openid.flow import SignIn
from gateway.openid.provider import Client, Provider
from gateway.proxy.assignment import Tools
from gateway.proxy.azure import Azure
from gateway.proxy.clients import Limits
from gateway.proxy.conversations import Conversations
from gateway.proxy.creating import Creation
from gateway.proxy.credentials import Credentials
from gateway.proxy.elsewhere import Elsewhere
from gateway.proxy.end_user import EndUsers
from gateway.proxy.evidence import Gathering
from gateway.proxy.files import Files
from gateway.proxy.forwarding import Forwarding
from gateway.proxy.guard import Guard
from gateway.proxy.keeping import Keeper
from gateway.proxy.live import Hub
from gateway.proxy.passing import Passing
from gateway.proxy.recovery import Recovery
from gateway.proxy.relay import Relay
from gateway.proxy.retrieval import Retrieval
from gateway.proxy.routes import Edge, Proxy
from gateway.proxy.signing_in import Upstream
from gateway.proxy.upstream_token import UpstreamToken
from gateway.registry.access_tokens import AccessTokens
from gateway.registry.directory import Directory
from gateway.services import Services
from gateway.store.clock import DatabaseClock
from gateway.store.database import open_database
from gateway.store.envelope import Envelope, load_or_create_key
from gateway.store.notifications import EXCHANGE, Notifications
from gateway.telemetry import Clock, utc_now
from gateway.vault import Clients, open_vault
from gateway.vault.azure_identity import azure_credential
from gateway.vault.opening import remote_stores
from web.security import site

#: Some clients keep a path of the endpoint they were given in front of `/openai/`. The last ones
#: are Azure's for other families of models: refused, and recorded under the name of the app.
_DATA_PLANE = re.compile(
    r"(?:/(?!api/)[A-Za-z0-9_-]{1,64})?/openai/|/v1/|/(?:anthropic|models|deployments)/"
)


class Gatepass(FastAPI):
    """The whole application; the data plane takes the short way."""

    guard: Guard
    proxy: Proxy
    keeper: Keeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dispatch by the first path segment what the guard lets in."""
        of_app = scope["type"] != "lifespan" and _DATA_PLANE.match(scope["path"]) is not None
        if scope["type"] == "http" and (fault := self.guard.fault(scope, of_app=of_app)):
            await self.guard.refuse(fault, scope, receive, send)
        elif of_app:
            await self.proxy(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_services(settings: Settings, clock: Clock = utc_now) -> Services:
    """Open what the settings name. Makes the data directory and the keys at the first start."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    envelope = Envelope(load_or_create_key(settings.resolved_master_key_file))
    signer = load_signer(
        settings.resolved_signing_key_file, settings.ledger_origin, settings.data_dir
    )
    db = open_database(settings.resolved_database_url)
    clock = DatabaseClock(db, clock)
    notifications = Notifications(db)
    ledger = Ledger(db, signer, clock, notifications=notifications)
    directory = Directory(db, ledger.settle, notifications)
    return Services(
        settings=settings,
        db=db,
        ledger=ledger,
        envelope=envelope,
        directory=directory,
        vault=open_vault(
            db,
            envelope,
            config.environment(),
            settings.own_files,
            remote_stores(settings, clock),
            Clients(directory.oauth_client, clock),
        ),
        notifications=notifications,
        wakeups=Wakeups(db, notifications),
        clock=clock,
        sign_in=_sign_in(settings, ledger, envelope, clock),
    )


def create_app(settings: Settings, clock: Clock = utc_now, lease: timedelta = LENGTH) -> Gatepass:
    """The application of one process, not started yet: its lifespan opens and closes it.

    `lease`: what it drives is another's so long after its last sign of life.
    """
    services = create_services(settings, clock)
    clock = services.clock
    azure = Azure(upstream(settings, clock), services.directory, services.vault)
    hub = Hub()
    tools = Tools(
        context=services.approvals,
        lease=Lease(services.db, lease, settings.data_dir),
        azure=azure,
        directory=services.directory,
        clock=clock,
        approval_expires=settings.approval_expires,
        grace=settings.disconnect_grace,
        keepalive=settings.keepalive,
        allow_at_azure=settings.allow_at_azure,
    )
    recovery = Recovery(tools, hub)
    tokens = AccessTokens(services.directory, clock)
    elsewhere = Elsewhere(tools, hub, recovery)
    keeper = Keeper(tools, hub, recovery)
    services.notifications.on(EXCHANGE, keeper.hint)
    heartbeat = settings.heartbeat.total_seconds()
    creation = Creation(
        tools=tools,
        passing=Passing(azure, services.ledger, clock),
        hub=hub,
        elsewhere=elsewhere,
        end_users=EndUsers(services.directory, tokens),
        limits=Limits(
            settings.early_header.total_seconds(),
            settings.plain_limit.total_seconds(),
            settings.strict_limit.total_seconds(),
        ),
        heartbeat=heartbeat,
        max_rounds=settings.max_rounds,
        max_body=settings.max_body_bytes,
    )
    relay = Relay(azure, services.ledger, clock)
    edge = Edge(
        tools=tools,
        creation=creation,
        retrieval=Retrieval(services.approvals, azure, hub, elsewhere, clock, heartbeat),
        conversations=Conversations(
            services.approvals, azure, clock, max_body=settings.max_body_bytes
        ),
        forwarding=Forwarding(relay, services.db, settings.max_body_bytes),
        files=Files(relay, services.db, settings.max_file_bytes),
        credentials=Credentials(services.directory, tokens),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _running(services, tools, hub, keeper):
            yield

    app = Gatepass(
        title="Gatepass",
        version=version("gatepass"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    app.proxy, app.keeper = Proxy(edge), keeper
    names = site(settings.public_url, settings.listen, settings.allowed_hosts).hosts
    app.guard = Guard(names, edge.credentials, services.ledger, clock)
    app.include_router(health.router())
    api.mount(app, services)
    web.mount(app, services)
    return app


@contextlib.asynccontextmanager
async def _running(
    services: Services, tools: Tools, hub: Hub, keeper: Keeper
) -> AsyncIterator[None]:
    """Everything that lives as long as the process, started in order, stopped in reverse."""
    stopping, azure, lease = asyncio.Event(), tools.azure, tools.lease
    await azure.open()
    await services.directory.start()
    try:
        async with asyncio.TaskGroup() as group:
            ledger = group.create_task(services.ledger.run(), name="ledger")
            others = [
                *await _followed(services.clock, group),
                group.create_task(services.notifications.run(), name="notifications"),
                group.create_task(services.wakeups.run(), name="wakeups"),
                group.create_task(services.directory.run(), name="configuration"),
                group.create_task(services.vault.run(), name="vaults"),
            ]
            home = group.create_task(hub.run(stopping), name="exchanges")
            await hub.ready.wait()
            # Not a moment of service before the ledger is ours, and sound.
            await asyncio.wait(
                [ledger, group.create_task(services.ledger.ready.wait())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not ledger.done():
                await lease.join()
                # It must not lapse while everything is taken up, however much that is.
                others.append(group.create_task(lease.run(), name="lease"))
                # Before the first request: what nobody drives now is not of this process.
                await keeper.look()
            gathering = Gathering(services.approvals, azure, services.clock)
            others += [
                group.create_task(job.run(), name=type(job).__name__)
                for job in (keeper, Jobs(services), gathering, azure.sign_in)
            ]
            try:
                yield
            finally:
                for task in others:
                    task.cancel()
                stopping.set()
                await asyncio.wait([home])
                await lease.leave()
                ledger.cancel()
    finally:
        await azure.close()
        await services.close()


async def _followed(clock: Clock, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
    if not isinstance(clock, DatabaseClock):
        return []
    await clock.adjust()
    return [group.create_task(clock.run(), name="clock")]


def _sign_in(settings: Settings, ledger: Ledger, envelope: Envelope, clock: Clock) -> SignIn | None:
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    secret = settings.oidc_client_secret
    try:
        issuer = addresses.check_issuer(settings.oidc_issuer)
    except Refused as problem:
        raise Refused(
            f"GATEPASS_OIDC_ISSUER: {problem.message}", code="configuration_invalid"
        ) from None
    client = Client(
        issuer,
        settings.oidc_client_id,
        secret.get_secret_value() if secret else None,
        settings.oidc_scopes,
        settings.public_url,
    )
    rules = Rules(
        settings.oidc_roles_claim,
        settings.oidc_groups_claim,
        settings.oidc_roles,
        settings.oidc_groups,
    )
    return SignIn(Provider(client, clock), rules, ledger, envelope, settings.step_up)


def upstream(settings: Settings, clock: Clock) -> Upstream | None:
    """Azure as the settings name it; None when they do not, or not how to sign in."""
    if settings.upstream_url is None:
        return None
    key, token = settings.upstream_api_key, None
    if settings.upstream_auth == "entra":
        token = UpstreamToken(azure_credential(settings), settings.upstream_scope, clock)
    elif key is None:
        return None
    return Upstream(
        settings.upstream_url.rstrip("/") + "/",
        key.get_secret_value() if key is not None else "",
        settings.upstream_timeout.total_seconds(),
        token,
    )
