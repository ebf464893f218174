"""`gatepass apply`: make the configuration what files declare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import Json, emit, note, say

if TYPE_CHECKING:
    from gateway.cli.runtime import House
    from gateway.registry.apply import Plan


def apply(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Declarative YAML files.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference, change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the configuration what the files declare. Idempotent: repeat it as you like."""
    plan = apply_files(files, dry_run=dry_run)
    if as_json:
        emit(plan.document())
        return
    for step in plan.steps:
        mark = {"create": "+", "change": "~"}.get(step.action, " ")
        say(f"{mark} {step.section} {step.name}: {step.action}")
        for found in step.differences if step.action == "change" else ():
            say(f"    {found.member}: {found.before!r} → {found.after!r}")
    for warning in plan.warnings:
        note(f"warning: {warning}")
    say(_summary(plan, dry_run=dry_run))


def apply_files(files: Sequence[Path], *, dry_run: bool = False) -> Plan:
    """Read, check and apply; raises `Refused` that lists every problem with file and line."""
    from gateway.cli.runtime import run
    from gateway.registry import apply as applying
    from gateway.registry.changes import By
    from gateway.registry.declaration import load

    declaration = load(files)

    async def work(house: House) -> Plan:
        by = By(house.actor, house.clock())
        return await applying.apply(house.ledger, declaration, by, dry_run=dry_run)

    return run(work)


def _summary(plan: Plan, *, dry_run: bool) -> str:
    if not plan.changes:
        return "Everything is as declared."
    return "Nothing was changed (--dry-run)." if dry_run else "Applied."
