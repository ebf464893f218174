"""`gatepass requests …`: the inbox on the host, with the same facts and digest as the page.

A review is always a person's: `--as` names the user it is recorded for, who must hold the
reviewer role; the ledger also shows that it was given on the host.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import FAILED, Json, complain, emit, facts, note, say, table, when

if TYPE_CHECKING:
    from gateway.approvals.review import Reviewer
    from gateway.approvals.views import ApprovalView
    from gateway.cli.runtime import House

app = typer.Typer(no_args_is_help=True, help="Calls that wait for a person, and what came of them.")

Id = Annotated[str, typer.Argument(metavar="ID", help="An approval request, apr_….")]
As = Annotated[str, typer.Option("--as", metavar="EMAIL", help="The reviewer whose review it is.")]
Digest = Annotated[
    str | None, typer.Option(help="The digest that was read; asks for the tool's name without.")
]


@dataclass(frozen=True)
class Verdict:
    """What a command was asked to submit."""

    approval_id: str
    verdict: str
    email: str
    digest: str | None
    reason: str | None
    note: str | None


@app.command("list")
def listing(
    state: Annotated[
        str, typer.Option(help="pending, approved, denied, expired, cancelled or all.")
    ] = "pending",
    app_name: Annotated[str | None, typer.Option("--app", help="Only this app.")] = None,
    server: Annotated[str | None, typer.Option(help="Only this server.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only this tool.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: Json = False,
) -> None:
    """List approval requests, those that wait by soonest deadline first."""
    from gateway.approvals import review
    from gateway.cli.runtime import look

    known = ("pending", "approved", "denied", "expired", "cancelled", "all")
    if state not in known:
        raise typer.BadParameter(f"choose among {', '.join(known)}", param_hint="--state")

    async def work(house: House) -> list[ApprovalView]:
        query = review.Query(
            state=None if state == "all" else state,
            app=app_name,
            server=server,
            tool=tool,
            after=None,
            limit=limit,
        )
        return list((await review.listing(house.db, house.envelope, query=query)).items)

    views = look(work)
    if as_json:
        emit([view.document() for view in views])
        return
    table(
        ("id", "state", "tool", "server", "app", "reviews", "deadline"),
        [_row(view) for view in views],
        empty="Nothing waits." if state == "pending" else "There is none.",
    )


@app.command("show")
def show(approval_id: Id, as_json: Json = False) -> None:
    """Show everything about a request, with the exact arguments and the digest."""
    view = _read(approval_id)
    emit(view.document()) if as_json else _print(view)


@app.command("approve")
def approve(
    approval_id: Id,
    email: As,
    digest: Digest = None,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the review.")] = None,
    note_text: Annotated[str | None, typer.Option("--note", help="For colleagues.")] = None,
    as_json: Json = False,
) -> None:
    """Approve a request once. Prints what will happen and asks for the tool's name."""
    _submit(Verdict(approval_id, "approve", email, digest, reason, note_text), as_json=as_json)


@app.command("deny")
def deny(
    approval_id: Id,
    email: As,
    reason: Annotated[str, typer.Option(help="Required; the model and the app see this text.")],
    digest: Digest = None,
    note_text: Annotated[str | None, typer.Option("--note", help="For colleagues.")] = None,
    as_json: Json = False,
) -> None:
    """Deny a request; the model goes on with the reason you give."""
    _submit(Verdict(approval_id, "deny", email, digest, reason, note_text), as_json=as_json)


@app.command("unclear")
def unclear(as_json: Json = False) -> None:
    """List calls that were sent and of which nobody knows what became, the newest first."""
    from gateway.approvals import review
    from gateway.cli.runtime import look

    async def work(house: House) -> list[ApprovalView]:
        query = review.Query(execution="unknown", limit=200)
        return list((await review.listing(house.db, house.envelope, query=query)).items)

    views = look(work)
    if as_json:
        emit([view.document() for view in views])
        return
    table(
        ("id", "tool", "server", "app", "since", "evidence"),
        [
            (
                view.id,
                view.tool,
                view.server.label,
                view.app,
                view.executed_at,
                view.evidence[-1].finding if view.evidence else "none yet",
            )
            for view in views
        ],
        empty="No outcome is unclear.",
    )


@app.command("settle")
def settle(
    approval_id: Id,
    outcome: Annotated[str, typer.Argument(help="executed or not_executed.")],
    email: As,
    reason: Annotated[str, typer.Option(help="How you know; kept with the request.")],
    as_json: Json = False,
) -> None:
    """Say what became of a call whose outcome is unknown."""
    from gateway.approvals import settlement
    from gateway.approvals.settlement import Settling
    from gateway.cli.runtime import run

    async def work(house: House) -> ApprovalView:
        person = await _reviewer(house, email)
        settling = Settling(approval_id, outcome, reason)
        return await settlement.settle(house.approvals, person, settling, now=house.clock())

    view = run(work)
    emit(view.document()) if as_json else say(f"Recorded. {view.id} is settled: {outcome}.")


@app.command("withdraw")
def withdraw(approval_id: Id, email: As, as_json: Json = False) -> None:
    """Take a review back, while the request still waits."""
    from gateway.approvals import review
    from gateway.cli.runtime import run

    async def work(house: House) -> ApprovalView:
        who = await _reviewer(house, email)
        return await review.withdraw(house.approvals, who, approval_id, now=house.clock())

    view = run(work)
    emit(view.document()) if as_json else say(f"{view.id} is {view.state}: {_reviews(view)}")


@app.command("watch")
def watch(
    as_json: Json = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print what waits now and stop.")] = False,
) -> None:
    """Print each request as it starts to wait, until interrupted; JSON lines with --json."""
    from gateway.cli.runtime import look

    async def work(house: House) -> None:
        seen: set[str] = set()
        while True:
            seen = await _print_new(house, seen, as_json=as_json)
            if once:
                return
            await asyncio.sleep(every)

    look(work)


async def _print_new(house: House, seen: set[str], *, as_json: bool) -> set[str]:
    import json

    from gateway.approvals import review

    query = review.Query(state="pending", app=None, server=None, tool=None, after=None, limit=200)
    views = (await review.listing(house.db, house.envelope, query=query)).items
    for view in views:
        if view.id in seen:
            continue
        if as_json:
            typer.echo(json.dumps(view.document(), ensure_ascii=False))
        else:
            until = when(view.deadline)
            say(f"{view.id}  {view.tool} on {view.server.label}  for {view.app}  until {until}")
    return {view.id for view in views}


def _read(approval_id: str) -> ApprovalView:
    from gateway.approvals import review
    from gateway.cli.runtime import look

    async def work(house: House) -> ApprovalView:
        return await review.read(house.db, house.envelope, approval_id)

    return look(work)


def _submit(verdict: Verdict, *, as_json: bool) -> None:
    digest = verdict.digest or _confirmed(verdict)
    from gateway.approvals import review
    from gateway.cli.runtime import run

    async def work(house: House) -> ApprovalView:
        submission = review.Submission(
            approval_id=verdict.approval_id,
            verdict=verdict.verdict,
            digest=digest,
            reason=verdict.reason,
            note=verdict.note,
        )
        return await review.review(
            house.approvals, await _reviewer(house, verdict.email), submission, now=house.clock()
        )

    view = run(work)
    if as_json:
        emit(view.document())
        return
    say(f"Recorded. {view.id} is {view.state} ({_reviews(view)} approving reviews).")


def _confirmed(verdict: Verdict) -> str:
    """Show the request and ask for the tool's name; returns the digest that was shown."""
    view = _read(verdict.approval_id)
    _print(view)
    say()
    if view.state == "pending":
        note(f"To {verdict.verdict}, type the name of the tool.")
        if typer.prompt("Tool", default="", show_default=False, err=True) != view.tool:
            complain("that is not the name of the tool; nothing was decided")
            raise typer.Exit(FAILED)
    return str(view.digest)


async def _reviewer(house: House, email: str) -> Reviewer:
    from gateway.approvals.review import Reviewer
    from gateway.errors import NotAllowed
    from gateway.identity import people

    user = await people.read(house.db, email)
    if user.disabled_at is not None or "reviewer" not in user.roles:
        raise NotAllowed(f"{user.email} does not hold the reviewer role, or is disabled.")
    return Reviewer(
        user_id=user.id,
        email=user.email,
        roles=frozenset(user.roles),
        groups=frozenset(user.groups),
        channel="cli",
        auth="host",
    )


def _print(view: ApprovalView) -> None:
    say(f"{view.tool} on {view.server.label}")
    facts(
        [
            ("server", view.server.url),
            ("app", view.app),
            ("end user", f"{view.end_user} (claimed by the app)" if view.end_user else None),
            ("state", view.state),
            ("deadline", view.deadline),
            ("rule", view.rule or "no rule matched: held by default"),
            ("reviews", f"{_reviews(view)} approving"),
            ("execution", view.execution + (", given up" if view.given_up else "")),
            ("id", view.id),
            ("digest", view.digest),
            ("settles", view.settles_at),
            ("escalates", view.escalation.at if view.escalation else None),
            ("grant", view.decision.grant if view.decision else None),
        ]
    )
    say()
    say(f"arguments, {len(view.arguments.encode('utf-8', 'surrogatepass'))} bytes:")
    say(view.arguments)
    for signal in view.risk_signals:
        say(f"! {signal['sentence']}")
    for review in view.reviews:
        reason = f" for {review.on_behalf_of}" if review.on_behalf_of else ""
        reason += ", alone in an emergency" if review.emergency else ""
        reason += f": {review.reason}" if review.reason else ""
        say(f"{when(review.at)}  {review.reviewer}  {review.verdict}{reason}")


def _row(view: ApprovalView) -> tuple[object, ...]:
    label, deadline = view.server.label, view.deadline
    return (view.id, view.state, view.tool, label, view.app, _reviews(view), deadline)


def _reviews(view: ApprovalView) -> str:
    return f"{view.quorum.given} of {view.quorum.needed}"
