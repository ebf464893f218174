"""What the app is not shown of a chain, remembered by the items it is shown, and put back.

Apps that keep no state at Azure send the whole chain again, without the approval requests and
answers that only Azure and the gateway know of. Azure refuses a chain with holes: a reasoning
item without what followed it, a call without its approval. Pure; what is kept is plain JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gateway.exchange.messages import Around, Json

_NOT_AGAIN = "This call is not to be made again."
_NO_CALLS: Mapping[str, Any] = {}


def around(transcript: Sequence[Json], shown: Sequence[Json]) -> dict[str, Around]:
    """By item id, what is hidden around the items that the app was shown.

    `transcript` is everything in the chain since the app's input: outputs of all rounds and the
    answers between them.
    """
    by_id = {str(item.get("id")): item for item in shown if item.get("id")}
    found: dict[str, Around] = {}
    hidden: list[Json] = []
    last: str | None = None
    for item in transcript:
        name = str(item.get("id"))
        if name not in by_id:
            hidden.append(item)
            continue
        members = {
            member: value for member, value in item.items() if by_id[name].get(member) != value
        }
        if hidden or members:
            found[name] = Around(before=hidden, members=members)
        hidden, last = [], name
    if hidden and last is not None:
        known = found.get(last, Around())
        found[last] = Around(known.before, hidden, known.members)
    return found


def rehydrate(items: Sequence[Json], known: Mapping[str, Around]) -> list[Json]:
    """The app's items with everything back in its place that was taken out of them.

    An item that is there already, or is put back twice, stands once. An approval comes back only
    with the call that it released: see `settled`.
    """
    there = {str(item["id"]) for item in items if item.get("id")}
    whole: list[Json] = []
    for item in items:
        what = known.get(str(item.get("id")))
        if what is None:
            whole.append(item)
            continue
        whole += _new(what.before, there)
        is_reference = item.get("type", "item_reference") == "item_reference"
        whole.append(item if is_reference else {**item, **what.members})
        whole += _new(what.after, there)
    calls = {name: what.members.get("approval_request_id") for name, what in known.items()}
    return settled(whole, calls)


def settled(items: Sequence[Json], calls: Mapping[str, Any] = _NO_CALLS) -> list[Json]:
    """The same items, with a denial for each approval whose call does not stand after it.

    Azure carries out what is approved and not called in what it is sent: an approval whose call was
    never reported, or is left out, must not be told a second time. `calls` says which approval the
    calls have that are only named.
    """
    made: set[str] = set()
    result: list[Json] = []
    for item in reversed(items):
        if item.get("type") == "mcp_call":
            made.add(str(item.get("approval_request_id")))
        elif item.get("type", "item_reference") == "item_reference":
            made.add(str(calls.get(str(item.get("id")))))
        elif _approves(item) and str(item.get("approval_request_id")) not in made:
            result.append({**item, "approve": False, "reason": _NOT_AGAIN})
            continue
        result.append(item)
    return result[::-1]


def _approves(item: Json) -> bool:
    return item.get("type") == "mcp_approval_response" and item.get("approve") is not False


def unanswered(items: Sequence[Json]) -> list[str]:
    """The ids of approval requests among the items to which no item is the answer."""
    answered = {
        str(item.get("approval_request_id"))
        for item in items
        if item.get("type") in {"mcp_approval_response", "mcp_call"}
    }
    return [
        name
        for item in items
        if item.get("type") == "mcp_approval_request"
        and (name := str(item.get("id"))) not in answered
    ]


def _new(hidden: Collection[Json], there: set[str]) -> list[Json]:
    fresh = []
    for item in hidden:
        # Answers have no id of their own: there is one for each request.
        name = str(item.get("id") or f"answer to {item.get('approval_request_id')}")
        if name not in there:
            there.add(name)
            fresh.append(item)
    return fresh
