"""`gatepass grants …`: what is remembered, and ending it. Remembering is done by reviewers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import Json, emit, facts, say, table

if TYPE_CHECKING:
    from gateway.approvals.granted import GrantView
    from gateway.cli.runtime import House

app = typer.Typer(no_args_is_help=True, help="Remembered approvals: calls answered without people.")
Id = Annotated[str, typer.Argument(metavar="ID", help="A remembered approval, grt_….")]


@app.command("list")
def listing(
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: Json = False,
) -> None:
    """List remembered approvals that may still answer, newest first."""
    from gateway.approvals import granted
    from gateway.cli.runtime import look

    async def work(house: House) -> list[GrantView]:
        page = await granted.listing(
            house.db, house.envelope, now=house.clock(), live=not every, limit=limit
        )
        return page.items

    views = look(work)
    if as_json:
        emit([view.document() for view in views])
        return
    table(
        ("id", "state", "tool", "server", "app", "for", "used", "until", "by"),
        [_row(view) for view in views],
        empty="Nothing is remembered.",
    )


@app.command("show")
def show(grant_id: Id, as_json: Json = False) -> None:
    """Show what is granted, exactly, and what became of it."""
    from gateway.approvals import granted
    from gateway.cli.runtime import look

    async def work(house: House) -> GrantView:
        return await granted.read(house.db, house.envelope, grant_id, now=house.clock())

    view = look(work)
    emit(view.document()) if as_json else _print(view)


@app.command("revoke")
def revoke(grant_id: Id, as_json: Json = False) -> None:
    """End a remembered approval, at once."""
    from gateway.approvals import granted, grants
    from gateway.cli.runtime import run

    async def work(house: House) -> GrantView:
        now = house.clock()
        await grants.revoke(house.approvals, grant_id, by=(house.actor, "operator"), now=now)
        return await granted.read(house.db, house.envelope, grant_id, now=now)

    view = run(work)
    emit(view.document()) if as_json else say(f"{view.id} is {view.state}.")


def _row(view: GrantView) -> tuple[object, ...]:
    whom = view.scope if view.scope == "app" else f"{view.scope} {view.subject}"
    label, until = view.server.label, view.expires_at
    return view.id, view.state, view.tool, label, view.app, whom, _used(view), until, view.creator


def _used(view: GrantView) -> str:
    return f"{view.uses} of {view.max_uses}" if view.max_uses else str(view.uses)


def _print(view: GrantView) -> None:
    say(f"{view.tool} on {view.server.label}")
    ended = f"{view.ended_why} by {view.ended_by}" if view.ended_why else None
    facts(
        [
            ("server", view.server.url),
            ("app", view.app),
            ("for", f"{view.scope} {view.subject}"),
            ("same", view.kind),
            ("state", view.state),
            ("ended", ended),
            ("used", _used(view)),
            ("until", view.expires_at),
            ("made by", view.creator),
            ("from", view.approval_id),
            ("terms", view.terms),
        ]
    )
    if view.exact is not None:
        say()
        say(view.exact)
    for pointer, value in view.fields.items():
        say(f"{pointer} = {value!r}")
