"""Two JSON values side by side: every difference is named, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web import comparing
from web.comparing import Comparison, compare

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, 0.5]) | st.text()
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=24,
)


def drawn(line: comparing.Line | None) -> str:
    """A line as text, without what it is indented by."""
    if line is None:
        return ""
    return "".join(segment.text for token in line.tokens for segment in token.segments)


def side(found: Comparison, left: bool) -> str:
    """One side put together again."""
    return "".join(drawn(row.left if left else row.right) for row in found.rows)


def exact(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@given(JSON, JSON)
def test_a_change_is_found_exactly_where_there_is_one(before: object, after: object) -> None:
    found = compare(before, after)
    assert bool(found.changes) == (exact(before) != exact(after))
    kinds = {row.kind for row in found.rows}
    assert bool(found.changes) == (kinds != {"same"})
    for row in found.rows:
        if row.kind == "same":
            assert drawn(row.left).rstrip(",") == drawn(row.right).rstrip(",")


@given(st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=3), max_leaves=9))
def test_each_side_is_whole(value: object) -> None:
    found = compare(value, {"other": 1})
    assert json.loads(side(found, left=True)) == value
    assert json.loads(side(found, left=False)) == {"other": 1}


@pytest.mark.parametrize(
    ("before", "after"), [(True, 1), (1, 1.0), ("1", 1), (None, "null"), ({}, []), ([], None)]
)
def test_what_a_digest_tells_apart_is_told_apart(before: object, after: object) -> None:
    [change] = compare({"a": before}, {"a": after}).changes
    assert (change.path, change.kind) == ("/a", "changed")


def test_places_are_json_pointers() -> None:
    found = compare({"a/b": [{"~": 1}]}, {"a/b": [{"~": 2}], "new": []})
    assert [change.path for change in found.changes] == ["/a~1b/0/~0", "/new"]


def test_an_inserted_element_changes_no_other() -> None:
    found = compare({"required": ["a", "b"]}, {"required": ["a", "x", "b"]})
    assert [(change.path, change.kind) for change in found.changes] == [("/required/1", "new")]


def test_of_two_texts_only_what_differs_is_marked() -> None:
    [row] = compare("Sends mail.", "Sends e-mail.").rows
    marked = [
        drawn(comparing.Line(0, (token,)))
        for line in (row.left, row.right)
        for token in (line.tokens if line else ())
        if comparing.DIFFERS in token.kind
    ]
    assert marked == ["e-"]


def test_a_hidden_character_that_was_added_is_drawn() -> None:
    [change] = compare("pay", "pay\u200b").changes
    assert change.after is not None
    assert "⟨U+200B⟩" in drawn(comparing.Line(0, change.after))


def test_very_long_values_are_cut_with_a_count() -> None:
    found = compare(list(range(9_000)), list(range(9_001)))
    assert (len(found.rows), len(found.changes)) == (comparing.MAX_ROWS, 1)
    assert found.left_out == 9_003 - comparing.MAX_ROWS
    found = compare([1] * 500, [2] * 500)
    assert (len(found.changes), found.unnamed) == (comparing.MAX_CHANGES, 300)


def test_deep_values_are_shown_on_one_line() -> None:
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    found = compare(deep, [deep])
    assert len(found.changes) == 1
    assert max(row.left.depth for row in found.rows if row.left) <= 32
