"""`gatepass policy …`: check rules before they count, and try them on past calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import Json, emit, say, table

if TYPE_CHECKING:
    from gateway.approvals.simulation import Outcome
    from gateway.cli.runtime import House
    from gateway.policy import Policy

app = typer.Typer(no_args_is_help=True, help="Rules: check them, try them on past calls.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Declarative YAML files.")]


@app.command("check")
def check(files: Files, as_json: Json = False) -> None:
    """Read declarative files and say what is wrong, with file and line. Needs no database."""
    from gateway.registry.declaration import load

    declaration = load(files)
    rules = declaration.policy.rules if declaration.policy else ()
    if as_json:
        emit({"ok": True, "rules": [rule.name for rule in rules], "digest": declaration.digest})
        return
    for rule in rules:
        say(f"{rule.effect:<6} {rule.name}")
    say(f"{len(rules)} rules, and nothing is wrong with them. No matching rule means hold.")


@app.command("simulate")
def simulate(
    files: Files,
    last: Annotated[int, typer.Option(min=1, max=10000, help="How many past calls.")] = 100,
    as_json: Json = False,
) -> None:
    """Say what the rules of these files would have done with past calls, where that differs."""
    from gateway.approvals import simulation
    from gateway.cli.runtime import look

    policy = _policy(files)

    async def work(house: House) -> Outcome:
        return await simulation.simulate(house.db, house.envelope, policy, last=last)

    outcome = look(work)
    if as_json:
        emit(outcome)
        return
    counts = ", ".join(f"{number} {effect}" for effect, number in outcome.would_be.items())
    say(f"{outcome.calls} calls: {counts or 'none to try the rules on'}")
    table(
        ("asked", "call", "was", "would be", "rule"),
        [
            (c.asked_at, f"{c.tool} on {c.server} by {c.app}", c.was, c.would_be, c.rule)
            for c in outcome.changed
        ],
        empty="No call would have been treated otherwise.",
    )


def _policy(files: list[Path]) -> Policy:
    from gateway.errors import Refused
    from gateway.registry.declaration import load

    policy = load(files).policy
    if policy is None:
        raise Refused("The files have no section 'policies'.")
    return policy
