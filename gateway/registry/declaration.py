"""The declarative configuration: YAML files into frozen dataclasses.

All errors of all files are found in one pass and raised as one `Refused`, a line each:
`FILE:LINE:COLUMN: what is wrong, where, what to do`. Nothing here looks at a database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, TypeVar

from gateway.errors import Refused
from gateway.policy import Policy, Problem, check
from gateway.registry.members import Members, Path
from gateway.registry.settings import (
    AppSettings,
    GroupSettings,
    ServerSettings,
    WebhookSettings,
    read_app,
    read_group,
    read_oauth_client,
    read_server,
    read_webhook,
)
from gateway.registry.yaml_lines import Document, Place, read
from gateway.store.oauth import OAuthClient

_SECTIONS = ("servers", "policies", "apps", "webhooks", "reviewer_groups", "oauth_clients")
_T = TypeVar("_T", ServerSettings, AppSettings, GroupSettings, WebhookSettings, OAuthClient)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the files say. `policy` is None when no file has a section `policies`.

    `places` gives `FILE:LINE` for (section, name) of each object.
    """

    servers: tuple[ServerSettings, ...] = ()
    apps: tuple[AppSettings, ...] = ()
    webhooks: tuple[WebhookSettings, ...] = ()
    groups: tuple[GroupSettings, ...] = ()
    oauth_clients: tuple[OAuthClient, ...] = ()
    policy: Policy | None = None
    files: tuple[str, ...] = ()
    places: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` over what is declared; layout, order of members and comments do not count."""
        content: dict[str, Any] = {
            "servers": [asdict(server) for server in self.servers],
            "apps": [asdict(app) for app in self.apps],
            "webhooks": [asdict(webhook) for webhook in self.webhooks],
            "reviewer_groups": [asdict(group) for group in self.groups],
            "policies": None if self.policy is None else self.policy.documents(),
        }
        if self.oauth_clients:  # without any, the digest is what it was before there were any
            content["oauth_clients"] = [asdict(client) for client in self.oauth_clients]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def undeclared_groups(self) -> tuple[str, ...]:
        """A sentence for each reviewer group that rules ask for and no file declares."""
        declared = {group.name for group in self.groups}
        return tuple(
            f"{self.place('policies', rule.name)}: the rule {rule.name!r} asks for the reviewer "
            f"group {group!r}, which these files do not declare; it must exist by then"
            for rule in (self.policy.rules if self.policy else ())
            for group in sorted(rule.all_groups - declared)
        )

    def place(self, section: str, name: str) -> str:
        """Where an object is declared, for messages."""
        return self.places.get((section, name), section)


def load(files: Sequence[FilePath]) -> Declaration:
    """Read and join files; raises `Refused` that lists every problem of all of them."""
    texts = {}
    for file in files:
        try:
            texts[str(file)] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise Refused(f"{file} cannot be read: {why}.", code="config_unreadable") from None
    return parse(texts)


def parse(texts: Mapping[str, str]) -> Declaration:
    """Read and join files given as name → text; raises `Refused` (`config_invalid`)."""
    collected = _Collected()
    for name, text in texts.items():
        _File(name, collected).read(text)
    if collected.faults:
        raise Refused("\n".join(collected.faults), code="config_invalid")
    return Declaration(
        servers=tuple(collected.servers),
        apps=tuple(collected.apps),
        webhooks=tuple(collected.webhooks),
        groups=tuple(collected.groups),
        oauth_clients=tuple(collected.oauth_clients),
        policy=collected.policy(),
        files=tuple(texts),
        places=collected.places,
    )


class _Collected:
    """What has been read so far, over all files."""

    def __init__(self) -> None:
        self.servers: list[ServerSettings] = []
        self.apps: list[AppSettings] = []
        self.webhooks: list[WebhookSettings] = []
        self.groups: list[GroupSettings] = []
        self.oauth_clients: list[OAuthClient] = []
        self.rules: list[Any] | None = None
        self.places: dict[tuple[str, str], str] = {}
        self.faults: list[str] = []

    def policy(self) -> Policy | None:
        return None if self.rules is None else check(self.rules)[0]


class _File:
    """Reads one file into what is collected."""

    def __init__(self, name: str, collected: _Collected) -> None:
        self.name = name
        self.into = collected
        self.found: list[tuple[Place, str]] = []

    def read(self, text: str) -> None:
        document, faults = read(text)
        self.found += [(fault.place, fault.message) for fault in faults]
        problems: list[Problem] = []
        # An empty file declares nothing; whatever else is no mapping is reported as such.
        data = {} if document.data is None else document.data
        top = Members.of(data, (), problems)
        if top is not None:
            top.only(_SECTIONS)
            self.sections(top, document, problems)
        self.found += [(_place(document, p), _sentence(p)) for p in problems]
        self.into.faults += [
            f"{self.name}:{line}:{column}: {message}"
            for (line, column), message in sorted(dict.fromkeys(self.found))
        ]

    def sections(self, top: Members, document: Document, problems: list[Problem]) -> None:
        into = self.into
        into.servers += self.objects(top, "servers", read_server, document)
        into.apps += self.objects(top, "apps", read_app, document)
        into.webhooks += self.objects(top, "webhooks", read_webhook, document)
        into.groups += self.objects(top, "reviewer_groups", read_group, document)
        into.oauth_clients += self.objects(top, "oauth_clients", read_oauth_client, document)
        self.unique_addresses(document)
        if "policies" in top.data:
            self.policies(top.data["policies"], document, problems)

    def objects(
        self, top: Members, section: str, reader: Callable[[Members], _T | None], document: Document
    ) -> list[_T]:
        found = []
        for members in top.items(section):
            item = reader(members)
            if item is None:
                continue
            found.append(item)
            self.claim(section, item.key, document, members.path)
        return found

    def claim(self, section: str, key: str, document: Document, path: Path) -> None:
        line = document.line(path)
        taken = self.into.places.setdefault((section, key), f"{self.name}:{line}")
        if taken != f"{self.name}:{line}":
            name = "label" if section == "servers" else "name"
            where = document.place((*path, name))
            self.found.append((where, f"the {name} {key!r} of {section} is taken by {taken}"))

    def unique_addresses(self, document: Document) -> None:
        seen: dict[str, str] = {}
        for server in self.into.servers:
            first = seen.setdefault(server.url, server.label)
            if first != server.label and (place := self.into.places[("servers", server.label)]):
                file, _, line = place.rpartition(":")
                if file == self.name:
                    text = f"the servers {first!r} and {server.label!r} have the same address"
                    self.found.append(((int(line), 1), text))

    def policies(self, rules: Any, document: Document, problems: list[Problem]) -> None:
        # An empty section is a policy without rules: everything is held.
        given = [] if rules is None else rules
        policy, wrong = check(given)
        problems += [replace(p, path=("policies", *p.path)) for p in wrong]
        if wrong:
            return
        for index, rule in enumerate(policy.rules):
            self.claim("policies", rule.name, document, ("policies", index))
        self.into.rules = [*(self.into.rules or ()), *given]


def _place(document: Document, problem: Problem) -> Place:
    path = problem.path
    return document.within(path, problem.within) if problem.within else document.place(path)


def _sentence(problem: Problem) -> str:
    if problem.known and len(problem.path) == 1:
        return problem.text("the file")
    root, *rest = problem.path or ("the file",)
    # A place within a text is told as one of the file.
    return Problem(tuple(rest), problem.message, problem.known).text(str(root))
