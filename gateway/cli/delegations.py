"""`gatepass delegations …`: who stands in for whom; the operator speaks for anybody."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import Json, emit, say, table

if TYPE_CHECKING:
    from gateway.cli.runtime import House
    from gateway.identity.delegations import DelegationView

app = typer.Typer(no_args_is_help=True, help="Who stands in for which reviewer, and until when.")


@app.command("list")
def listing(as_json: Json = False) -> None:
    """List who stands in for whom, newest first."""
    from gateway.cli.runtime import look
    from gateway.identity import delegations
    from gateway.identity.delegations import Speaker

    async def work(house: House) -> list[DelegationView]:
        return await delegations.listing(house.db, speaker=Speaker(house.actor), now=house.clock())

    views = look(work)
    if as_json:
        emit(views)
        return
    table(
        ("id", "state", "stands in", "for", "from", "until"),
        [(v.id, v.state, v.to_email, v.from_email, v.starts_at, v.ends_at) for v in views],
        empty="Nobody stands in for anybody.",
    )


@app.command("create")
def create(
    to: Annotated[str, typer.Argument(metavar="EMAIL", help="The reviewer who stands in.")],
    giver: Annotated[str, typer.Option("--for", metavar="EMAIL", help="Who is away.")],
    days: Annotated[int, typer.Option(min=1, max=180, help="How long.")] = 7,
    starts: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="First day, UTC; today without."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a reviewer stand in for another, with the other's groups."""
    from datetime import UTC

    from gateway.cli.runtime import run
    from gateway.identity import delegations
    from gateway.identity.delegations import NewDelegation, Speaker

    async def work(house: House) -> DelegationView:
        now = house.clock()
        begins = max(starts.replace(tzinfo=UTC), now) if starts else now
        new = NewDelegation(giver, to, begins, begins + timedelta(days=days))
        return await delegations.create(house.ledger, new, speaker=Speaker(house.actor), now=now)

    made = run(work)
    emit(made) if as_json else say(f"{made.to_email} stands in for {made.from_email}: {made.id}")


@app.command("end")
def end(
    delegation_id: Annotated[str, typer.Argument(metavar="ID", help="dlg_…")],
    as_json: Json = False,
) -> None:
    """End it, at once."""
    from gateway.cli.runtime import run
    from gateway.identity import delegations
    from gateway.identity.delegations import Speaker

    async def work(house: House) -> DelegationView:
        return await delegations.revoke(
            house.ledger, delegation_id, speaker=Speaker(house.actor), now=house.clock()
        )

    ended = run(work)
    emit(ended) if as_json else say(f"{ended.id} is {ended.state}.")
