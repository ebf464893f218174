"""YAML into plain data that remembers its lines.

Reads one document of mappings, lists, text, numbers, booleans and nothing. Aliases, tags, further
documents, repeated members and endless nesting are errors: configuration says each thing once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 20
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong at a line (from 1) of a file."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """`data` is plain; `lines` says where the member or item of a path begins."""

    data: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read(text: str) -> tuple[Document, list[Fault]]:
    """Parse `text`; what cannot be read is in the faults and missing from the document."""
    if len(text) > MAX_CHARACTERS:
        return Document(None, {}), [Fault(1, f"is longer than {MAX_CHARACTERS} characters")]
    try:
        if (fault := _forbidden(text)) is not None:
            return Document(None, {}), [fault]
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "cannot be read"
        return Document(None, {}), [Fault(mark.line + 1 if mark else 1, f"not valid YAML: {what}")]
    except yaml.YAMLError as error:
        place = text.count("\n", 0, getattr(error, "position", 0)) + 1
        return Document(None, {}), [Fault(place, "not valid YAML: a character that is not allowed")]
    builder = _Builder({}, [])
    data = None if node is None else builder.build(node, ())
    return Document(data, builder.lines), builder.faults


def _forbidden(text: str) -> Fault | None:
    # On the events, before anything is built: an alias could unfold into gigabytes.
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _line(event)
        match event:
            case yaml.AliasEvent():
                return Fault(line, "aliases (*name) are not allowed; write the value out")
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    return Fault(line, "a second document (---) is not allowed; use another file")
            case yaml.CollectionStartEvent():
                depth += 1
                if depth > _MAX_DEPTH:
                    return Fault(line, f"nested more than {_MAX_DEPTH} levels deep")
            case yaml.CollectionEndEvent():
                depth -= 1
            case _:
                pass
    return None


@dataclass(frozen=True, slots=True)
class _Builder:
    lines: dict[Path, int]
    faults: list[Fault]

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            self.faults.append(Fault(_line(node), "tags (!name) are not allowed"))
        match node:
            case yaml.MappingNode():
                return self.mapping(node, path)
            case yaml.SequenceNode():
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            case _:
                return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for key, value in node.value:
            line = _line(key)
            if not isinstance(key, yaml.ScalarNode):
                self.faults.append(Fault(line, "a member name must be plain text"))
                continue
            # `on` and `yes` are booleans to YAML; as names they are the words that were written.
            name = str(key.value)
            if name in members:
                first = self.lines[(*path, name)]
                text = f"the member {name!r} stands here a second time; line {first} has it already"
                self.faults.append(Fault(line, text))
                continue
            self.lines[(*path, name)] = line
            members[name] = self.build(value, (*path, name))
        return members

    def scalar(self, node: yaml.Node) -> Any:
        read_as = _SCALARS.get(node.tag)
        if read_as is None:
            kind = node.tag.rpartition(":")[2]
            text = f"a value of the YAML type {kind!r} is not allowed; put it in quotes"
            self.faults.append(Fault(_line(node), text))
            return None
        try:
            return read_as(str(node.value))
        except ValueError:
            # Octal, hexadecimal and base-60 numbers are rarely what the writer meant.
            text = f"{str(node.value)[:40]!r} is an unusual number; put it in quotes if it is text"
            self.faults.append(Fault(_line(node), text))
            return None


def _integer(text: str) -> int:
    # YAML reads 010 as eight.
    if len(text) > 1 and text.lstrip("+-").startswith("0"):
        raise ValueError(text)
    return int(text)


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:int": _integer,
    "tag:yaml.org,2002:float": float,
    "tag:yaml.org,2002:bool": lambda text: text.lower() in ("true", "yes", "on"),
    "tag:yaml.org,2002:null": lambda _text: None,
}


def _line(node: yaml.Node | yaml.Event) -> int:
    # Only what was made by hand has no mark.
    return node.start_mark.line + 1 if node.start_mark else 1
