"""What `gatepass doctor` asks: every configured part, for real, one finding each.

A failed part would keep calls from being held, decided, recorded or released. What only might
be wrong (a server that Azure can reach and we cannot) is a warning.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from sqlalchemy.exc import DBAPIError

from gateway.api import health
from gateway.app import upstream
from gateway.audit import reading
from gateway.cli.runtime import House, opened, read_settings
from gateway.config import Settings
from gateway.errors import GatepassError
from gateway.identity import people
from gateway.openid.flow import Wish
from gateway.probing.probes import AT_ONCE
from gateway.proxy.signing_in import SignIn
from gateway.registry.directory import ServerView
from gateway.store import migration

_PATIENCE = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Finding:
    """What was found about one part: ok, warning or failed."""

    part: str
    state: str
    detail: str


def examine() -> list[Finding]:
    """Ask every part. Raises what keeps even the first from being asked."""
    return asyncio.run(_examine(read_settings()))


async def _examine(settings: Settings) -> list[Finding]:
    async with opened(settings) as house:
        found = [
            await _ask("schema", _schema, house),
            await _ask("database", _database, house),
            await _ask("ledger", _ledger, house),
            await _ask("vault", _vault, house),
            await _ask("configuration", _configuration, house),
            await _ask("people", _people, house),
            await _ask("sign-in", _sign_in, house),
            await _ask("upstream", _upstream, house),
            *_keys(settings),
            _public_url(settings),
        ]
        if any(f.part == "configuration" and f.state == "ok" for f in found):
            servers = sorted(house.services.directory.view.servers.values(), key=lambda s: s.label)
            opens = {server.label: await _opens(house, server) for server in servers}
            found += await _stores(house, servers, opens)
            turns = asyncio.Semaphore(AT_ONCE)  # some may not answer at all
            visits = await asyncio.gather(*(_visited(house, turns, s.label) for s in servers))
            for server, visited in zip(servers, visits, strict=True):
                credential = opens[server.label]
                found += [visited] if credential is None else [credential, visited]
        return found


async def _ask(
    part: str, check: Callable[[House], Awaitable[tuple[str, str]]], house: House
) -> Finding:
    try:
        async with asyncio.timeout(_PATIENCE):
            return Finding(part, *await check(house))
    except TimeoutError:
        return Finding(part, "failed", f"no answer within {_PATIENCE:.0f} s")
    except GatepassError as error:
        return Finding(part, "failed", error.message)
    except DBAPIError as error:
        return Finding(part, "failed", f"the database refused: {error.orig}")


async def _schema(house: House) -> tuple[str, str]:
    found = await migration.current(house.settings.resolved_database_url)
    wanted = migration.newest()
    if found == wanted:
        return "ok", f"version {found}"
    return "failed", f"version {found or 'none'}, needed is {wanted}: run 'gatepass migrate'"


async def _database(house: House) -> tuple[str, str]:
    await health.write_nothing(house.db)
    return "ok", f"{house.db.dialect}, can be written"


async def _ledger(house: House) -> tuple[str, str]:
    await house.ledger.settle()
    head = await reading.latest(house.db)
    if head is None:
        return "ok", "empty: nothing has been recorded yet"
    return "ok", f"{head.size} records, all under a signed head"


async def _vault(house: House) -> tuple[str, str]:
    await house.services.vault.ping()
    return "ok", "the stores on this machine answer"


async def _configuration(house: House) -> tuple[str, str]:
    await house.services.directory.reload()
    view = house.services.directory.view
    return (
        "ok",
        f"{len(view.servers)} servers, {len(view.apps)} apps, {len(view.policy.rules)} rules",
    )


async def _people(house: House) -> tuple[str, str]:
    users = (await people.listing(house.db, limit=200)).items
    active = [user for user in users if user.disabled_at is None]
    missing = [role for role in ("admin", "reviewer") if not any(role in u.roles for u in active)]
    if missing:
        return "warning", f"there is no active {' and no active '.join(missing)}"
    return "ok", f"{len(active)} active users"


async def _sign_in(house: House) -> tuple[str, str]:
    if house.services.sign_in is None:
        return "ok", "one-time links; no identity provider is configured"
    await house.services.sign_in.begin(Wish(), now=house.clock())
    return "ok", f"{house.settings.oidc_issuer} answers"


async def _upstream(house: House) -> tuple[str, str]:
    settings = house.settings
    if settings.upstream_url is None:
        return "failed", "GATEPASS_UPSTREAM_URL is not set"
    azure = upstream(settings, house.clock)
    if azure is None:
        return "failed", "GATEPASS_UPSTREAM_API_KEY is not set"
    url = azure.url + "models"
    sign_in = SignIn(azure)
    try:
        headers = dict(await sign_in.header())
        async with httpx2.AsyncClient(timeout=_PATIENCE, follow_redirects=False) as client:
            status = (await client.get(url, headers=headers)).status_code
    except httpx2.HTTPError as error:
        return "failed", f"{settings.upstream_url} cannot be reached ({type(error).__name__})"
    finally:
        await sign_in.close()
    if status in {401, 403}:
        what = "token" if azure.token else "key"
        return "failed", f"{settings.upstream_url} does not accept the {what} ({status})"
    if status >= 500:
        return "failed", f"{settings.upstream_url} answers {status}"
    return "ok", f"{settings.upstream_url} answers ({status})"


async def _opens(house: House, server: ServerView) -> Finding | None:
    """Whether the credential of a server can be opened now; None when it has none."""
    if server.credential is None:
        return None
    ref = server.credential.ref

    async def opens(house: House) -> tuple[str, str]:
        if house.services.directory.view.for_user(server.id) is not None:
            return "warning", f"{ref} needs the token of an end user: it cannot be tried here"
        version = (await house.services.vault.open(ref)).version
        return "ok", f"{ref} can be opened" + (f" (version {version})" if version else "")

    return await _ask(f"server {server.label}: credential", opens, house)


async def _stores(
    house: House, servers: Sequence[ServerView], opens: Mapping[str, Finding | None]
) -> list[Finding]:
    """One for each store that a server names, or that is set up on another machine."""
    vault, found = house.services.vault, []
    by_store: dict[str, list[Finding]] = {name: [] for name in vault.configured}
    for server in servers:
        if server.credential is not None and (finding := opens[server.label]) is not None:
            by_store.setdefault(server.credential.ref.store, []).append(finding)
    for name, credentials in sorted(by_store.items()):

        async def answers(house: House, name: str = name) -> tuple[str, str]:
            if (problem := vault.problem_with(name)) is not None:
                return "failed", problem
            await vault.ping(name)
            return "ok", "answers"

        finding = await _ask(f"secret store {name}", answers, house)
        good = sum(credential.state == "ok" for credential in credentials)
        if finding.state == "ok" and credentials:
            # One that only an end user's token could open is no fault of the store.
            bad = any(credential.state == "failed" for credential in credentials)
            state = "failed" if bad else "ok"
            detail = f"answers; {good} of {len(credentials)} credentials can be opened"
            finding = Finding(finding.part, state, detail)
        found.append(finding)
    return found


async def _visited(house: House, turns: asyncio.Semaphore, label: str) -> Finding:
    """A real visit. What keeps us out need not keep Azure out, but for a refused credential."""
    part = f"server {label}"
    try:
        async with turns:
            report = await house.services.prober.look(label)
    except GatepassError as error:
        return Finding(part, "warning", error.message)
    visit = report.visit
    if not report.answered:
        state = "failed" if visit.outcome == "credential_refused" else "warning"
        return Finding(part, state, f"{visit.sentence} Azure must reach it")
    if report.warnings:
        return Finding(part, "warning", " ".join(one.sentence for one in report.warnings))
    return Finding(part, "ok", visit.sentence)


def _keys(settings: Settings) -> list[Finding]:
    return [
        _private("master key", settings.resolved_master_key_file),
        _private("signing key", settings.resolved_signing_key_file),
    ]


def _private(part: str, path: Path) -> Finding:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(part, "failed", f"{path}: {error.strerror}")
    if mode & 0o077:
        return Finding(part, "warning", f"{path} has mode {mode:04o}; 0600 is enough")
    return Finding(part, "ok", f"{path}, readable by its owner alone. Keep a copy elsewhere")


def _public_url(settings: Settings) -> Finding:
    parts = urlsplit(settings.public_url)
    if parts.scheme == "https" or parts.hostname in _LOOPBACK:
        return Finding("public address", "ok", settings.public_url)
    detail = f"{settings.public_url} is not https: sign-ins can be read on the way"
    return Finding("public address", "warning", detail)
