"""`gatepass servers tools …`: what servers say of their tools, and what people say to that."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import Json, emit, facts, note, say, table

if TYPE_CHECKING:
    from gateway.cli.runtime import House
    from gateway.registry.tools import ToolState
    from gateway.registry.unknown import UnknownEntry

Label = Annotated[str, typer.Argument(metavar="LABEL", help="Label of the server.")]
Tool = Annotated[str, typer.Argument(metavar="TOOL", help="Name of the tool.")]
Digest = Annotated[str, typer.Option(metavar="sha256:…", help="Digest of what you have read.")]


def tools(
    label: Label,
    tool: Annotated[str | None, typer.Argument(metavar="TOOL", help="Show this one.")] = None,
    as_json: Json = False,
) -> None:
    """List the tools of a server and what waits for a person, or show one with its difference."""
    from gateway.cli.runtime import look
    from gateway.registry import tools as known

    if tool is not None:
        _show(label, tool, as_json)
        return

    async def work(house: House) -> list[ToolState]:
        return await known.listing(house.db, label)

    states = look(work)
    if as_json:
        emit([_document(state) for state in states])
        return
    table(
        ("tool", "state", "listed", "by", "signs", "digest"),
        [_row(state) for state in states],
        empty="The server has not listed any tools yet.",
    )


def accept(
    label: Label,
    tool: Annotated[str | None, typer.Argument(metavar="TOOL", help="Name of the tool.")] = None,
    digest: Digest = "",
    every: Annotated[bool, typer.Option("--all", help="Whatever waits for a person.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --all: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Pin a tool as it is listed now: with the digest you have read, or all that wait."""
    from gateway.cli.runtime import run
    from gateway.registry import accepting

    if every == (tool is not None) or bool(digest) != (tool is not None):
        raise typer.BadParameter("name a TOOL with its --digest, or give --all")
    seen = _waiting(label, ask=not yes) if tool is None else {tool: digest}

    async def work(house: House) -> list[ToolState]:
        now = house.clock()
        return await accepting.accept_all(house.ledger, label, seen, actor=house.actor, now=now)

    accepted = run(work)
    if as_json:
        emit([_document(state) for state in accepted])
        return
    for state in accepted:
        say(f"{state.name} on {label} is pinned as {state.pinned_digest}.")
    if not accepted:
        say("Nothing waits for a person.")


def _waiting(label: str, *, ask: bool) -> dict[str, str]:
    """What waits for a person, by name and digest, once it has been shown."""
    from gateway.cli.runtime import look
    from gateway.registry import tools as known

    async def work(house: House) -> list[ToolState]:
        states = await known.listing(house.db, label)
        return [state for state in states if state.state in ("new", "changed")]

    found = look(work)
    for state in found:
        signs = ", ".join(sign.code for sign in state.signs)
        note(f"{state.state}: {state.name}{f' ({signs})' if signs else ''}")
    if found and ask:
        typer.confirm(f"Accept {len(found)} as listed?", abort=True, err=True)
    return {state.name: state.listed_digest for state in found}


def refuse(label: Label, tool: Tool, digest: Digest, as_json: Json = False) -> None:
    """Deny every call of a tool until somebody accepts it."""
    from gateway.cli.runtime import run
    from gateway.registry import accepting

    async def work(house: House) -> ToolState:
        seen, now = (tool, digest), house.clock()
        return await accepting.refuse(house.ledger, label, seen, actor=house.actor, now=now)

    state = run(work)
    emit(_document(state)) if as_json else say(f"Calls of {tool} on {label} are denied now.")


def unknown(as_json: Json = False) -> None:
    """List servers that apps asked for and nobody has registered; all of it was refused."""
    from gateway.cli.runtime import look
    from gateway.registry import unknown as strangers

    async def work(house: House) -> list[UnknownEntry]:
        return await strangers.listing(house.db)

    entries = look(work)
    if as_json:
        emit(entries)
        return
    table(
        ("address", "app", "times", "first", "last", "id"),
        [(e.address, e.app, e.times, e.first_seen, e.last_seen, e.id) for e in entries],
        empty="Apps have asked for no other servers than the registered ones.",
    )


def _show(label: str, tool: str, as_json: bool) -> None:
    from gateway.cli.runtime import look
    from gateway.registry import tools as known

    async def work(house: House) -> ToolState:
        return await known.read(house.db, label, tool)

    state = look(work)
    if as_json:
        emit(_document(state))
        return
    facts(
        [
            ("tool", state.name),
            ("state", state.state),
            ("pinned", state.pinned_digest),
            ("listed", state.listed_digest),
            ("listed at", state.listed_at),
            ("seen by", state.source),
        ]
    )
    for sign in state.signs:
        say(f"! {sign.sentence}")
    for change in state.difference:
        say(f"{change.path or '/'} {change.kind}")
        if change.kind != "added":
            say(f"  - {json.dumps(change.before, ensure_ascii=False)}")
        if change.kind != "removed":
            say(f"  + {json.dumps(change.after, ensure_ascii=False)}")


def _row(state: ToolState) -> tuple[object, ...]:
    signs = [sign.code for sign in state.signs]
    return state.name, state.state, state.listed_at, state.source, signs, state.listed_digest


def _document(state: ToolState) -> dict[str, Any]:
    names = [member.name for member in dataclasses.fields(state)]
    document = {name: getattr(state, name) for name in names}
    return {**document, "state": state.state, "difference": state.difference}
