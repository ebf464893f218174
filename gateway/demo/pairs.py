"""Which items belong together: a thought and what followed it, a call and its approval.

The service produced them as pairs and refuses to see one half alone when they are sent again. A
small index of ids is enough, and it is kept for what was not to be stored, too. Contents are not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.demo.wire import JSON, ApiError, bad_request

_NEED_THEIR_THOUGHT = (
    "mcp_call",
    "mcp_approval_request",
    "function_call",
    "computer_call",
    "image_generation_call",
)
_ITEMS_A_RESPONSE = 20


@dataclass(frozen=True)
class Bond:
    """What one produced item may not be without."""

    thought: str | None = None
    follower: str | None = None
    approval: str | None = None


class Pairs:
    """The bonds of the items produced last, by item id; `keep` bounds the responses they span."""

    def __init__(self, keep: int) -> None:
        self._keep = keep * _ITEMS_A_RESPONSE
        self._bonds: OrderedDict[str, Bond] = OrderedDict()

    def learn(self, output: Sequence[JSON]) -> None:
        """Remember how the items of one finished response hang together."""
        thought: str | None = None
        for index, item in enumerate(output):
            if item["type"] == "reasoning":
                thought = item["id"]
                rest = output[index + 1 : index + 2]
                self._bonds[item["id"]] = Bond(follower=rest[0]["id"] if rest else None)
            elif item["type"] in _NEED_THEIR_THOUGHT:
                self._bonds[item["id"]] = Bond(thought, approval=item.get("approval_request_id"))
        while len(self._bonds) > self._keep:
            self._bonds.popitem(last=False)

    def check(self, context: Sequence[JSON], resent: Sequence[JSON], *, approvals: bool) -> None:
        """ApiError(400) when an item of `resent` came without its other half.

        `approvals` asks for the approval pair of every approved call as well.
        """
        places = {item["id"]: place for place, item in enumerate(context)}
        for item in resent:
            bond = self._bonds.get(item["id"], Bond())
            _check_thought(item, bond, places)
            if item["type"] == "reasoning":
                _check_follower(item, bond, places)
            if approvals and bond.approval:
                _check_approval(item, bond.approval, context)


def _check_thought(item: JSON, bond: Bond, places: Mapping[str, int]) -> None:
    if bond.thought and places.get(bond.thought, len(places)) > places[item["id"]]:
        raise _alone(item, f"'reasoning' item: '{bond.thought}'")


def _check_follower(item: JSON, bond: Bond, places: Mapping[str, int]) -> None:
    place = places[item["id"]]
    is_last = place == len(places) - 1
    if is_last or (bond.follower and places.get(bond.follower, -1) < place):
        raise _alone(item, "following item")


def _check_approval(item: JSON, request_id: str, context: Sequence[JSON]) -> None:
    if item.get("approval_request_id") != request_id:
        raise _alone(item, f"'approval_request_id': '{request_id}'")
    before = context[: context.index(item)]
    if not any(i["id"] == request_id for i in before):
        raise _alone(item, f"'mcp_approval_request' item: '{request_id}'")
    answers = (i for i in before if i["type"] == "mcp_approval_response")
    if not any(i.get("approval_request_id") == request_id for i in answers):
        raise _alone(item, f"'mcp_approval_response' item for: '{request_id}'")


def _alone(item: JSON, without: str) -> ApiError:
    return bad_request(
        f"Item '{item['id']}' of type '{item['type']}' was provided without its required "
        f"{without}.",
        param="input",
    )
