"""YAML into plain data that remembers where it stood.

Reads one document of mappings, lists, text, numbers, booleans and nothing. Aliases, tags, further
documents, repeated members and endless nesting are errors: configuration says each thing once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from gateway.registry.yaml_places import place_within

MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 20
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
#: What to do about a problem that the reader of YAML words in its own way.
_HINTS = {
    "'\\t'": "; indent with spaces",
    "expected <block end>": "; the indentation does not fit what stands above",
    "mapping values are not allowed": "; put text with a colon in quotes",
    "<stream end>": "; a bracket is not closed",
    "end of stream": "; a quote is not closed",
}

Path: TypeAlias = tuple[str | int, ...]


#: Line and column in a file, from 1.
Place: TypeAlias = tuple[int, int]
_START = (1, 1)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong at a place of a file."""

    place: Place
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """`data` is plain; `places` says where the member or item of a path begins."""

    data: Any
    places: Mapping[Path, Place]
    scalars: Mapping[Path, yaml.ScalarNode] = field(default_factory=dict)

    def place(self, path: Path) -> Place:
        """The place of `path`, or of the nearest thing around it that has one."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, _START)

    def line(self, path: Path) -> int:
        """The line of `path`."""
        return self.place(path)[0]

    def within(self, path: Path, at: Place) -> Place:
        """Where in the file the line and column `at` of the text at `path` stand."""
        node = self.scalars.get(path)
        return self.place(path) if node is None else place_within(node, at)


def read(text: str) -> tuple[Document, list[Fault]]:
    """Parse `text`; what cannot be read is in the faults and missing from the document."""
    if len(text) > MAX_CHARACTERS:
        return Document(None, {}), [Fault(_START, f"is longer than {MAX_CHARACTERS} characters")]
    try:
        if (fault := _forbidden(text)) is not None:
            return Document(None, {}), [fault]
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = _hinted(error.problem or error.context or "cannot be read")
        return Document(None, {}), [Fault(_place(mark), f"not valid YAML: {what}")]
    except yaml.YAMLError as error:
        before = text[: getattr(error, "position", 0)]
        place = before.count("\n") + 1, len(before) - before.rfind("\n")
        return Document(None, {}), [Fault(place, "not valid YAML: a character that is not allowed")]
    builder = _Builder({}, {}, [])
    data = None if node is None else builder.build(node, ())
    return Document(data, builder.places, builder.scalars), builder.faults


def _hinted(problem: str) -> str:
    return next((problem + hint for words, hint in _HINTS.items() if words in problem), problem)


def _forbidden(text: str) -> Fault | None:
    # On the events, before anything is built: an alias could unfold into gigabytes.
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _place(event.start_mark)
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
    places: dict[Path, Place]
    scalars: dict[Path, yaml.ScalarNode]
    faults: list[Fault]

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.places.setdefault(path, _place(node.start_mark))
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            self.faults.append(Fault(_place(node.start_mark), "tags (!name) are not allowed"))
        match node:
            case yaml.MappingNode():
                return self.mapping(node, path)
            case yaml.SequenceNode():
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            case _:
                if isinstance(node, yaml.ScalarNode):
                    self.scalars[path] = node
                return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for key, value in node.value:
            place = _place(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                self.faults.append(Fault(place, "a member name must be plain text"))
                continue
            # `on` and `yes` are booleans to YAML; as names they are the words that were written.
            name = str(key.value)
            if name in members:
                first, _ = self.places[(*path, name)]
                text = f"the member {name!r} stands here a second time; line {first} has it already"
                self.faults.append(Fault(place, text))
                continue
            self.places[(*path, name)] = place
            members[name] = self.build(value, (*path, name))
        return members

    def scalar(self, node: yaml.Node) -> Any:
        read_as = _SCALARS.get(node.tag)
        if read_as is None:
            kind = node.tag.rpartition(":")[2]
            text = f"a value of the YAML type {kind!r} is not allowed; put it in quotes"
            self.faults.append(Fault(_place(node.start_mark), text))
            return None
        try:
            return read_as(str(node.value))
        except ValueError:
            # Octal, hexadecimal and base-60 numbers are rarely what the writer meant.
            text = f"{str(node.value)[:40]!r} is an unusual number; put it in quotes if it is text"
            self.faults.append(Fault(_place(node.start_mark), text))
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


def _place(mark: Any) -> Place:
    # Only what was made by hand has no mark.
    return (mark.line + 1, mark.column + 1) if mark else _START
