"""`gatepass users …` and `gatepass init`: people, their roles, their ways in."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import Json, emit, note, say, table

if TYPE_CHECKING:
    from gateway.cli.runtime import House
    from gateway.identity.people import UserView

app = typer.Typer(no_args_is_help=True, help="People who sign in here, and their roles.")

Who = Annotated[str, typer.Argument(metavar="USER", help="E-mail address or id (usr_…).")]
Roles = Annotated[
    list[str],
    typer.Option("--role", help="viewer, reviewer, break_glass, auditor or admin; repeatable."),
]


@app.command("create")
def create(
    email: Annotated[str, typer.Argument(metavar="EMAIL")],
    role: Roles,
    name: Annotated[str | None, typer.Option(help="Shown beside the address.")] = None,
    token: Annotated[bool, typer.Option("--token", help="Print an access token, once.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Print a sign-in link, once.")] = False,
    as_json: Json = False,
) -> None:
    """Create a user; optionally print a personal access token or a one-time sign-in link."""
    from gateway.cli.runtime import run
    from gateway.identity.people import NewUser, create_user

    async def work(house: House) -> dict[str, Any]:
        user = await create_user(
            house.ledger,
            NewUser(email, tuple(role), name),
            actor=house.actor,
            now=house.clock(),
        )
        return {"user": user, **await _ways_in(house, user, token=token, link=link)}

    made = run(work)
    if as_json:
        emit(made)
        return
    say(f"Created {made['user'].email} ({', '.join(made['user'].roles)}): {made['user'].id}")
    _print_ways_in(made)


@app.command("list")
def listing(as_json: Json = False) -> None:
    """List users with their roles and reviewer groups."""
    from gateway.cli.runtime import look

    users = look(_everybody)
    if as_json:
        emit(users)
        return
    table(
        ("e-mail", "roles", "groups", "from", "state", "created", "id"),
        [(u.email, u.roles, u.groups, u.source, _state(u), u.created_at, u.id) for u in users],
        empty="There is no user yet: make the first admin with 'gatepass init EMAIL'.",
    )


@app.command("link")
def link_(
    user: Who,
    minutes: Annotated[int, typer.Option(min=1, max=1440, help="How long it works.")] = 15,
    as_json: Json = False,
) -> None:
    """Print a one-time sign-in link for a user."""
    from gateway.cli.runtime import run
    from gateway.identity import people

    async def work(house: House) -> dict[str, Any]:
        found = await people.read(house.db, user)
        return {"user": found.id, "link": await _link(house, found.id, minutes)}

    made = run(work)
    emit(made) if as_json else _print_ways_in(made)


@app.command("token")
def token_(
    user: Who,
    days: Annotated[
        int | None, typer.Option(min=1, max=366, help="Expires after so many days.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="A permission such as requests.read, or read; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a new personal access token of a user, once."""
    from gateway.cli.runtime import run
    from gateway.identity import people, tokens
    from gateway.identity.people import create_token

    async def work(house: House) -> dict[str, Any]:
        found = await people.read(house.db, user)
        made = await create_token(
            house.ledger,
            found.id,
            lifetime=tokens.lifetime(days, house.settings.token_days),
            scopes=tokens.scopes(scope, found.roles) if scope else None,
            actor=house.actor,
            now=house.clock(),
        )
        return {"token": made}

    made = run(work)
    emit(made) if as_json else _print_ways_in(made)


@app.command("roles")
def roles_(user: Who, role: Roles, as_json: Json = False) -> None:
    """Replace a user's roles. The last admin cannot be removed."""
    from gateway.cli.runtime import run
    from gateway.identity.people import set_roles

    async def work(house: House) -> UserView:
        return await set_roles(house.ledger, user, role, actor=house.actor, now=house.clock())

    changed = run(work)
    emit(changed) if as_json else say(f"{changed.email}: {', '.join(changed.roles) or 'no role'}")


@app.command("disable")
def disable_(user: Who, as_json: Json = False) -> None:
    """Refuse a user from now on; sessions, tokens and links end at once."""
    _switch(user, off=True, as_json=as_json)


@app.command("enable")
def enable_(user: Who, as_json: Json = False) -> None:
    """Let a disabled user sign in again; tokens that were revoked stay revoked."""
    _switch(user, off=False, as_json=as_json)


def init(
    email: Annotated[str, typer.Argument(metavar="EMAIL")] = "admin@localhost",
    as_json: Json = False,
) -> None:
    """Make the first admin and print a one-time sign-in link.

    Run it again for an admin who has lost the way in: it prints a fresh link.
    """
    from gateway.cli.runtime import read_settings, run
    from gateway.cli.schema import prepare
    from gateway.errors import Conflict

    async def work(house: House) -> dict[str, Any]:
        users = await _everybody(house)
        user = next((u for u in users if u.email == email.strip().casefold()), None)
        if user is None and any("admin" in u.roles and not u.disabled_at for u in users):
            raise Conflict("There is an admin already: use 'gatepass users create'.")
        if user is not None and "admin" not in user.roles:
            raise Conflict(f"{user.email} is not an admin: use 'gatepass users roles'.")
        user = user or await _first_admin(house, email)
        return {"user": user, **await _ways_in(house, user, token=False, link=True)}

    prepare(read_settings())
    made = run(work)
    if as_json:
        emit(made)
        return
    say(f"Admin: {made['user'].email}")
    _print_ways_in(made)


async def _first_admin(house: House, email: str) -> UserView:
    from gateway.identity.people import NewUser, create_user

    return await create_user(
        house.ledger, NewUser(email, ("admin", "reviewer")), actor=house.actor, now=house.clock()
    )


async def _everybody(house: House) -> list[UserView]:
    from gateway.identity import people

    users: list[UserView] = []
    after = None
    while True:
        page = await people.listing(house.db, after=after, limit=200)
        users += page.items
        if (after := page.next) is None:
            return users


async def _ways_in(house: House, user: UserView, *, token: bool, link: bool) -> dict[str, str]:
    from gateway.identity import tokens
    from gateway.identity.people import create_token

    made: dict[str, str] = {}
    if token:
        made["token"] = await create_token(
            house.ledger,
            user.id,
            lifetime=tokens.lifetime(None, house.settings.token_days),
            actor=house.actor,
            now=house.clock(),
        )
    if link:
        made["link"] = await _link(house, user.id, 15)
    return made


async def _link(house: House, user_id: str, minutes: int) -> str:
    from gateway.identity import login

    code = await login.create_link(
        house.ledger,
        user_id,
        lifetime=timedelta(minutes=minutes),
        actor=house.actor,
        now=house.clock(),
    )
    return login.link_url(house.settings.public_url, code)


def _print_ways_in(made: dict[str, Any]) -> None:
    if "token" in made:
        note("Access token, shown this once:")
        say(made["token"])
    if "link" in made:
        note("Sign-in link, good for one use and a short time:")
        say(made["link"])


def _switch(user: str, *, off: bool, as_json: bool) -> None:
    from gateway.cli.runtime import run
    from gateway.identity import people

    async def work(house: House) -> UserView:
        change = people.disable if off else people.enable
        return await change(house.ledger, user, actor=house.actor, now=house.clock())

    changed = run(work)
    emit(changed) if as_json else say(f"{changed.email} is {_state(changed)}.")


def _state(user: UserView) -> str:
    return "disabled" if user.disabled_at else "active"
