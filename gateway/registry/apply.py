"""Make the configuration what files declare: a plan first, then all of it in one transaction.

Idempotent: what is as declared is not touched, and without a change nothing is recorded. Objects
that no file names are left alone, and so is an app that a person has disabled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.audit.ledger import Ledger, Transaction
from gateway.audit.records import JSONValue
from gateway.errors import Refused
from gateway.registry import apps, bindings, groups, oauth_clients, policies, servers
from gateway.registry.changes import By, Change, Difference, differences
from gateway.registry.declaration import Declaration
from gateway.registry.settings import AppSettings, GroupSettings, ServerSettings
from gateway.registry.versions import bump_config, lock_config
from gateway.store.database import Database
from gateway.store.oauth import OAuthClient
from gateway.store.references import SecretRef, origin_of
from gateway.store.tables import App, ReviewerGroup, Server

#: How records name a binding that a file states.
_FILE = "file"
_Settings = ServerSettings | AppSettings | GroupSettings | OAuthClient


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one object. `action` is create, change or unchanged."""

    section: str
    name: str
    action: str
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` does, or would do: steps in order, and what a person should know.

    `digest` is that of the declaration, `changes` whether anything differs.
    """

    digest: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    applied: bool = False

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return any(step.action != "unchanged" for step in self.steps)

    def document(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {**asdict(self), "changes": self.changes}


@dataclass(frozen=True, slots=True)
class _Stored:
    """What is configured now, by section and name."""

    servers: Mapping[str, ServerSettings]
    bound: frozenset[str]
    apps: Mapping[str, AppSettings]
    disabled: frozenset[str]
    groups: Mapping[str, GroupSettings]
    oauth_clients: Mapping[str, OAuthClient]
    rules: tuple[str, list[dict[str, Any]]] | None


async def plan(db: Database, declaration: Declaration) -> Plan:
    """What `apply` would do now; writes nothing. Raises `Refused` like `apply`."""
    async with db.reading() as session:
        return _plan(declaration, await _stored(session))


async def apply(ledger: Ledger, declaration: Declaration, by: By, *, dry_run: bool = False) -> Plan:
    """Make what is configured as declared, in one transaction; with `dry_run` only plan.

    Raises `Refused` when the declaration names servers or groups that do not exist, `Conflict`
    when an address is taken; nothing has changed then. Ends when a signed head covers it all.
    """
    if dry_run:
        return await plan(ledger.db, declaration)
    async with ledger.transaction() as tx:
        await lock_config(tx.session)
        planned = _plan(declaration, await _stored(tx.session))
        if not planned.changes:
            return planned
        await bump_config(tx.session)
        await _carry_out(tx, declaration, by, planned)
    await tx.sealed()
    return Plan(planned.digest, planned.steps, planned.warnings, applied=True)


def _plan(declaration: Declaration, stored: _Stored) -> Plan:
    _check_references(declaration, stored)
    steps = [
        *_steps("reviewer_groups", declaration.groups, stored.groups),
        *_steps("oauth_clients", declaration.oauth_clients, stored.oauth_clients),
        *_server_steps(declaration, stored),
        *_steps("apps", declaration.apps, stored.apps),
        *_policy_step(declaration, stored),
    ]
    return Plan(declaration.digest, tuple(steps), tuple(_warnings(declaration, stored)))


def _steps(
    section: str,
    declared: Sequence[_Settings],
    stored: Mapping[str, _Settings],
) -> list[Step]:
    found = []
    for settings in declared:
        before = stored.get(settings.key)
        differ = differences(before, settings)
        action = "create" if before is None else "change" if differ else "unchanged"
        found.append(Step(section, settings.key, action, differ))
    return found


def _server_steps(declaration: Declaration, stored: _Stored) -> list[Step]:
    """Those of servers. A file that states a server's credential binds it to the server's origin:
    it is the operator who writes it.
    """
    found = []
    steps = _steps("servers", declaration.servers, stored.servers)
    for settings, step in zip(declaration.servers, steps, strict=True):
        if settings.credential is None or step.differences or settings.label in stored.bound:
            found.append(step)
            continue
        binding = Difference("binding", None, origin_of(settings.url))
        found.append(Step("servers", step.name, "change", (binding,)))
    return found


def _policy_step(declaration: Declaration, stored: _Stored) -> list[Step]:
    if declaration.policy is None:
        return []
    if stored.rules is not None and stored.rules[0] == declaration.policy.digest:
        return [Step("policies", "active", "unchanged")]
    before = {} if stored.rules is None else {rule["name"]: rule for rule in stored.rules[1]}
    after = {rule["name"]: rule for rule in declaration.policy.documents()}
    differ = tuple(
        Difference(name, before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    )
    action = "create" if stored.rules is None else "change"
    return [Step("policies", "active", action, differ)]


def _check_references(declaration: Declaration, stored: _Stored) -> None:
    labels = {server.label for server in declaration.servers} | set(stored.servers)
    names = {group.name for group in declaration.groups} | set(stored.groups)
    faults = [
        f"{declaration.place('apps', app.name)}: the app {app.name!r} uses the server {label!r}, "
        "which is neither declared nor registered"
        for app in declaration.apps
        for label in app.servers or ()
        if label not in labels
    ]
    faults += [
        f"{declaration.place('policies', rule.name)}: the rule {rule.name!r} asks for the "
        f"reviewer group {group!r}, which is neither declared nor known"
        for rule in (declaration.policy.rules if declaration.policy else ())
        for group in sorted(rule.all_groups)
        if group not in names
    ]
    faults += _shared_addresses(declaration, stored)
    faults += _unknown_clients(declaration, stored)
    if faults:
        raise Refused("\n".join(faults), code="config_invalid")


def _shared_addresses(declaration: Declaration, stored: _Stored) -> list[str]:
    after = {**stored.servers, **{server.label: server for server in declaration.servers}}
    return [
        f"{declaration.place('servers', server.label)}: the server {server.label!r} has the "
        f"address of {other.label!r}, which is registered already"
        for server in declaration.servers
        for other in after.values()
        if other.url == server.url and other.label != server.label
    ]


def _unknown_clients(declaration: Declaration, stored: _Stored) -> Iterator[str]:
    known = {client.name for client in declaration.oauth_clients} | set(stored.oauth_clients)
    for server in declaration.servers:
        ref = None if server.credential is None else SecretRef.parse(server.credential.source)
        if ref is not None and ref.store == "oauth" and ref.name not in known:
            yield (
                f"{declaration.place('servers', server.label)}: the credential of "
                f"{server.label!r} is {ref}, and no OAuth client has that name"
            )


def _warnings(declaration: Declaration, stored: _Stored) -> list[str]:
    found = [
        f"the app {app.name!r} is disabled and stays so; enable it by hand"
        for app in declaration.apps
        if app.name in stored.disabled
    ]
    found += [
        f"the webhook {webhook.name!r} was read and checked, but this version sends none"
        for webhook in declaration.webhooks
    ]
    return found


async def _carry_out(tx: Transaction, declaration: Declaration, by: By, planned: Plan) -> None:
    change = Change(tx, by.actor, by.now)
    todo = {(step.section, step.name) for step in planned.steps if step.action != "unchanged"}
    writers: tuple[tuple[str, tuple[_Settings, ...], _Put], ...] = (
        ("reviewer_groups", declaration.groups, _put_group),
        ("oauth_clients", declaration.oauth_clients, _put_oauth_client),
        ("servers", declaration.servers, _put_server),
        ("apps", declaration.apps, _put_app),
    )
    for section, declared, put in writers:
        for settings in declared:
            if (section, settings.key) in todo:
                await put(change, settings)
    if declaration.policy is not None:
        await policies.put(change, declaration.policy)
    sections: list[JSONValue] = [*dict.fromkeys(section for section, _ in sorted(todo))]
    fields: dict[str, JSONValue] = {
        "definition": planned.digest,
        "files": len(declaration.files),
        "changes": sections,
    }
    change.record("config.applied", {}, fields)


_Put = Callable[[Change, Any], Awaitable[None]]


async def _put_group(change: Change, settings: GroupSettings) -> None:
    await groups.put(change, await change.session.get(ReviewerGroup, settings.name), settings)


async def _put_oauth_client(change: Change, settings: OAuthClient) -> None:
    await oauth_clients.put(
        change, await oauth_clients.find(change.session, settings.name), settings
    )


async def _put_server(change: Change, settings: ServerSettings) -> None:
    known = await servers.find(change.session, settings.label)
    row = await servers.put(change, known, settings, binds=_FILE)
    await bindings.bind(change, row, _FILE)


async def _put_app(change: Change, settings: AppSettings) -> None:
    await apps.put(change, await apps.find(change.session, settings.name), settings)


async def _stored(session: AsyncSession) -> _Stored:
    live = select(Server).where(col(Server.removed_at).is_(None))
    server_rows = list(await session.exec(live))
    app_rows = list(await session.exec(select(App)))
    active = await policies.active_row(session)
    bound = await bindings.fitting(session)
    return _Stored(
        servers={row.label: servers.settings_of(row) for row in server_rows},
        bound=frozenset(row.label for row in server_rows if row.id in bound),
        apps={row.name: apps.settings_of(row) for row in app_rows},
        disabled=frozenset(row.name for row in app_rows if row.disabled_at is not None),
        groups={group.name: group for group in await groups.all_groups(session)},
        oauth_clients={client.name: client for client in await oauth_clients.every(session)},
        rules=None if active is None else (active.digest, active.rules),
    )
