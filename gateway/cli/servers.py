"""`gatepass servers …` and `gatepass credentials …`: MCP servers and what opens them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import FAILED, Json, complain, emit, say, table
from gateway.cli.probed import show
from gateway.cli.tools import accept, refuse, tools, unknown

if TYPE_CHECKING:
    from gateway.cli.runtime import House
    from gateway.probing.report import Report
    from gateway.registry.bindings import Use
    from gateway.registry.servers import ServerEntry

app = typer.Typer(no_args_is_help=True, help="Registered MCP servers.")
credentials = typer.Typer(no_args_is_help=True, help="What opens a server; nobody reads it back.")

Label = Annotated[str, typer.Argument(metavar="LABEL", help="Label of the server.")]
Private = Annotated[
    bool, typer.Option("--allow-private-network", help="Plain http, private addresses.")
]
_LONGEST = 16384

for _command in (tools, accept, refuse, unknown):
    app.command(_command.__name__)(_command)


@app.command("add")
def add(  # noqa: PLR0913 - each is an option
    label: Label,
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server.")],
    credential: Annotated[
        str | None, typer.Option(help="Reference to a secret: env:NAME, file:PATH or sealed:NAME.")
    ] = None,
    inject: Annotated[str, typer.Option(help="headers or authorization.")] = "headers",
    private: Private = False,
    probing: Annotated[
        bool, typer.Option("--probe", help="Visit it then, and show what is found.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Register a server. Calls to servers that are not registered are refused."""
    from gateway.cli.runtime import run
    from gateway.registry import servers
    from gateway.registry.members import read_object
    from gateway.registry.settings import read_server

    given: dict[str, Any] = {
        "label": label,
        "url": url,
        "inject": inject,
        "allow_private_network": private,
    }
    if credential is not None:
        given["credential"] = {"header": "Authorization", "scheme": "Bearer", "from": credential}
    settings = read_object(given, "server", read_server)

    async def work(house: House) -> tuple[ServerEntry, Report | None]:
        made = await servers.register(
            house.ledger, settings, actor=house.actor, now=house.clock(), binds=house.actor.auth
        )
        prober = house.services.prober
        return made, await prober.server(label, house.actor) if probing else None

    entry, report = run(work)
    if report is None:
        emit(entry) if as_json else say(f"Registered {label}: {entry.settings.url}")
        return
    if not as_json:
        say(f"Registered {label}: {entry.settings.url}")
    show(report, as_json=as_json)


@app.command("list")
def listing(as_json: Json = False) -> None:
    """List registered servers."""
    from gateway.cli.runtime import look
    from gateway.registry import servers

    async def work(house: House) -> list[ServerEntry]:
        return await servers.listing(house.db)

    entries = look(work)
    if as_json:
        emit(entries)
        return
    table(
        ("label", "url", "credential", "tools", "changed tools", "changed"),
        [_row(entry) for entry in entries],
        empty="No server is registered: calls to any MCP server are refused.",
    )


@app.command("probe")
def probe(
    target: Annotated[
        str, typer.Argument(metavar="LABEL|URL", help="A registered server, or any address.")
    ],
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Visit a server through the official MCP client and show what is found.

    A registered one with its credential and without; an address without.
    """
    from gateway.cli.runtime import run

    async def work(house: House) -> Report:
        prober = house.services.prober
        if "://" in target:
            return await prober.address(target, house.actor, allow_private_network=private)
        return await prober.server(target, house.actor)

    show(run(work), as_json=as_json)


@app.command("remove")
def remove(label: Label, as_json: Json = False) -> None:
    """Remove a server and destroy its sealed credential; calls to it are refused from now on."""
    from gateway.cli.runtime import run
    from gateway.registry import servers

    async def work(house: House) -> None:
        await servers.remove(house.ledger, label, actor=house.actor, now=house.clock())

    run(work)
    emit({"label": label, "removed": True}) if as_json else say(f"{label} is removed.")


@credentials.command("set")
def set_credential(
    label: Label,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="Read the value from this file.")
    ] = None,
    header: Annotated[str | None, typer.Option(help="Header that carries it.")] = None,
    scheme: Annotated[str | None, typer.Option(help="Word before it, such as Bearer.")] = None,
    as_json: Json = False,
) -> None:
    """Store the credential of a server in the sealed vault, from stdin or a file."""
    from gateway.cli.runtime import run
    from gateway.registry import servers
    from gateway.registry.changes import By

    value = _value(from_file)

    async def work(house: House) -> str:
        given = servers.CredentialValue(value, header, scheme)
        by = By(house.actor, house.clock())
        return await servers.set_credential(house.ledger, house.envelope, label, given, by)

    reference = run(work)
    made = {"label": label, "reference": reference}
    emit(made) if as_json else say(f"Stored. {label} now uses {reference}.")


@credentials.command("bind")
def bind(label: Label, as_json: Json = False) -> None:
    """Confirm that a server's credential may be sent to where the server is now."""
    from gateway.cli.runtime import run
    from gateway.registry import servers
    from gateway.registry.changes import By

    async def work(house: House) -> ServerEntry:
        return await servers.bind(house.ledger, label, None, By(house.actor, house.clock()))

    entry = run(work)
    if as_json:
        emit(entry)
    elif entry.settings.credential is not None and entry.binding is not None:
        say(f"{entry.settings.credential.source} may be sent to {entry.binding.origin}.")


@credentials.command("list")
def uses(as_json: Json = False) -> None:
    """List which servers use which credential, and to where it may be sent."""
    from gateway.cli.runtime import look
    from gateway.registry import bindings

    async def work(house: House) -> list[Use]:
        return await bindings.uses(house.db)

    found = look(work)
    if as_json:
        emit(found)
        return
    table(
        ("credential", "server", "may be sent to", "bound by", "since"),
        [_use(use) for use in found],
        empty="No server has a credential.",
    )


def _use(use: Use) -> tuple[object, ...]:
    if use.bound is None:
        return (use.reference, use.server, f"nowhere: bind it to {use.origin}", None, None)
    return (use.reference, use.server, use.bound.origin, use.bound.by, use.bound.at)


def _value(from_file: Path | None) -> str:
    """The secret, without the line end that editors and echo put after it."""
    if from_file is not None:
        text = from_file.read_text(encoding="utf-8")
    elif sys.stdin.isatty():
        text = typer.prompt("Value", hide_input=True, err=True)
    else:
        text = sys.stdin.read(_LONGEST + 1)
    text = text.removesuffix("\n").removesuffix("\r")
    if not 0 < len(text) <= _LONGEST:
        complain(f"a credential has 1 to {_LONGEST} characters")
        raise typer.Exit(FAILED)
    return text


def _row(entry: ServerEntry) -> tuple[object, ...]:
    settings = entry.settings
    kept = settings.credential
    source = None if kept is None else f"{kept.header} from {kept.source}"
    if source is not None and entry.binding is None:
        source += " (not bound)"
    tools, changed = entry.tools, entry.changed_tools
    return (settings.label, settings.url, source, tools, changed, entry.changed_at)
