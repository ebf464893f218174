"""Rewrite what the documents can take from elsewhere: settings, modules, record kinds, results.

Replaces the text between `<!-- generated: NAME -->` and `<!-- end -->`; touches nothing else.
With `--check` writes nothing and exits 1 when a file would change.
"""

from __future__ import annotations

import ast
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from gateway.audit.fields import FIELDS
from gateway.audit.kinds import KINDS
from gateway.audit.records import SYSTEM, Actor, make
from gateway.config import PREFIX, Settings

ROOT = Path(__file__).parents[1]


def settings() -> Iterator[str]:
    """One row per setting, as the gateway itself declares them."""
    yield "| variable | default | kind | what it does |"
    yield "|---|---|---|---|"
    for name, field in Settings.model_fields.items():
        default = _default(field.get_default())
        kind = _kind(field)
        yield f"| `{PREFIX}{name.upper()}` | {default} | {kind} | {field.description} |"


def _default(value: object) -> str:
    match value:
        case None | "" | ():
            return "–"
        case dict():
            return "–"
        case bool():
            return "`true`" if value else "`false`"
        case timedelta():
            seconds = int(value.total_seconds())
            for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
                if seconds % size == 0:
                    return f"`{seconds // size}{unit}`"
            return f"`{seconds}s`"
        case _:
            return f"`{value}`"


def _kind(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    match typing.get_origin(annotation):
        case typing.Literal:
            return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
        case origin if origin is tuple:
            return "list"
        case origin if origin is dict:
            return "pairs"
    if annotation is bool:
        return "`true` or `false`"
    names = {SecretStr: "secret", Path: "path", timedelta: "duration", int: "number"}
    return names.get(annotation, "text")


def modules() -> Iterator[str]:
    """One row per package: what it owns, by its own first sentence, and its modules."""
    yield "| package | owns | modules |"
    yield "|---|---|---|"
    for top in ("gateway", "web"):
        for package in sorted(path.parent for path in (ROOT / top).rglob("__init__.py")):
            names = sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__")
            listed = " ".join(f"`{name}`" for name in names)
            yield f"| `{package.relative_to(ROOT)}/` | {_first_sentence(package)} | {listed} |"


def _first_sentence(package: Path) -> str:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("|", "\\|")


def compatibility() -> Iterator[str]:
    """One row per capability and mode, one column per client, as the tests measured it."""
    document = json.loads((ROOT / "tests" / "clients" / "results.json").read_text())
    clients, results = document["clients"], document["results"]
    yield f"| | | {' | '.join(clients.values())} |"
    yield "|---|---|" + ":-:|" * len(clients)
    notes: list[str] = []
    for capability in document["capabilities"]:
        title = capability["title"]
        if capability["note"]:
            notes.append(capability["note"])
            title += f" <sup>{len(notes)}</sup>"
        for mode in _modes(capability["name"], results):
            name = f"{capability['name']}:{mode}"
            cells = " | ".join(_cell(name, results[client]) for client in clients)
            yield f"| {title} | {mode} | {cells} |"
            title = ""
    yield ""
    for number, note in enumerate(notes, 1):
        yield f"{number}. {note}"


def _modes(capability: str, results: dict[str, dict[str, str]]) -> list[str]:
    names = [name.partition(":") for own in results.values() for name in own]
    found = [mode.removesuffix("-async") for own, _, mode in names if own == capability]
    return list(dict.fromkeys(found))


def _cell(name: str, own: dict[str, str]) -> str:
    found = {own[each] for each in (name, f"{name}-async") if each in own}
    return "✖" if "breaks" in found else "✔" if found else "—"


_THEN = datetime(2026, 11, 22, 10, 9, tzinfo=UTC)


def kinds() -> Iterator[str]:
    """Every kind of record: what it means, what it holds, and an example."""
    for name, kind in KINDS.items():
        example = dict(kind.example)
        subject = example.pop("subject")
        # Where the sentence begins with a person, the example has one.
        actor = Actor("user", "usr_01", "token") if kind.says.startswith("{actor}") else SYSTEM
        record = make(name, now=_THEN, actor=actor, subject=subject, fields=example)
        parts = ("Subject", kind.subject), ("Required", kind.required), ("Optional", kind.optional)
        yield from (f"### {name}", "", kind.meaning, "")
        for title, members in parts:
            if members:
                yield f"{title}: {', '.join(f'`{member}`' for member in members)}."
        text = json.dumps(record.document(), indent=1, sort_keys=True, ensure_ascii=False)
        yield from ("", "```json", text, "```", "")


def fields() -> Iterator[str]:
    """Every field that a record may hold."""
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    for name, field in sorted(FIELDS.items()):
        yield f"| `{name}` | {field.type} | {field.meaning} |"


PARTS: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "settings": ("docs/configuration-reference.md", settings),
    "modules": ("ARCHITECTURE.md", modules),
    "compatibility": ("docs/compatibility.md", compatibility),
    "kinds": ("docs/audit.md", kinds),
    "fields": ("docs/audit.md", fields),
}


def rewritten(text: str, name: str, rows: Iterator[str]) -> str:
    """`text` with the part `name` replaced; raises ValueError when its marks are missing."""
    opening, closing = f"<!-- generated: {name} -->\n", "<!-- end -->"
    before, mark, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not mark or not end:
        raise ValueError(f"no part {name!r}")
    return before + opening + "\n".join(rows) + "\n" + end + after


def main(arguments: list[str]) -> int:
    """Rewrite, or with `--check` report; the exit code says whether anything was out of date."""
    stale = []
    for name, (file, rows) in PARTS.items():
        path = ROOT / file
        text = path.read_text()
        wanted = rewritten(text, name, rows())
        if wanted != text:
            stale.append(file)
            if "--check" not in arguments:
                path.write_text(wanted)
    for file in stale:
        sys.stdout.write(f"{file} {'is out of date' if '--check' in arguments else 'rewritten'}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
