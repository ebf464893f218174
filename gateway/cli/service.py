"""`gatepass serve`, `demo`, `migrate`, `doctor`: the process itself."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.output import FAILED, OK, Json, emit, note, say, table


def serve() -> None:
    """Run the gateway until it is told to stop.

    SQLite is migrated at the start; PostgreSQL must be migrated before ('gatepass migrate').
    Files named in GATEPASS_CONFIG are applied first. SIGTERM and Ctrl-C end it cleanly (exit 0).
    """
    from gateway.app import create_app
    from gateway.cli.configuration import apply_files
    from gateway.cli.runtime import read_settings
    from gateway.cli.schema import prepare
    from gateway.cli.serving import serve as serve_until_told
    from gateway.telemetry import configure_logging

    settings = read_settings()
    configure_logging(settings.log_level)
    prepare(settings)
    if settings.config:
        apply_files(settings.config)
    note(f"Starting on http://{settings.listen}; people come to {settings.public_url}")
    if (failure := serve_until_told(create_app(settings), settings)) is not None:
        raise failure


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Without a person: a second identity approves.")
    ] = False,
) -> None:
    """Show the whole story on this machine: a scripted Azure, a real MCP server, one approval."""
    from rich.console import Console

    from gateway.demo import story

    raise typer.Exit(story.run(once, Console(highlight=False)))


def migrate(as_json: Json = False) -> None:
    """Bring the database to the version of this program. Safe to repeat."""
    from gateway.cli.runtime import read_settings
    from gateway.cli.schema import upgrade

    version = upgrade(read_settings())
    emit({"version": version}) if as_json else say(f"The database is at version {version}.")


def doctor(as_json: Json = False) -> None:
    """Ask every configured part for real and say what is wrong. Exit 1 if anything failed."""
    from gateway.cli.doctor import examine

    findings = examine()
    if as_json:
        emit(findings)
    else:
        rows = [(f.state, f.part, f.detail) for f in findings]
        table(("state", "part", "what was found"), rows, empty="There is nothing to ask.")
    raise typer.Exit(FAILED if any(f.state == "failed" for f in findings) else OK)
