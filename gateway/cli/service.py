"""`gatepass serve`, `demo`, `migrate`, `doctor`: the process itself."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import FAILED, OK, Json, complain, emit, note, say, table

if TYPE_CHECKING:
    from gateway.config import Settings

_GRACE_SECONDS = 20
_BACKLOG = 2048


def serve() -> None:
    """Run the gateway until it is told to stop.

    SQLite is migrated at the start; PostgreSQL must be migrated before ('gatepass migrate').
    Files named in GATEPASS_CONFIG are applied first. SIGTERM and Ctrl-C end it cleanly (exit 0).
    """
    import uvicorn

    from gateway.app import create_app
    from gateway.cli.configuration import apply_files
    from gateway.cli.runtime import prepare_database, read_settings
    from gateway.telemetry import configure_logging

    settings = read_settings()
    configure_logging(settings.log_level)
    prepare_database()
    if settings.config:
        apply_files(settings.config)
    host, port = settings.bind
    note(f"Gatepass listens on http://{settings.listen}, people come to {settings.public_url}")
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=host,
            port=port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_config=None,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    # uvicorn raises the signal again once it has shut down: a clean end is not a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
    if not server.started:
        complain(f"the service did not start on {settings.listen}; the lines above say why")
        raise typer.Exit(FAILED)


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
    from gateway.cli.runtime import migrate_database

    version = migrate_database()
    emit({"version": version}) if as_json else say(f"The database is at version {version}.")


@dataclass(frozen=True)
class Finding:
    """What `doctor` found about one part: ok, warning or failed."""

    part: str
    state: str
    detail: str


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
