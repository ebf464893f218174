"""Where inputs come from: hostile values, and changes to a document or to bytes.

Everything is drawn from one `Random`, so that a seed names an input. What is made of it is
looked at by the four targets beside this file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

KINDS = [
    "mcp", "MCP", " mcp", "mcp ", "m\u0441p", "function", "custom", "web_search", "namespace",
    "tool_search", "programmatic_tool_calling", "additional_tools", "tool_search_output", "message",
    "mcp_approval_request", "mcp_approval_response", "mcp_list_tools", "mcp_call", "item_reference",
    "program", "reasoning", "function_call", "function_call_output", "compaction", "agent", "",
    "web_search_2025_08_26", "web_search_2025_08_26x", "code_interpreter", "shell", "connector",
]  # fmt: skip
NAMES = [
    "type", "tools", "server_label", "server_url", "require_approval", "connector_id", "input",
    "tunnel_id", "headers", "authorization", "allowed_tools", "approve", "approval_request_id",
    "id", "role", "content", "prompt", "conversation", "previous_response_id", "store", "stream",
    "Type", "Tools", "INPUT", "TYPE", "type ", "typ\u0435", "tool\u017f", "__proto__", "",
    "allowed_callers", "agent", "defer_loading", "multi_agent", "output", "arguments", "name",
    "parameters", "usage", "status",
]  # fmt: skip
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**53 + 1,
    2**64 - 1,
    -(2**63),
    0.1,
    -0.0,
    1e308,
    "",
    "x",
    "never",
    "always",
    "mcp",
    [],
    {},
    [[]],
    [{}],
    ["never"],
    {"type": "mcp"},
    [{"type": "mcp"}],
    "resp_1",
    {"never": {}},
    "\x00",
    "\u202e",
    "\U0001f642",
    "é" * 50,
    {"type": ["mcp"]},
    {"type": {"a": "mcp"}},
]


def some(random: Random, most: int = 4) -> int:
    """A small number, most often very small."""
    return min(int(random.expovariate(0.7)), most)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document with every key or index in it."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from places(node[key])


def changed(document: Any, random: Random, times: int) -> Any:
    """A copy with some of its parts replaced, moved, renamed, repeated or taken out."""
    document = copy.deepcopy(document)
    for _ in range(times):
        found = list(places(document))
        if not found:
            break
        container, key = random.choice(found)
        random.choice(_CHANGES)(container, key, found, random)
    return document


def _replace(container: Any, key: Any, _: Any, random: Random) -> None:
    container[key] = copy.deepcopy(random.choice(VALUES))


def _retype(container: Any, key: Any, _: Any, random: Random) -> None:
    if isinstance(container[key], dict):
        container[key]["type"] = random.choice(KINDS)
    elif isinstance(container, dict):
        container["type"] = random.choice(KINDS)


def _rename(container: Any, key: Any, _: Any, random: Random) -> None:
    if isinstance(container, dict):
        container[random.choice(NAMES)] = container.pop(key)


def _add(container: Any, key: Any, _: Any, random: Random) -> None:
    value = copy.deepcopy(random.choice(VALUES))
    if isinstance(container, dict):
        container[random.choice(NAMES)] = value
    else:
        container.insert(key, value)


def _remove(container: Any, key: Any, _: Any, random: Random) -> None:
    del container[key]


def _graft(container: Any, key: Any, found: list[tuple[Any, Any]], random: Random) -> None:
    other, name = random.choice(found)
    if name in other if isinstance(other, dict) else name < len(other):
        container[key] = copy.deepcopy(other[name])


def _wrap(container: Any, key: Any, _: Any, random: Random) -> None:
    inner = container[key]
    container[key] = random.choice([[inner], {random.choice(NAMES): inner}, [[inner]]])


def _double(container: Any, key: Any, _: Any, random: Random) -> None:
    if isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(container[key]))


_CHANGES: list[Callable[..., None]] = [
    _replace, _retype, _retype, _rename, _add, _add, _remove, _graft, _graft, _wrap, _double,
]  # fmt: skip


def written(document: Any, random: Random) -> bytes:
    """The document as one of the ways to write it, some of them no JSON."""
    text = json.dumps(
        document,
        ensure_ascii=random.random() < 0.5,
        indent=random.choice([None, None, None, 1]),
        separators=random.choice([None, (",", ":")]),
    )
    raw = text.encode("utf-8", "surrogatepass")
    return damaged(raw, random) if random.random() < 0.3 else raw


_PIECES = [
    b'"tools":[],',
    b'"type":"mcp",',
    b"\\u006dcp",
    b"\\ud83d",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"1e2",
    b"-0",
    b"1.10",
    b"1e400",
    b"9" * 30,
    b"NaN",
    b"[[[[",
    b"{}",
    b"}",
    b"]",
    b",",
    b'"',
    b"\\",
    b"\r\n",
    b"\n\n",
    b"data: ",
    b"event: x\n",
    b":",
    b" ",
    b"\t",
    b"/**/",
]


def damaged(raw: bytes, random: Random, pieces: list[bytes] = _PIECES) -> bytes:
    """Bytes with a piece put in, taken out, repeated or turned over, here and there."""
    for _ in range(1 + some(random)):
        at, to = sorted(random.randrange(len(raw) + 1) for _ in range(2))
        to = min(to, at + 30)
        kind = random.randrange(5)
        if kind == 0:
            raw = raw[:at] + random.choice(pieces) + raw[at:]
        elif kind == 1:
            raw = raw[:at] + raw[to:]
        elif kind == 2:
            raw = raw[:to] + raw[at:to] + raw[to:]
        elif kind == 3:
            raw = raw[:at] + bytes([random.randrange(256)]) + raw[at + 1 :]
        else:
            raw = raw[:at]
    return raw


def cut(raw: bytes, random: Random) -> list[bytes]:
    """The same bytes in any pieces; now and then one by one."""
    if random.random() < 0.1:
        return [bytes([byte]) for byte in raw]
    ends = sorted(random.randrange(len(raw) + 1) for _ in range(some(random, 20)))
    return [raw[a:b] for a, b in zip([0, *ends], [*ends, len(raw)], strict=True)]
