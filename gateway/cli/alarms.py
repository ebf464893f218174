"""`gatepass pause`, `pauses`, `resume`, `alarms`: stop at once, and what must be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import Json, emit, say, table

if TYPE_CHECKING:
    from gateway.approvals.alarms import AlarmView
    from gateway.cli.runtime import House
    from gateway.registry.pauses import PauseView

pause = typer.Typer(no_args_is_help=True, help="Stop releasing calls, at once.")
pauses = typer.Typer(no_args_is_help=True, help="Pauses in force, and those that are over.")
alarms = typer.Typer(no_args_is_help=True, help="What people must look at.")

_PAUSE = (
    "id id", "what what", "reason reason", "begun begun_at", "by begun_by",
    "ended ended_at", "by ended_by",
)  # fmt: skip
_ALARM = (
    "id id", "kind about.kind", "code about.code", "app about.app_name",
    "request about.approval_id", "raised raised_at", "due due_at",
    "closed closed_at", "by closed_by",
)  # fmt: skip

Reason = Annotated[str, typer.Option(help="Why; shown to everybody who signs in.")]


@pause.command("all")
def pause_all(reason: Reason, as_json: Json = False) -> None:
    """Release nothing at all."""
    _begin("all", "", reason, as_json=as_json)


@pause.command("app")
def pause_app(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the app.")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Release nothing for one app."""
    _begin("app", name, reason, as_json=as_json)


@pause.command("server")
def pause_server(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="Label of the server.")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Release no call of one server."""
    _begin("server", label, reason, as_json=as_json)


def _begin(scope: str, target: str, reason: str, *, as_json: bool) -> None:
    from gateway.cli.runtime import run
    from gateway.registry import pauses as use
    from gateway.registry.pauses import Pausing

    async def work(house: House) -> PauseView:
        wanted = Pausing(scope, target, reason, "operator")
        return await use.begin(house.ledger, wanted, actor=house.actor, now=house.clock())

    begun = run(work)
    sentence = f"Paused: {begun.what}. To end it: gatepass resume {begun.id}"
    _tell(begun, sentence, as_json=as_json)


@pauses.command("list")
def list_pauses(
    ended: Annotated[bool, typer.Option("--ended", help="Those that are over.")] = False,
    as_json: Json = False,
) -> None:
    """List pauses, the newest first."""
    from gateway.cli.runtime import look
    from gateway.registry import pauses as use

    async def work(house: House) -> list[PauseView]:
        return await use.listing(house.db, ended=ended)

    empty = "No pause is over." if ended else "Nothing is paused."
    _show(look(work), _PAUSE, empty=empty, as_json=as_json)


def resume(
    pause_id: Annotated[str, typer.Argument(metavar="ID", help="As 'pauses list' shows it.")],
    as_json: Json = False,
) -> None:
    """End a pause: what waited for it goes on."""
    from gateway.cli.runtime import run
    from gateway.registry import pauses as use

    async def work(house: House) -> None:
        await use.end(house.ledger, pause_id, "operator", actor=house.actor, now=house.clock())

    run(work)
    _tell({"id": pause_id, "ended": True}, f"{pause_id} is over.", as_json=as_json)


@alarms.command("list")
def list_alarms(
    closed: Annotated[bool, typer.Option("--closed", help="Those that are closed.")] = False,
    as_json: Json = False,
) -> None:
    """List alarms, the newest first."""
    from gateway.approvals import alarms as use
    from gateway.cli.runtime import look

    async def work(house: House) -> list[AlarmView]:
        return await use.listing(house.db, closed=closed)

    empty = "No alarm is closed." if closed else "No alarm is open."
    _show(look(work), _ALARM, empty=empty, as_json=as_json)


@alarms.command("close")
def close(
    alarm_id: Annotated[str, typer.Argument(metavar="ID", help="As 'alarms list' shows it.")],
    note: Annotated[str, typer.Option(help="What was found out.")],
    as_json: Json = False,
) -> None:
    """Say that an alarm was looked into."""
    from gateway.approvals import alarms as use
    from gateway.approvals.alarms import Closing
    from gateway.cli.runtime import run

    async def work(house: House) -> AlarmView:
        closing = Closing(house.actor, "operator", note)
        return await use.close(house.approvals, alarm_id, closing, now=house.clock())

    _tell(run(work), f"{alarm_id} is closed.", as_json=as_json)


def _tell(done: Any, sentence: str, *, as_json: bool) -> None:
    """What a command has done: for programs the thing itself."""
    emit(done) if as_json else say(sentence)


def _show(views: Sequence[Any], shape: Sequence[str], *, empty: str, as_json: bool) -> None:
    """Views as a table of `shape`: each column's head, then the attribute that it shows."""
    if as_json:
        emit(views)
        return
    heads, paths = zip(*(column.split() for column in shape), strict=True)
    table(heads, [attrgetter(*paths)(view) for view in views], empty=empty)
