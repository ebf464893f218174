"""What commands print: tables for people, JSON for programs, one clear sentence on failure.

Results go to stdout, everything else to stderr. Text that came from outside is drawn with its
hidden characters made visible: nothing a model wrote can move the cursor or colour a line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class Polite(TyperGroup):
    """A group of commands whose failures end in one sentence on stderr, never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into an exit code."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if (sentence := _sentence(error)) is None:
                raise
            complain(sentence)
            raise typer.Exit(FAILED) from None


def emit(data: Any) -> None:
    """Print `data` as JSON: dataclasses, times, durations and paths included."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=_plain))


def say(text: str = "") -> None:
    """Print a line of the result, with hidden characters made visible."""
    typer.echo(shown(text))


def note(text: str) -> None:
    """Print a line that is not part of the result, to stderr."""
    typer.echo(shown(text), err=True)


def complain(text: str) -> None:
    """Print why a command failed, to stderr: a sentence, or one problem a line."""
    for line in text.split("\n"):
        typer.echo(f"gatepass: {shown(line)}", err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under bold heads; the sentence `empty` when there are none."""
    if not rows:
        say(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Written to a pipe, a table is as wide as it needs to be: programs cut columns, not people.
    width = None if sys.stdout.isatty() else 500
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    drawn = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for column in columns:
        drawn.add_column(column.upper(), overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(shown(_word(cell))) for cell in row))
    console.print(drawn)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values, one under the other."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        say(f"{name:<{width}}  {_word(value)}")


def shown(text: str) -> str:
    """`text` as it may be printed; line breaks stay only between lines of our own."""
    if text.isascii() and text.isprintable():
        return text
    from web.visible import visible

    return visible(text)


def when(moment: datetime) -> str:
    """A time in UTC, to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _word(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return when(value)
        case list() | tuple() | set() | frozenset():
            return ", ".join(sorted(map(str, value))) or "-"
        case _:
            return str(value)


def _plain(value: object) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Path():
            return str(value)
        case frozenset() | set():
            return sorted(value)
        case Mapping():
            return dict(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        case _:
            raise TypeError(f"cannot print {type(value).__name__}")


def _sentence(error: Exception) -> str | None:
    """What to say about a failure; None for what Typer itself handles."""
    from gateway.errors import GatepassError

    match error:
        case GatepassError():
            return error.message
        case typer.Exit() | typer.Abort() | typer.TyperException() | EOFError():
            return None
        case OSError():
            return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        case BaseExceptionGroup() if isinstance(error.exceptions[0], Exception):
            return _sentence(error.exceptions[0])
        case _:
            return _database_sentence(error)


def _database_sentence(error: Exception) -> str:
    from sqlalchemy.exc import DBAPIError

    if not isinstance(error, DBAPIError):
        return f"something went wrong that should not have ({type(error).__name__})"
    # Only the driver's words: the statement and its values are nobody's to read here.
    words = str(error.orig)
    if "no such table" in words or "does not exist" in words:
        return "the database has no tables yet: run 'gatepass migrate' first"
    return f"the database refused: {words.splitlines()[0] if words else type(error).__name__}"
