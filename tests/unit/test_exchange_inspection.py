"""Every place in a request where a tool or an approval can hide; what is not known is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatepassError, Refused
from gateway.exchange.inspection import (
    Findings,
    McpTool,
    SentApproval,
    SentItem,
    inspect,
    inspect_items,
)
from gateway.exchange.messages import Bypass
from tests.support.rounds import Json, call, function_call, listing, message, reasoning, request

MCP: Json = {"type": "mcp", "server_label": "crm", "server_url": "https://crm.example/mcp"}


def mcp(**more: Any) -> Json:
    return {"tools": [{**MCP, **more}]}


def bypass(body: Json) -> tuple[str, str | None]:
    """The code and the member at fault of a body that must be refused as a bypass."""
    with pytest.raises(Bypass) as caught:
        inspect(body)
    assert caught.value.status == 403
    return caught.value.code, caught.value.param


def refused(body: Json) -> str | None:
    with pytest.raises(Refused) as caught:
        inspect(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_type")
    return caught.value.param


# --- what is found --------------------------------------------------------------------------


def test_servers_are_found_where_they_are_declared() -> None:
    by_label = {"type": "mcp", "server_label": "wiki", "server_url": None}
    found = inspect({"tools": [{"type": "function", "name": "f"}, MCP, by_label]})
    assert found.mcp_tools == (
        McpTool(1, "crm", "https://crm.example/mcp", MCP),
        McpTool(2, "wiki", None, by_label),
    )
    assert found.mediated


@pytest.mark.parametrize("body", [{}, {"input": "text", "tools": None}, {"input": None}])
def test_a_request_without_servers_is_not_mediated(body: Json) -> None:
    assert inspect(body) == Findings()
    assert not inspect(body).mediated


def test_items_of_ours_are_found_with_their_place() -> None:
    body = {
        "previous_response_id": "resp_1",
        "input": [
            {"role": "user", "content": "hello"},
            listing(),
            call(),
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
            {"type": "item_reference", "id": "msg_1"},
            {"id": "rs_1"},
            {"type": "mcp_call"},
            {"type": "mcp_approval_response"},
        ],
    }
    assert inspect(body) == Findings(
        sent_items=(
            SentItem(1, "mcp_list_tools", "mcpl_1", listing()),
            SentItem(2, "mcp_call", "mcp_1", call()),
            SentItem(6, "mcp_call", "", {"type": "mcp_call"}),
        ),
        sent_approvals=(SentApproval(3, "mcpr_1"), SentApproval(7, "")),
        item_ids=("mcpl_1", "mcp_1", "msg_1", "rs_1"),
        references=("msg_1", "rs_1"),
        previous_response_id="resp_1",
    )


def test_ordinary_items_and_tools_are_let_through() -> None:
    items = [
        message(), reasoning(), function_call(), {"role": "user", "content": []},
        {"type": "message", "role": "user"}, {"type": "function_call_output", "call_id": "c"},
        {"type": "custom_tool_call"}, {"type": "computer_call_output"}, {"type": "compaction"},
        {"type": "shell_call_output"}, {"type": "web_search_call"},
    ]  # fmt: skip
    tools = [
        {"type": kind}
        for kind in (
            "function", "custom", "web_search", "web_search_preview", "code_interpreter",
            "web_search_preview_2025_03_11", "web_search_2025_08_26", "image_generation",
            "computer_use_preview", "file_search", "shell", "apply_patch",
        )
    ]  # fmt: skip
    space = {"type": "namespace", "name": "n", "tools": [{"type": "function"}, {"type": "custom"}]}
    found = inspect({"input": items, "tools": [*tools, space]})
    assert found == Findings(item_ids=("msg_1", "rs_1", "fc_1"))
    assert found.refers
    assert not found.mediated


def test_a_background_stream_is_ours_to_keep_even_without_servers() -> None:
    assert inspect({"background": True, "stream": True}).mediated
    assert not inspect({"background": True, "stream": False}).mediated
    assert not inspect({"stream": True}).mediated


def test_files_that_are_shown_to_the_model_are_found_and_cited_ones_are_not() -> None:
    image = {"type": "input_image", "file_id": "file-1"}
    cited = {"type": "output_text", "annotations": [{"type": "file_citation", "file_id": "x"}]}
    body = {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "file_id"}, image]},
            {"role": "assistant", "content": [cited]},
            {
                "type": "function_call_output",
                "output": [{"type": "input_file", "file_id": "file-2"}],
            },
            {
                "type": "computer_call_output",
                "output": {"type": "computer_screenshot", "file_id": "file-3"},
            },
        ],
        "tools": [
            {
                "type": "code_interpreter",
                "container": {"type": "auto", "file_ids": ["file-4", "file-5"]},
            },
            {"type": "code_interpreter", "container": "cntr_1"},
            {"type": "image_generation", "input_image_mask": {"file_id": "file-6"}},
            {"type": "function", "parameters": {"file_id": "none"}},
        ],
    }
    assert inspect(body).file_ids == tuple(f"file-{number}" for number in range(1, 7))
    image["file_id"] = ["file-1"]
    assert refused(body) == "file_id"


def test_machines_of_hosted_code_are_found_with_what_they_may_reach() -> None:
    policy = {"type": "allowlist", "allowed_domains": ["pypi.example", "a.b.example"]}
    tools = [
        {"type": "code_interpreter", "container": "cntr_1"},
        {"type": "shell", "environment": {"type": "container_reference", "container_id": "cntr_2"}},
        {"type": "shell", "environment": {"type": "container_auto", "network_policy": policy}},
        {"type": "code_interpreter", "container": {"type": "auto", "network_policy": None}},
        {"type": "shell", "environment": {"network_policy": {"type": "disabled"}}},
        {"type": "shell", "environment": None},
        {"type": "computer_use_preview", "environment": "browser"},
    ]
    found = inspect({"tools": tools})
    assert (found.containers, found.domains) == (
        ("cntr_1", "cntr_2"), ("pypi.example", "a.b.example"),
    )  # fmt: skip
    assert found.refers


@pytest.mark.parametrize(
    "policy",
    [
        "open",
        {"type": "open"},
        {"type": "disabled", "allowed_domains": ["a.example"]},
        {"type": "allowlist"},
        {"type": "allowlist", "allowed_domains": "a.example"},
        *(
            {"type": "allowlist", "allowed_domains": [name]}
            for name in (
                "*",
                "*.example",
                "example",
                "10.0.0.1",
                "a.example:8080",
                "",
                7,
                "a b.example",
            )
        ),
    ],
    ids=repr,
)
def test_B_12_hosted_code_reaches_plain_names_or_nothing(policy: Any) -> None:
    for tool in (
        {"type": "code_interpreter", "container": {"type": "auto", "network_policy": policy}},
        {"type": "shell", "environment": {"type": "container_auto", "network_policy": policy}},
    ):
        code, param = bypass({"tools": [tool]})
        assert code == "network_policy_refused"
        assert str(param).endswith(".network_policy")


@pytest.mark.parametrize("value", ["conv_1", {"id": "conv_1"}])
def test_a_conversation_is_found_in_both_forms(value: Any) -> None:
    assert inspect({"conversation": value}).conversation == "conv_1"
    assert inspect({"conversation": None}).conversation is None


@pytest.mark.parametrize("value", [{"id": "conv_1", "items": []}, ["conv_1"], 7, {"id": None}])
def test_a_conversation_with_anything_else_in_it_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        inspect({"conversation": value})
    assert caught.value.param == "conversation"


def test_a_conversation_excludes_a_parent() -> None:
    with pytest.raises(Refused) as caught:
        inspect({"conversation": "conv_1", "previous_response_id": "resp_1"})
    assert caught.value.code == "mutually_exclusive_parameters"


def test_items_for_a_conversation_are_looked_through_like_any_input() -> None:
    assert inspect_items([call(), message()]).sent_items == (
        SentItem(0, "mcp_call", "mcp_1", call()),
    )
    with pytest.raises(Bypass):
        inspect_items([{"type": "additional_tools", "tools": [MCP]}])


# --- bypasses -------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["prompt", "agent", "agent_reference", "multi_agent"])
def test_B_14_stored_things_that_bring_tools_are_refused(member: str) -> None:
    for value in ({"id": "x"}, "x", {}, False):
        assert bypass({member: value}) == (f"{member}_refused", member)
    assert inspect({member: None}) == Findings()


@pytest.mark.parametrize("item", [{"type": "additional_tools"}, {"type": "tool_search_output"}])
def test_B_12_tools_in_the_input_are_refused(item: Json) -> None:
    hidden = {**item, "role": "developer", "tools": [MCP]}
    assert bypass({"input": [message(), hidden]}) == ("item_refused", "input[1]")


def test_B_08_a_request_the_app_sends_must_have_been_handed_to_it() -> None:
    approval = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    found = inspect({"input": [request(), approval]})
    assert found.sent_items == (SentItem(0, "mcp_approval_request", "mcpr_1", request()),)
    assert found.sent_approvals == (SentApproval(1, "mcpr_1"),)
    assert found.refers


@pytest.mark.parametrize("kind", ["program", "program_output"])
def test_B_12_programs_are_refused(kind: str) -> None:
    assert bypass({"input": [{"type": kind, "code": "call()"}]}) == ("item_refused", "input[0]")


@pytest.mark.parametrize(
    "item",
    [
        {"type": "MCP_CALL"},
        {"type": "mcp_approval_request "},
        {"type": "tool_search_call"},
        {"type": "telepathy"},
        {"type": ["message"]},
        {"type": {"message": 1}},
        {"type": None},
        {"type": ""},
        {"id": "x", "extra": 1},
        {},
    ],
    ids=repr,
)
def test_B_19_items_nobody_knows_are_refused(item: Json) -> None:
    assert bypass({"input": [item]}) == ("item_type_unknown", "input[0]")


@pytest.mark.parametrize("kind", ["tool_search", "programmatic_tool_calling"])
def test_B_12_tools_that_bring_tools_are_refused(kind: str) -> None:
    assert bypass({"tools": [{"type": kind}]}) == ("tool_refused", "tools[0]")


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "MCP", "server_label": "x"},
        {"type": "mcp "},
        {"type": "\u043ccp"},
        {"type": ["mcp"]},
        {"type": None},
        {},
        {"type": "web_search_2_anything"},
        {"type": "web_search_preview_mcp"},
        {"type": "a2a_preview"},
        {"type": "namespace"},
        {"type": "namespace", "tools": "function"},
        {"type": "namespace", "tools": [{"type": "function"}, MCP]},
        {"type": "namespace", "tools": [{"type": "namespace", "tools": [MCP]}]},
        {"type": "namespace", "tools": ["mcp"]},
    ],
    ids=repr,
)
def test_B_19_tools_nobody_knows_are_refused(tool: Json) -> None:
    assert bypass({"tools": [MCP, tool]}) == ("tool_type_unknown", "tools[1]")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("connector_id", "connector_gmail"),
        ("tunnel_id", "tunnel_0"),
        ("project_connection_id", "p"),
        ("allowed_callers", ["programmatic"]),
        ("allowed_callers", ["direct", "programmatic"]),
        ("allowed_callers", "direct"),
        ("defer_loading", True),
    ],
)
def test_B_12_other_ways_to_a_server_are_refused(member: str, value: Any) -> None:
    assert bypass(mcp(**{member: value})) == ("mcp_member_refused", f"tools[0].{member}")


def test_B_12_the_harmless_forms_are_let_through() -> None:
    body = mcp(allowed_callers=["direct"], defer_loading=False, connector_id=None, tunnel_id=None)
    assert inspect(body).mediated


@pytest.mark.parametrize(
    "name",
    [
        "Tools",
        "INPUT",
        "tool_Choice",
        "toolS",
        "ｔｏｏｌｓ",
        "tool\u017f",
        "agentReference",
        "рrompt",
    ],
)
def test_R_16_a_member_that_could_be_taken_for_another_is_refused(name: str) -> None:
    assert bypass({name: []}) == ("member_misspelt", name)
    assert bypass({"input": [{"role": "user", name: []}]})[0] == "member_misspelt"
    assert bypass({"tools": [{"type": "function", name: []}]})[0] == "member_misspelt"
    assert inspect({"x_tools": [], "metadata": {name: ""}}) == Findings()


@pytest.mark.parametrize(
    "kind", ["mcp", "MCP", "m c p", "mсp", "additional_tools", "tool_search_output"]
)
def test_B_12_nothing_stands_inside_of_a_plain_tool_or_item(kind: str) -> None:
    inner = {"type": kind, "server_url": "https://evil.example/mcp"}
    assert bypass({"tools": [{"type": "code_interpreter", "container": {"x": [inner]}}]}) == (
        "tool_refused", "tools[0]",
    )  # fmt: skip
    assert bypass({"input": [{"role": "user", "content": [inner]}]}) == ("tool_refused", "input[0]")
    schema = {"type": "object", "properties": inner}
    opaque = {"type": "function", "name": "f", "parameters": schema}
    assert inspect({"tools": [opaque], "metadata": inner}) == Findings()


def test_B_12_a_member_of_a_server_that_nobody_knows_is_refused() -> None:
    assert bypass(mcp(server_uri="x", zeta=1)) == ("mcp_member_unknown", "tools[0].server_uri")
    assert bypass(mcp(Server_Url="x")) == ("mcp_member_unknown", "tools[0].Server_Url")


def test_S_17_one_label_for_two_servers_is_refused() -> None:
    twice = {"tools": [MCP, {"type": "function"}, {**MCP, "server_url": "https://evil.example"}]}
    assert bypass(twice) == ("mcp_label_duplicate", "tools[2].server_label")


# --- wrong types ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": {"type": "additional_tools"}}, "input"),
        ({"input": ["text"]}, "input[0]"),
        ({"input": [[{"type": "additional_tools"}]]}, "input[0]"),
        ({"tools": {"type": "mcp"}}, "tools"),
        ({"tools": "mcp"}, "tools"),
        ({"tools": [[MCP]]}, "tools[0]"),
        ({"previous_response_id": ["resp_1"]}, "previous_response_id"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].server_label"),
        ({"tools": [{**MCP, "server_label": ""}]}, "tools[0].server_label"),
        ({"tools": [{**MCP, "server_label": ["crm"]}]}, "tools[0].server_label"),
        ({"tools": [{**MCP, "server_url": {"a": 1}}]}, "tools[0].server_url"),
    ],
    ids=repr,
)
def test_members_of_a_wrong_type_are_refused(body: Json, param: str) -> None:
    assert refused(body) == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["mcp", "message", "x", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "id", "tools", "server_label", "server_url", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["input", "tools", "prompt", "agent", "x"]), JSON))
def test_any_body_is_understood_or_refused(body: Json) -> None:
    try:
        found = inspect(body)
    except GatepassError:
        return
    tools = body.get("tools") or []
    assert len(found.mcp_tools) == sum(tool.get("type") == "mcp" for tool in tools)
