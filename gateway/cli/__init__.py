"""The command `gatepass`. Assembles the groups; each command imports what it needs when it runs.

Exit codes: 0 done · 1 failed or refused · 2 wrong usage · 130 interrupted; `audit verify` adds
one for each layer of checks (see docs/cli.md).
"""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import apps, audit, configuration, policy, requests, servers, service, users
from gateway.cli.output import Polite

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


for _command in (service.serve, service.demo, service.migrate, service.doctor):
    app.command(_command.__name__)(_command)
app.command("init")(users.init)
app.command("apply")(configuration.apply)
for _name, _group in {
    "apps": apps.app,
    "servers": servers.app,
    "credentials": servers.credentials,
    "policy": policy.app,
    "requests": requests.app,
    "users": users.app,
    "audit": audit.app,
}.items():
    app.add_typer(_group, name=_name)


def main() -> None:
    """The entry point of the command."""
    app()
