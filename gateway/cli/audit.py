"""`gatepass audit …`: verify, export, prove. Verifying a bundle needs nothing but the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import OK, Json, emit, note, say

if TYPE_CHECKING:
    from gateway.audit.checkpoint import Proof, VerifierKey
    from gateway.audit.export import Exported
    from gateway.audit.folder import Expected
    from gateway.audit.reading import Head
    from gateway.audit.verification import Report
    from gateway.cli.runtime import House

app = typer.Typer(no_args_is_help=True, help="The ledger: verify it, export it, prove a record.")


@app.command("verify")
def verify(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="An exported folder; without: the live ledger."),
    ] = None,
    pin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An older checkpoint; repeatable.")
    ] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A .tlog-proof; repeatable.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A trusted verifier key, or a file with it; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify an exported folder, or the live ledger, in every layer.

    Exit 0: sound. 11 notes and keys, 12 tree, 13 consistency with pins and receipts,
    14 witnesses, 15 grammar, 16 payloads, 17 manifest, 18 unsupported version.
    """
    expected = _expected(pin or [], receipt or [], key or [])
    if bundle is None:
        report = _verify_live(expected)
    else:
        from gateway.audit.evidence import verify as verify_bundle

        report = verify_bundle(bundle, expected)
    _print_report(report, as_json=as_json)
    raise typer.Exit(report.exit_code)


@app.command("export")
def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    with_payloads: Annotated[
        bool, typer.Option("--payloads", help="Open the arguments of approval requests too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the evidence folder: all a stranger needs to check the ledger offline. Recorded."""
    from gateway.cli.runtime import run

    async def work(house: House) -> Exported:
        from gateway.approvals import payloads
        from gateway.audit.export import export as write

        return await write(
            house.ledger,
            out,
            actor=house.actor,
            now=house.clock(),
            open_payload=payloads.opener(house.approvals) if with_payloads else None,
        )

    made = run(work)
    if as_json:
        emit({"path": made.path, "size": made.size, "root": made.root.hex(), "files": made.files})
        return
    say(f"Wrote {made.size} records in {made.files} files to {made.path}.")
    note(f"Check it anywhere: gatepass audit verify {made.path}")


@app.command("prove")
def prove(
    name: Annotated[str, typer.Argument(metavar="INDEX|ID", help="Index, or apr_… for its end.")],
    as_json: Json = False,
) -> None:
    """Print the receipt of a record: a C2SP tlog-proof that anybody can check offline."""
    from gateway.cli.runtime import look

    async def work(house: House) -> Proof:
        from gateway.audit import reading

        return await reading.proof(house.db, await _index(house, name))

    proof = look(work)
    if as_json:
        emit({"index": proof.index, "checkpoint": proof.note, "proof": proof.text()})
        return
    typer.echo(proof.text(), nl=False)


@app.command("checkpoint")
def checkpoint(
    size: Annotated[int | None, typer.Option(min=1, help="The head signed at this size.")] = None,
    as_json: Json = False,
) -> None:
    """Print the signed head. Keep it elsewhere: nothing older can be changed unnoticed then."""
    from gateway.cli.runtime import look

    async def work(house: House) -> Head:
        from gateway.audit import reading
        from gateway.errors import NotFound

        if size is not None:
            return await reading.head_at(house.db, size)
        head = await reading.latest(house.db)
        if head is None:
            raise NotFound("The ledger is empty: no head was signed yet.")
        return head

    head = look(work)
    if as_json:
        emit({"size": head.size, "root": head.root.hex(), "note": head.note})
        return
    typer.echo(head.note, nl=False)


def _verify_live(expected: Expected) -> Report:
    from gateway.cli.runtime import look

    async def work(house: House) -> Report:
        from gateway.audit.live import verify_live

        key = expected.keys[0] if expected.keys else house.ledger.signer.verifier
        return await verify_live(house.db, key, pins=expected.pins)

    if expected.receipts:
        raise typer.BadParameter("receipts are checked against a bundle", param_hint="--receipt")
    return look(work)


def _expected(pins: list[Path], receipts: list[Path], keys: list[str]) -> Expected:
    from gateway.audit.folder import Expected

    return Expected(
        keys=tuple(_key(text) for text in keys),
        pins=tuple(path.read_text(encoding="utf-8") for path in pins),
        receipts=tuple(path.read_text(encoding="utf-8") for path in receipts),
    )


def _key(text: str) -> VerifierKey:
    from gateway.audit.checkpoint import Damaged, VerifierKey

    given = text if "+" in text and "/" not in text.partition("+")[0] else None
    try:
        return VerifierKey.parse((given or Path(text).read_text(encoding="utf-8")).strip())
    except Damaged as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None


async def _index(house: House, name: str) -> int:
    from gateway.audit import reading
    from gateway.errors import NotFound, Refused

    if name.isascii() and name.isdigit() and len(name) < 17:
        return int(name)
    if not name.startswith("apr_"):
        raise Refused("Name a record by its index, or an approval request by its id (apr_…).")
    for kind in ("approval.decided", "approval.requested"):
        query = reading.Query(kind=kind, approval=name, limit=1)
        for entry in (await reading.search(house.db, query)).items:
            if entry.index is not None:
                return entry.index
    raise NotFound(f"The ledger has no sealed record about {name}.")


def _print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        emit(_document(report))
        return
    for finding in report.findings:
        say(str(finding))
    signed = ", ".join(report.keys)
    if report.exit_code == OK:
        say(f"Sound: {report.size} records of {report.origin!r}, every layer checked.")
    else:
        say(f"NOT SOUND: {len(report.findings)} findings in {report.size} records.")
    say(f"root {report.root.hex()}")
    say(f"key  {signed}")


def _document(report: Report) -> dict[str, Any]:
    return {
        "valid": report.valid,
        "exit_code": report.exit_code,
        "origin": report.origin,
        "size": report.size,
        "root": report.root.hex(),
        "keys": list(report.keys),
        "findings": [
            {
                "layer": finding.layer.name.lower(),
                "damage": finding.damage,
                "sentence": finding.sentence,
                "index": finding.index,
            }
            for finding in report.findings
        ],
    }
