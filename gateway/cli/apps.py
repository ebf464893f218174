"""`gatepass apps …`: programs that call the gateway, and their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import Json, emit, note, say, table

if TYPE_CHECKING:
    from gateway.cli.runtime import House
    from gateway.registry.apps import AppEntry

app = typer.Typer(no_args_is_help=True, help="Programs that call the gateway, and their keys.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the app.")]


@app.command("create")
def create(
    name: Name,
    owner: Annotated[str | None, typer.Option(help="E-mail address of the owner.")] = None,
    wait: Annotated[str, typer.Option(help="hold or return: how the app waits.")] = "hold",
    server: Annotated[
        list[str] | None, typer.Option(help="Only this server; repeatable. Default: every one.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            metavar="issuer=…,audience=…[,subject=…]",
            help="Accept access tokens of this issuer for this audience, beside the key.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Register an app and print its key, this once."""
    from gateway.cli.runtime import run
    from gateway.registry import apps
    from gateway.registry.members import read_object
    from gateway.registry.settings import read_app

    given: dict[str, Any] = {"name": name, "owner": owner, "wait": wait, "servers": server or None}
    if identity is not None:
        given["identity"] = dict(_member(part) for part in identity.split(","))
    settings = read_object({k: v for k, v in given.items() if v is not None}, "app", read_app)

    async def work(house: House) -> dict[str, Any]:
        entry, key = await apps.create(house.ledger, settings, actor=house.actor, now=house.clock())
        return {"id": entry.id, "name": entry.settings.name, "key_id": key.id, "key": key.text}

    made = run(work)
    if as_json:
        emit(made)
        return
    note(f"Created the app {made['name']}. Its key, shown this once:")
    say(made["key"])


@app.command("list")
def listing(as_json: Json = False) -> None:
    """List apps, with their keys by public id."""
    from gateway.cli.runtime import look
    from gateway.registry import apps

    async def work(house: House) -> list[AppEntry]:
        return await apps.listing(house.db)

    entries = look(work)
    if as_json:
        emit(entries)
        return
    table(
        ("name", "state", "owner", "wait", "servers", "keys", "created"),
        [_row(entry) for entry in entries],
        empty="There is no app yet: make one with 'gatepass apps create NAME'.",
    )


@app.command("key")
def key_(name: Name, as_json: Json = False) -> None:
    """Make another key for an app and print it, this once."""
    from gateway.cli.runtime import run
    from gateway.registry import apps

    async def work(house: House) -> dict[str, Any]:
        key = await apps.create_key(house.ledger, name, actor=house.actor, now=house.clock())
        return {"name": name, "key_id": key.id, "key": key.text}

    made = run(work)
    if as_json:
        emit(made)
        return
    note("The key, shown this once:")
    say(made["key"])


@app.command("revoke")
def revoke(
    name: Name,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As 'apps list' shows it.")],
    as_json: Json = False,
) -> None:
    """Revoke one key of an app, at once."""
    from gateway.cli.runtime import run
    from gateway.registry import apps

    async def work(house: House) -> None:
        await apps.revoke_key(house.ledger, name, key_id, actor=house.actor, now=house.clock())

    run(work)
    emit({"name": name, "revoked": key_id}) if as_json else say(f"{key_id} of {name} is revoked.")


@app.command("disable")
def disable(name: Name, as_json: Json = False) -> None:
    """Shut an app out, at once; its keys count no more."""
    _switch(name, on=False, as_json=as_json)


@app.command("enable")
def enable(name: Name, as_json: Json = False) -> None:
    """Let a disabled app in again."""
    _switch(name, on=True, as_json=as_json)


def _switch(name: str, *, on: bool, as_json: bool) -> None:
    from gateway.cli.runtime import run
    from gateway.registry import apps

    async def work(house: House) -> None:
        change = apps.enable if on else apps.disable
        await change(house.ledger, name, actor=house.actor, now=house.clock())

    run(work)
    state = "enabled" if on else "disabled"
    emit({"name": name, "state": state}) if as_json else say(f"{name} is {state}.")


def _member(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name.strip(), value.strip()


def _row(entry: AppEntry) -> tuple[object, ...]:
    settings = entry.settings
    servers = "every server" if settings.servers is None else settings.servers
    keys = [key.id for key in entry.keys if key.revoked_at is None]
    state = "disabled" if entry.disabled_at else "active"
    created = entry.created_at
    return (settings.name, state, settings.owner, settings.wait, servers, keys, created)
