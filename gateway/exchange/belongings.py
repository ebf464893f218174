"""What a request names that is somebody's: files, machines, a conversation. Whose, others look up.

Part of step 2; everything here comes from a request whose tools are known to be objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.errors import Refused
from gateway.exchange.messages import Bypass, Json

#: Parts by which an app shows an uploaded file to the model.
_FILE_PARTS = frozenset({"input_image", "input_file", "input_audio", "computer_screenshot"})
_DOMAIN = re.compile(r"(?=.{4,253}$)([A-Za-z0-9-]{1,63}\.)+[A-Za-z][A-Za-z0-9-]{0,62}")


def text(holder: Json, member: str) -> str | None:
    """A member that is a text, if it is there at all."""
    value = holder.get(member)
    if value is not None and not isinstance(value, str):
        raise Refused(f"'{member}' must be a string.", code="invalid_type", param=member)
    return value


def conversation(request: Json) -> str | None:
    """The id of the conversation, in either of its forms."""
    given = request.get("conversation")
    value = given["id"] if isinstance(given, dict) and set(given) == {"id"} else given
    if given is not None and not isinstance(value, str):
        raise Refused(
            "'conversation' must be an id, or an object with nothing but an 'id'.",
            code="invalid_type",
            param="conversation",
        )
    if value is not None and request.get("previous_response_id") is not None:
        raise Refused(
            "'conversation' and 'previous_response_id' exclude each other.",
            code="mutually_exclusive_parameters",
            param="conversation",
        )
    return value


def files_in(items: list[tuple[int, Json]]) -> Iterator[str]:
    """Uploaded files that the app shows to the model. What the model cites is not the app's."""
    for _, item in items:
        for member in ("content", "output"):
            value = item.get(member)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict) and str(part.get("type")) in _FILE_PARTS:
                    yield from _file_ids(part)


def files_of(tools: Sequence[Json]) -> Iterator[str]:
    """Uploaded files that tools are given."""
    for tool in tools:
        for member in ("container", "environment", "input_image_mask"):
            if isinstance(tool.get(member), dict):
                yield from _file_ids(tool[member])


def containers(tools: Sequence[Json]) -> Iterator[str]:
    """Machines that are there already, and on which hosted code is to run."""
    for _, machine in _machines(tools):
        name = machine if isinstance(machine, str) else text(machine, "container_id")
        if name is not None:
            yield name


def domains(tools: Sequence[Json]) -> Iterator[str]:
    """What new machines may reach; raises `Bypass` for what is not a list of plain names."""
    for where, machine in _machines(tools):
        if isinstance(machine, dict):
            yield from _domains(machine.get("network_policy"), f"{where}.network_policy")


def _machines(tools: Sequence[Json]) -> Iterator[tuple[str, Any]]:
    for index, tool in enumerate(tools):
        # An environment that is a text is what a computer tool looks at, and no machine.
        for member, kinds in (("container", str | dict), ("environment", dict)):
            if isinstance(tool.get(member), kinds):
                yield f"tools[{index}].{member}", tool[member]


def _domains(policy: Any, where: str) -> list[str]:
    if policy is None or policy == {"type": "disabled"}:
        return []
    domains = policy.get("allowed_domains") if isinstance(policy, dict) else None
    if not (
        isinstance(domains, list)
        and policy.get("type") == "allowlist"
        and all(isinstance(name, str) and _DOMAIN.fullmatch(name) for name in domains)
    ):
        raise Bypass(
            f"{where} must be 'disabled', or an allow-list of plain domain names: hosted code "
            "could call MCP servers by itself.",
            code="network_policy_refused",
            param=where,
        )
    return domains


def _file_ids(holder: Json) -> Iterator[str]:
    one, many = holder.get("file_id"), holder.get("file_ids")
    named = [*([] if one is None else [one]), *(many if isinstance(many, list) else [])]
    for name in named:
        if not isinstance(name, str):
            raise Refused("A file id must be a string.", code="invalid_type", param="file_id")
        yield name
