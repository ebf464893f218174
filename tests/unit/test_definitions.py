"""One form of a tool's definition, whoever listed it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refused
from gateway.registry.definitions import canonical
from gateway.registry.tools import digest_definition

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 10}}}
FROM_AZURE = {
    "name": "send",
    "description": "Sends mail",
    "input_schema": SCHEMA,
    "annotations": {"read_only": False},
}
FROM_MCP = {
    "name": "send",
    "title": "Send",
    "description": "Sends mail",
    "inputSchema": SCHEMA,
    "outputSchema": {"type": "object"},
    "annotations": {"title": "Send", "readOnlyHint": False, "destructiveHint": True},
    "icons": [{"src": "https://crm.example/i.png"}],
    "execution": {"taskSupport": "optional"},
    "_meta": {"x": 1},
}

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_DEFINITIONS = st.dictionaries(
    st.sampled_from([*FROM_MCP, *FROM_AZURE, "inputSchema", "strict"]), _JSON
)


def test_mcp_and_azure_say_the_same() -> None:
    assert canonical(FROM_MCP) == canonical(FROM_AZURE) == FROM_AZURE
    assert digest_definition(canonical(FROM_MCP)) == digest_definition(FROM_AZURE)


@pytest.mark.parametrize(
    "sparse",
    [
        {"name": "now"},
        {"name": "now", "description": None, "annotations": None, "input_schema": None},
        {"name": "now", "annotations": {}},
        {"name": "now", "annotations": {"readOnlyHint": None}},
        {"name": "now", "annotations": {"destructiveHint": False}},
        {"name": "now", "annotations": {"read_only": False}},
    ],
)
def test_absent_null_and_default_are_the_same(sparse: dict[str, Any]) -> None:
    assert canonical(sparse) == {"name": "now", "annotations": {"read_only": False}}


def test_a_whole_number_is_one_however_it_is_written() -> None:
    forms = [
        canonical({**FROM_AZURE, "input_schema": {"maximum": json.loads(text)}})
        for text in ("10", "10.0", "1e1")
    ]
    assert len({digest_definition(form) for form in forms}) == 1
    assert canonical({"x": [True, 0.5, 1e300]})["x"] == [True, 0.5, 1e300]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sent"},
        {"description": "Sends mail to everyone"},
        {"description": ""},
        {"input_schema": {"type": "object"}},
        {"annotations": {"read_only": True}},
        {"annotations": {"readOnlyHint": True}},
        {"annotations": {"read_only": "no"}},
        {"annotations": {"trusted": True}},
        {"annotations": "read_only"},
        {"strict": True},
        {"inputSchema": {"type": "object"}},
    ],
)
def test_every_difference_that_a_model_could_see_is_one(change: dict[str, Any]) -> None:
    assert canonical({**FROM_AZURE, **change}) != FROM_AZURE


@given(_DEFINITIONS)
def test_what_is_canonical_stays(definition: dict[str, Any]) -> None:
    once = canonical(definition)
    assert canonical(once) == once
    assert json.dumps(canonical(once), sort_keys=True) == json.dumps(once, sort_keys=True)


def test_what_is_nested_without_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(2000):
        deep = {"items": deep}
    with pytest.raises(Refused, match="too deeply"):
        canonical({**FROM_AZURE, "input_schema": deep})
