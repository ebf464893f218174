"""The use case: probe a registered server or an address, note it in the ledger, offer the list to
the pins.

One probe of an address at a time, and few at once: a probe goes where an administrator points, and
must be no way to search a network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gateway.audit.ledger import Ledger
from gateway.audit.records import Actor, JSONValue, make
from gateway.egress import addresses
from gateway.egress.client import Bounds
from gateway.errors import Conflict, GatepassError, NotFound, Refused, Unavailable
from gateway.policy import strangers
from gateway.probing.report import Report, Visit, Warn, Without
from gateway.registry import tools
from gateway.registry.directory import CredentialBinding, Directory, ServerView
from gateway.scrubbing import Scrubber
from gateway.store.ids import new_id
from gateway.telemetry import Clock
from gateway.vault import Vault

#: More servers are not probed at a time.
AT_ONCE = 4
_SOON = timedelta(days=14)
#: There a second visit would find the same.
_NOBODY = frozenset({"unreachable", "blocked", "tls_failed", "not_http", "too_slow"})


@dataclass
class Turns:
    """Who is being probed in this process, and how far a probe may go."""

    bounds: Bounds = field(default_factory=lambda: Bounds(seconds=15.0, most=4 * 1024 * 1024))
    _running: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def turn(self, url: str) -> Iterator[None]:
        """Raises `Conflict` while `url` is being probed, and 429 while too many others are."""
        if url in self._running:
            raise Conflict("This server is being probed already.", code="probe_running")
        if len(self._running) >= AT_ONCE:
            raise GatepassError(
                f"{AT_ONCE} servers are being probed; try again in a few seconds.",
                code="probes_busy",
                status=429,
            )
        self._running.add(url)
        try:
            yield
        finally:
            self._running.remove(url)


@dataclass(frozen=True)
class Prober:
    """Probes with the collaborators of one process."""

    ledger: Ledger
    directory: Directory
    vault: Vault
    clock: Clock
    turns: Turns

    async def server(self, label: str, actor: Actor) -> Report:
        """Probe a registered server, note it, and offer what it lists to the pins."""
        server = await self._registered(label)
        report = await self._probe(server)
        if report.answered:
            report = await self._offered(server.id, report)
        await self._record(server, report, actor)
        return report

    async def address(self, url: str, actor: Actor, *, allow_private_network: bool) -> Report:
        """Probe an address that need not be registered, without any credential, and note it.

        Raises `Refused` for one that could not be registered either.
        """
        checked = addresses.check(url, allow_private_network=allow_private_network)
        stranger = ServerView("", "", checked.url, allow_private_network=allow_private_network)
        report = await self._probe(stranger)
        await self._record(stranger, report, actor)
        return report

    async def look(self, label: str) -> Report:
        """Probe a registered server and change nothing by it."""
        return await self._probe(await self._registered(label))

    async def _registered(self, label: str) -> ServerView:
        """The server as the sender knows it, with what may be sent to it."""
        await self.directory.refresh()
        server = self.directory.view.servers_by_label.get(label)
        if server is None:
            raise NotFound(f"No server has the label {label!r}.", code="server_unknown")
        return server

    async def _probe(self, server: ServerView) -> Report:
        credential = server.credential
        with self.turns.turn(server.url):
            if credential is None:
                visit, without = await self._visit(server), None
            else:
                visit, without = await self._both(server, credential)
        report = Report(
            url=server.url,
            label=server.label or None,
            credential=None if credential is None else str(credential.ref),
            visit=visit,
            without_credential=without,
        )
        return replace(report, warnings=_warnings(report, self.clock()))

    async def _both(
        self, server: ServerView, credential: CredentialBinding
    ) -> tuple[Visit, Without]:
        try:
            value = (await self.vault.open(credential.ref)).reveal()
        except Unavailable as error:
            stranger = await self._visit(server)
            broken = replace(stranger, outcome="credential_unavailable", sentence=error.message)
            return broken, Without(stranger.outcome, stranger.sentence)
        name, text = _header(server.inject, credential, value)
        scrubber = Scrubber([text, value])
        visit = await self._visit(server, {name: text}, scrubber)
        nobody = visit.outcome in _NOBODY
        stranger = visit if nobody else await self._visit(server, scrubber=scrubber)
        return visit, Without(stranger.outcome, stranger.sentence)

    async def _visit(
        self,
        server: ServerView,
        headers: dict[str, str] | None = None,
        scrubber: Scrubber | None = None,
    ) -> Visit:
        # The MCP client takes long to import, and few processes ever probe.
        from gateway.probing.visiting import Way, visit

        allow = server.allow_private_network
        bounds = replace(self.turns.bounds, allow_private_network=allow)
        return await visit(Way(server.url, bounds, headers or {}, scrubber or Scrubber([])))

    async def _offered(self, server_id: str, report: Report) -> Report:
        if not report.visit.complete:
            return report
        definitions = [tool.definition for tool in report.visit.tools]
        try:
            states = await tools.observe(
                self.ledger, server_id, definitions, now=self.clock(), source="probe"
            )
        except (Refused, NotFound) as error:
            refused = Warn("tools_not_pinned", error.message)
            return replace(report, warnings=(*report.warnings, refused))
        changed = tuple(name for name, state in states.items() if state.changed)
        return replace(report, changed_tools=changed)

    async def _record(self, server: ServerView, report: Report, actor: Actor) -> None:
        visit, now = report.visit, self.clock()
        took = visit.milliseconds
        fields: dict[str, JSONValue] = {
            "outcome": visit.outcome,
            "url": report.url[:512],
            "listed": len(visit.tools),
            "milliseconds": (took.initialize or 0) + (took.list_tools or 0),
        }
        subject = {"server": server.label, "server_id": server.id} if server.id else {}
        async with self.ledger.transaction() as tx:
            key = new_id("prb", now)
            tx.record(
                make("server.probed", now=now, actor=actor, subject=subject, key=key, fields=fields)
            )
        await tx.sealed()


def _header(inject: str, credential: CredentialBinding, value: str) -> tuple[str, str]:
    """Which header carries the credential, and what stands in it, as Azure would send it."""
    if inject == "authorization":
        return "Authorization", f"Bearer {value}"
    return credential.header, f"{credential.scheme} {value}" if credential.scheme else value


def _warnings(report: Report, now: datetime) -> tuple[Warn, ...]:
    visit, found = report.visit, []
    without = report.without_credential
    if without is not None and without.outcome == "answered":
        text = "The server answers without its credential: whoever reaches it may use it."
        found.append(Warn("open_to_strangers", text))
    if without is None and report.answered:
        text = "The server wants no credential: whoever reaches it may use it."
        found.append(Warn("no_credential", text))
    if report.url.startswith("http:"):
        text = "The connection is not encrypted: a credential can be read on the way."
        found.append(Warn("plain_http", text))
    if visit.tls is not None and visit.tls.expires and visit.tls.expires - now < _SOON:
        text = f"The certificate is valid until {visit.tls.expires:%Y-%m-%d} only."
        found.append(Warn("certificate_ends_soon", text))
    if not visit.complete:
        text = "The server lists more tools than are read; nothing of this list is pinned."
        found.append(Warn("list_too_long", text))
    if report.answered and not visit.tools:
        found.append(Warn("no_tools", "The server lists no tools."))
    said = visit.server.instructions if visit.server is not None else None
    if signs := strangers.of_text(said or ""):
        codes = ", ".join(sign.code for sign in signs)
        text = f"The server's instructions to the model stand out ({codes}): read them."
        found.append(Warn("instructions_stand_out", text))
    return tuple(found)
