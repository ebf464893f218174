"""`gatepass policy …`: check rules before they count, try them on past calls, versions, shadow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.output import FAILED, Json, complain, emit, facts, note, say, table

if TYPE_CHECKING:
    from gateway.approvals.shadows import Summary
    from gateway.approvals.simulation import Outcome
    from gateway.cli.runtime import House
    from gateway.policy import Comparison, Policy
    from gateway.registry.policies import PolicyEntry

app = typer.Typer(no_args_is_help=True, help="Rules: check them, try them on past calls, versions.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Declarative YAML files.")]
Number = Annotated[int, typer.Argument(metavar="NUMBER", help="Number of a version.")]
Last = Annotated[int, typer.Option(min=1, max=100_000, help="How many past calls.")]


@app.command("check")
def check(files: Files, as_json: Json = False) -> None:
    """Read declarative files and say what is wrong, with file and line. Needs no database."""
    from gateway.registry.declaration import load

    declaration = load(files)
    rules = declaration.policy.rules if declaration.policy else ()
    if as_json:
        names = [rule.name for rule in rules]
        notes = list(declaration.undeclared_groups)
        emit({"ok": True, "rules": names, "digest": declaration.digest, "notes": notes})
        return
    for rule in rules:
        say(f"{rule.effect:<6} {rule.name}")
    for sentence in declaration.undeclared_groups:
        note(sentence)
    say(f"{len(rules)} rules, and nothing is wrong with them. No matching rule means hold.")


@app.command("simulate")
def simulate(
    files: Files,
    last: Last = 1000,
    since: Annotated[str | None, typer.Option(help="Calls of so long ago: 7d, 12h.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many to list.")] = 50,
    as_json: Json = False,
) -> None:
    """Say what the rules of these files would have done with past calls, where that differs."""
    from gateway.cli.runtime import look

    policy, length = _policy(files), _length(since)

    async def work(house: House) -> Outcome:
        from gateway.approvals.simulation import Span, simulate

        start = None if length is None else house.clock() - length
        # A time alone means every call since then.
        count = last if length is None else 100_000
        return await simulate(house.approvals, policy, Span(count, start, limit=limit))

    outcome = look(work)
    emit(outcome) if as_json else _tell(outcome)


@app.command("list")
def listing(as_json: Json = False) -> None:
    """Every version, newest first."""
    from gateway.cli.runtime import look

    async def work(house: House) -> list[PolicyEntry]:
        from gateway.registry import policies

        return await policies.listing(house.db)

    entries = look(work)
    if as_json:
        emit(entries)
        return
    table(
        ("number", "state", "rules", "saved", "by"),
        [
            (e.number, _state(e), len(e.rules), e.created_at, e.created_by, e.digest)
            for e in entries
        ],
        empty="There is no policy yet: every call is held.",
    )


@app.command("show")
def show(number: Number, as_json: Json = False) -> None:
    """One version, a rule a line."""
    from gateway.cli.runtime import look
    from gateway.policy import sentence

    async def work(house: House) -> PolicyEntry:
        from gateway.registry import policies

        return await policies.read(house.db, number)

    entry = look(work)
    if as_json:
        emit(entry)
        return
    facts([("number", entry.number), ("state", _state(entry)), ("digest", entry.digest)])
    for rule in entry.rules:
        say(f"{rule['name']}: {sentence(rule)}")


@app.command("diff")
def diff(
    before: Annotated[int, typer.Argument(metavar="FROM", help="Number of a version.")],
    after: Annotated[int, typer.Argument(metavar="TO", help="Number of another.")],
    as_json: Json = False,
) -> None:
    """What one version says otherwise than another: + added, - removed, ~ changed."""
    from gateway.cli.runtime import look

    async def work(house: House) -> Comparison:
        from gateway.registry import policies

        return await policies.differences(house.db, before, after)

    found = look(work)
    if as_json:
        emit(found)
        return
    for line in found.lines or ("They say the same.",):
        say(line)


@app.command("save")
def save(files: Files, as_json: Json = False) -> None:
    """Save the rules of these files as a version without putting it into force."""
    policy = _policy(files)

    async def work(house: House) -> PolicyEntry:
        from gateway.registry import policies

        return await policies.save(
            house.ledger, policy, actor=house.actor, now=house.clock(), activate=False
        )

    _change(work, "Saved version {}; it is not in force.", as_json)


@app.command("activate")
def activate(
    number: Number,
    last: Last = 1000,
    accept: Annotated[
        bool, typer.Option("--allow-denied", help="Even if it allows what people denied.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a version into force, unless it would have allowed past calls that people denied."""

    async def work(house: House) -> PolicyEntry | Outcome:
        from gateway.approvals.simulation import Span, simulate
        from gateway.policy import parse
        from gateway.registry import policies

        policy = parse((await policies.read(house.db, number)).rules)
        outcome = await simulate(house.approvals, policy, Span(last))
        if outcome.allowed_though_denied and not accept:
            return outcome
        return await policies.activate(house.ledger, number, actor=house.actor, now=house.clock())

    from gateway.cli.runtime import run
    from gateway.registry.policies import PolicyEntry

    done = run(work)
    if isinstance(done, PolicyEntry):
        emit(done) if as_json else say(f"Version {done.number} is in force.")
        return
    complain(
        f"It would allow {done.allowed_though_denied} of the last {done.calls} calls that people "
        "denied. Look with 'policy simulate'; --allow-denied puts it into force nevertheless."
    )
    raise typer.Exit(FAILED)


@app.command("shadow")
def shadow(
    number: Annotated[int | None, typer.Argument(metavar="[NUMBER]", help="A version.")] = None,
    end: Annotated[bool, typer.Option("--end", help="Take it out of shadow.")] = False,
    as_json: Json = False,
) -> None:
    """Record what a version would say, and say what it has said so far; it decides nothing."""

    async def begin_or_end(house: House) -> PolicyEntry:
        from gateway.registry import policies

        now = house.clock()
        if number is None or end:
            return await policies.end_shadow(house.ledger, number, actor=house.actor, now=now)
        return await policies.begin_shadow(house.ledger, number, actor=house.actor, now=now)

    if end:
        _change(begin_or_end, "Version {} is not in shadow any more.", as_json)
    elif number is not None:
        _change(begin_or_end, "Version {} is in shadow.", as_json)
    else:
        _tell_shadow(as_json)


def _tell_shadow(as_json: bool) -> None:
    from gateway.cli.runtime import look

    async def work(house: House) -> tuple[int, Summary]:
        from gateway.approvals import shadows
        from gateway.errors import NotFound
        from gateway.registry import policies

        entry = next((each for each in await policies.listing(house.db) if each.shadow), None)
        if entry is None:
            raise NotFound("No version is in shadow.", code="policy_unknown")
        return entry.number, await shadows.summary(house.db, entry.digest)

    number, told = look(work)
    if as_json:
        emit(told)
        return
    say(f"Version {number} in shadow: {told.calls} calls, {told.differing} otherwise.")
    table(
        ("asked", "call", "was", "would be", "rule"),
        [
            (t.asked_at, f"{t.tool} on {t.server} by {t.app}", t.was, t.would_be, t.rule)
            for t in told.items
        ],
        empty="It says the same of every call.",
    )


def _change(work: Callable[[House], Awaitable[PolicyEntry]], sentence: str, as_json: bool) -> None:
    from gateway.cli.runtime import run

    entry = run(work)
    emit(entry) if as_json else say(sentence.format(entry.number))


def _tell(outcome: Outcome) -> None:
    counts = ", ".join(f"{number} {effect}" for effect, number in outcome.would_be.items())
    say(f"{outcome.calls} calls: {counts or 'none to try the rules on'}")
    table(
        ("asked", "call", "was", "became", "would be", "rule"),
        [
            (c.asked_at, f"{c.tool} on {c.server} by {c.app}", c.was, c.became, c.would_be, c.rule)
            for c in outcome.changed
        ],
        empty="No call would have been treated otherwise.",
    )
    if outcome.next is not None:
        note("There are more of them: --limit")
    if outcome.unreadable:
        note(f"{outcome.unreadable} calls could not be tried: their arguments are not kept.")
    if outcome.allowed_though_denied:
        note(f"Warning: allows {outcome.allowed_though_denied} calls that people denied.")


def _state(entry: PolicyEntry) -> str:
    return "in force" if entry.active else "in shadow" if entry.shadow else ""


def _policy(files: list[Path]) -> Policy:
    from gateway.errors import Refused
    from gateway.registry.declaration import load

    policy = load(files).policy
    if policy is None:
        raise Refused("The files have no section 'policies'.")
    return policy


def _length(since: str | None) -> timedelta | None:
    from gateway.errors import Refused
    from gateway.policy.durations import parse_duration

    length = None if since is None else parse_duration(since)
    if since is not None and length is None:
        raise Refused(f"--since must be a duration such as 12h or 7d, not {since!r}.")
    return length
