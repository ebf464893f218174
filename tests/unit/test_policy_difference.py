"""Where two definitions differ, path by path."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.difference import MOST, Change, difference

BEFORE = {
    "name": "send",
    "description": "Sends mail",
    "annotations": {"read_only": False},
    "input_schema": {
        "type": "object",
        "properties": {"to": {"type": "string"}},
        "required": ["to"],
    },
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text("ab/~", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def after(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BEFORE), **changes}


def test_equal_definitions_have_no_difference() -> None:
    assert difference(BEFORE, copy.deepcopy(BEFORE)) == ()


def test_each_place_is_named_with_what_stood_there_and_what_stands_there_now() -> None:
    schema = {
        "type": "object",
        "properties": {"to": {"type": "array"}, "a/b": {"type": "string"}},
        "required": [],
    }
    assert difference(BEFORE, after(description="Sends mail\u200b", input_schema=schema)) == (
        Change("/description", "changed", "Sends mail", "Sends mail\u200b"),
        Change("/input_schema/properties/a~1b", "added", None, {"type": "string"}),
        Change("/input_schema/properties/to/type", "changed", "string", "array"),
        Change("/input_schema/required/0", "removed", "to", None),
    )


def test_true_is_not_one_and_one_is_not_written_as_a_fraction() -> None:
    found = difference({"a": True, "b": 1, "c": None}, {"a": 1, "b": 1.0})
    assert [(change.path, change.kind) for change in found] == [
        ("/a", "changed"),
        ("/b", "changed"),
        ("/c", "removed"),
    ]


def test_what_differs_in_too_many_places_is_shown_whole() -> None:
    before = {str(number): 0 for number in range(MOST + 5)}
    now = dict.fromkeys(before, 1)
    found = difference(before, now)
    assert len(found) == MOST
    assert found[-1] == Change("", "changed", before, now)


@given(JSON, JSON)
def test_there_is_a_difference_exactly_where_two_documents_are_not_the_same(
    one: Any, two: Any
) -> None:
    assert difference(one, copy.deepcopy(one)) == ()
    found = difference(one, two)
    back = difference(two, one)
    assert [change.path for change in found] == [change.path for change in back]
    assert bool(found) == (repr_of(one) != repr_of(two))


def repr_of(value: Any) -> Any:
    match value:
        case dict():
            return {name: repr_of(member) for name, member in value.items()}
        case list():
            return [repr_of(member) for member in value]
        case _:
            return repr(value)
