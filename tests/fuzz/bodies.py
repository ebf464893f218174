"""Request bodies through parse, inspect and enforce, judged by an oracle that knows neither.

A body is refused with one of our errors, or what would be sent to Azure holds no MCP entry that
the registry did not build, no tool and no item of an unknown kind, and is written the same again.
"""

from __future__ import annotations

import json
import unicodedata
from random import Random
from typing import Any

from gateway.errors import GatepassError
from gateway.exchange.document import dump, parse
from gateway.exchange.enforcement import enforce
from gateway.exchange.inspection import Findings, inspect
from gateway.exchange.messages import ServerFacts
from tests.fuzz.sources import KINDS, changed, some, written

BANK = ServerFacts("srv_1", "bank", "https://bank.example/mcp", "The bank.")
_WIKI = ServerFacts("srv_2", "wiki", "https://wiki.example/mcp")
_BUILT = {
    "type", "server_label", "server_url", "require_approval", "server_description", "allowed_tools"
}  # fmt: skip
_PLAIN_TOOLS = {
    "function", "custom", "namespace", "file_search", "code_interpreter", "image_generation",
    "computer", "computer_use", "computer_use_preview", "local_shell", "shell", "apply_patch",
}  # fmt: skip
#: Where a schema, a text or a value of the app's own stands: not read as a tool or an item.
_OPAQUE = {"parameters", "input_schema", "schema", "arguments", "metadata", "output", "format"}
#: Members that lead to a tool; a reader that ignores case takes others for them.
_TELLING = {
    "tools", "input", "prompt", "conversation", "agent", "agent_reference", "multi_agent",
    "previous_response_id", "store",
}  # fmt: skip
_FOLDED = {name.replace("_", "") for name in _TELLING}
_DANGEROUS = {
    "mcp", "connector", "additionaltools", "toolsearch", "toolsearchoutput", "program",
    "programoutput", "programmatictoolcalling", "mcpapprovalrequest", "mcpapprovalresponse",
}  # fmt: skip


def make(random: Random) -> bytes:
    """A body that could be real, changed in some places."""
    body: dict[str, Any] = {"model": "gpt-5", "input": random.choice(["Hi", _items(random)])}
    if random.random() < 0.8:
        body["tools"] = [_tool(random) for _ in range(1 + some(random))]
    for name, values in _MEMBERS.items():
        if random.random() < 0.15:
            body[name] = random.choice(values)
    return written(changed(body, random, some(random)), random)


_MEMBERS: dict[str, list[Any]] = {
    "stream": [True, False],
    "store": [True, False],
    "background": [True],
    "include": [["reasoning.encrypted_content"], []],
    "temperature": [1.0, 0.5, 1],
    "previous_response_id": ["resp_1"],
    "tool_choice": ["auto", {"type": "mcp", "server_label": "bank"}],
    "metadata": [{"a": "b"}],
    "text": [{"format": {"type": "json_schema", "schema": {"type": "object"}}}],
    "prompt": [{"id": "pmpt_1"}, None],
    "max_output_tokens": [100],
}


def _tool(random: Random) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"type": {"type": "string", "minimum": 1.5}}}
    kind = random.randrange(6)
    if kind < 3:
        server = random.choice([BANK, _WIKI])
        entry: dict[str, Any] = {
            "type": "mcp",
            "server_label": server.label,
            "server_url": server.url,
            "require_approval": random.choice(
                ["never", "always", {"never": {"tool_names": ["a"]}}]
            ),
            "headers": {"Authorization": "Bearer own"},
            "allowed_tools": random.choice([None, ["a"], {"tool_names": ["a"], "read_only": True}]),
        }
        return {name: value for name, value in entry.items() if random.random() < 0.85}
    if kind == 3:
        return {"type": "function", "name": "f", "parameters": schema, "strict": True}
    if kind == 4:
        inner = {"type": random.choice(["function", "mcp"]), "name": "g", "parameters": schema}
        return {"type": "namespace", "name": "n", "tools": [inner]}
    return {"type": random.choice(KINDS), "container": {"type": "auto"}}


def _items(random: Random) -> list[Any]:
    made = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "message", "role": "assistant", "content": "Yes."},
        {"type": "function_call_output", "call_id": "c", "output": '{"type":"mcp"}'},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
        {
            "type": "mcp_list_tools",
            "id": "mcpl_1",
            "server_label": "bank",
            "tools": [{"name": "a"}],
        },
        {"type": "additional_tools", "role": "developer", "tools": [{"type": "mcp"}]},
        {"id": "msg_1"},
        {"type": random.choice(KINDS)},
    ]
    return [random.choice(made) for _ in range(some(random, 6))]


def check(raw: bytes) -> str:
    """Judge one body: the refusal's code, or `accepted`. Fails on anything else."""
    try:
        asked = parse(raw)
        findings = inspect(asked)
        enforced = enforce(asked, findings, _match)
        sent = dump(enforced.body)
    except GatepassError as error:
        return _refusal(error)
    assert dump(parse(sent)) == sent, "written again it is another"
    bound = {binding.tool_index for binding in enforced.bindings}
    _judge(json.loads(sent), bound, findings)
    return "accepted"


def _refusal(error: GatepassError) -> str:
    assert 400 <= error.status < 500
    assert len(error.message) < 1000
    return error.code


def _match(url: str | None, label: str) -> ServerFacts | None:
    for server in (BANK, _WIKI):
        if url == server.url or (url is None and label == server.label):
            return server
    return None


def _judge(body: Any, bound: set[int], findings: Findings) -> None:
    for index, tool in enumerate(body.get("tools") or []):
        if _folded(tool.get("type")) == "mcp":
            _judge_mcp(tool, index in bound)
            continue
        kind = tool["type"]
        assert kind in _PLAIN_TOOLS or kind.startswith("web_search"), f"a tool of type {kind!r}"
        _no_danger(tool, f"tools[{index}]")
    items = body.get("input")
    for index, item in enumerate(items if isinstance(items, list) else []):
        if item.get("type") in {"mcp_list_tools", "mcp_call", "mcp_approval_request"}:
            # Whether it was handed out is for the database to say: it must be asked.
            assert item in [sent.item for sent in findings.sent_items], "nobody looks it up"
        else:
            _no_danger(item, f"input[{index}]")
    for name in body:
        assert name in _TELLING or _folded(name) not in _FOLDED, f"{name!r} could be another"
    assert not body.get("prompt")
    conversation = body.get("conversation")
    assert conversation in (None, findings.conversation, {"id": findings.conversation})


def _judge_mcp(tool: dict[str, Any], bound: bool) -> None:
    assert bound, "an entry that nobody gives a credential to"
    assert tool["type"] == "mcp"
    assert set(tool) <= _BUILT, set(tool) - _BUILT
    assert tool["require_approval"] == "always"
    assert tool["server_url"] in {BANK.url, _WIKI.url}
    assert tool.get("server_description") in {None, BANK.description}


def _no_danger(node: Any, where: str) -> None:
    if isinstance(node, list):
        for index, child in enumerate(node):
            _no_danger(child, f"{where}[{index}]")
    elif isinstance(node, dict):
        assert _folded(node.get("type")) not in _DANGEROUS, f"{where}: {node['type']!r}"
        for name, child in node.items():
            if name not in _OPAQUE:
                _no_danger(child, f"{where}.{name}")


def _folded(kind: Any) -> str:
    """A kind as the most forgiving reader could take it."""
    if not isinstance(kind, str):
        return ""
    plain = unicodedata.normalize("NFKC", kind).casefold().replace("\u0441", "c")
    return "".join(letter for letter in plain if letter.isalnum())
