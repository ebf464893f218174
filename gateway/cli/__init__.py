"""The command `gatepass`. Assembles the groups; each command imports what it needs when it runs.

Exit codes: 0 done · 1 failed or refused · 2 wrong usage · 130 interrupted; `audit verify` adds
one for each layer of checks (see docs/cli.md).
"""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.alarms import alarms, pause, pauses, resume
from gateway.cli.apps import app as apps
from gateway.cli.audit import app as audit
from gateway.cli.configuration import apply
from gateway.cli.delegations import app as delegations
from gateway.cli.grants import app as grants
from gateway.cli.output import Polite
from gateway.cli.policy import app as policy
from gateway.cli.requests import app as requests
from gateway.cli.servers import app as servers
from gateway.cli.servers import credentials
from gateway.cli.service import demo, doctor, migrate, serve
from gateway.cli.users import app as users
from gateway.cli.users import init

app = typer.Typer(
    name="gatepass",
    cls=Polite,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Approval and audit gateway for MCP tool calls.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"gatepass {version('gatepass')}")
        raise typer.Exit


@app.callback()
def _root(
    _asked: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Approval and audit gateway for MCP tool calls."""


for _command in (serve, demo, migrate, init, doctor, apply, resume):
    app.command(_command.__name__)(_command)
for _name, _group in {
    "apps": apps,
    "servers": servers,
    "credentials": credentials,
    "policy": policy,
    "requests": requests,
    "grants": grants,
    "users": users,
    "delegations": delegations,
    "audit": audit,
    "pause": pause,
    "pauses": pauses,
    "alarms": alarms,
}.items():
    app.add_typer(_group, name=_name)


def main() -> None:
    """The entry point of the command."""
    app()
