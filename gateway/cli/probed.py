"""How commands show what a probe found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.output import FAILED, emit, facts, note, say, table

if TYPE_CHECKING:
    from gateway.probing.report import Report, SeenTool

_SHORT = 80
_CLAIMS = (
    ("readOnlyHint", "reads only"),
    ("destructiveHint", "destructive"),
    ("idempotentHint", "idempotent"),
    ("openWorldHint", "open world"),
)


def show(report: Report, *, as_json: bool) -> None:
    """Print a report; exits with 1 when the server did not list its tools."""
    emit(report) if as_json else _print(report)
    if not report.answered:
        raise typer.Exit(FAILED)


def _print(report: Report) -> None:
    say(report.visit.sentence)
    facts([(name, value) for name, value in _facts(report) if value is not None])
    if report.answered:
        say()
        rows = [_row(tool, report.changed_tools) for tool in report.visit.tools]
        table(("tool", "says of itself", "pin", "description"), rows, empty="No tools.")
    for warning in report.warnings:
        note(f"warning: {warning.sentence}")


def _facts(report: Report) -> list[tuple[str, object]]:
    visit, tls, server, took = (
        report.visit, report.visit.tls, report.visit.server, report.visit.milliseconds,
    )  # fmt: skip
    without = report.without_credential
    steps = {
        "connected": took.connect, "encrypted": took.tls, "initialised": took.initialize,
        "listed": took.list_tools,
    }  # fmt: skip
    return [
        ("url", report.url),
        ("address", visit.address),
        ("server", server and f"{server.name or '?'} {server.version or ''}".strip()),
        ("protocol", server and f"MCP {server.protocol} ({visit.transport})"),
        ("instructions", server and server.instructions and _cut(server.instructions)),
        ("encryption", tls and f"{tls.version}, {tls.cipher}"),
        ("certificate", tls and f"{tls.subject}, by {tls.issuer}, until {tls.expires}"),
        ("credential", report.credential),
        ("without it", without and without.sentence),
        ("asks for", visit.challenge),
        ("took", ", ".join(f"{step} {ms} ms" for step, ms in steps.items() if ms is not None)),
    ]


def _row(tool: SeenTool, changed: tuple[str, ...]) -> tuple[object, ...]:
    claims = [word for hint, word in _CLAIMS if tool.annotations.get(hint) is True]
    pin = "changed" if tool.name in changed else tool.digest[7:19]
    return tool.name, ", ".join(claims) or None, pin, _cut(tool.description or "")


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"
