"""Step 9: k rounds become one response with one id, one numbering and summed usage.

The stitcher keeps the app's view: which items it has been shown, under which index, and how the
response object reads. It never decides anything; hidden items, later beginnings and endings are
dropped, everything else goes on with its numbers put right. Members unknown to us survive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from gateway.exchange.messages import HIDDEN_ITEMS, Json

_OPENING = frozenset({"response.created", "response.queued", "response.in_progress"})
#: Members of a response object that say what the app asked for: the first round's stand.
_ECHOED = (
    "created_at", "previous_response_id", "tools", "tool_choice", "metadata", "instructions",
    "background", "store", "max_output_tokens", "max_tool_calls", "conversation", "user",
)  # fmt: skip
#: Members that every round reports for itself alone: added up, or put one after the other.
_SUMMED = ("usage", "tool_usage")
_CONCATENATED = ("content_filters", "moderation")


class Stitcher:
    """The app's one response while rounds come and go.

    `asked` is the app's request: its own declarations are what the response object echoes.
    `transparent`: as long as there is nothing to hide, everything goes on as it came.
    """

    def __init__(
        self, asked: Json, *, show_approvals: bool = False, transparent: bool = False
    ) -> None:
        self.asked = asked
        self.show_approvals = show_approvals
        self.id: str | None = None
        self.round = -1
        self.sequence = 0
        self.items: list[Json | None] = []
        self.listed: list[str] = []
        self.indexes: dict[int, int | None] = {}
        self.early: list[tuple[str, Json]] = []  # frames of items that nobody has named yet
        self.echo: Json = {}
        self.base: Json = {}
        self.summed: dict[str, Json] = {}
        self.concatenated: dict[str, list[Any]] = {}
        self.transparent = transparent

    # --- frames -----------------------------------------------------------------------------

    def begin_round(self) -> None:
        """A new upstream response starts: its indexes are its own."""
        self.round += 1
        self.indexes, self.early = {}, []

    def take_back_round(self) -> None:
        """The round that began was never sent."""
        self.round -= 1

    def passes(self, event: str | None) -> bool:
        """Whether a frame of this name may go on byte for byte; counts it if so.

        Only deltas qualify, and only while nothing was hidden, renumbered or replaced.
        """
        if self.transparent and event is not None and event.endswith(".delta"):
            self.sequence += 1
            return True
        return False

    def accept(self, kind: str, data: Json) -> list[tuple[str, Json]]:
        """The frames that the app may see because of this one; often it alone, or none.

        The frame that ends a round is not for here: `ending` writes it, if it ends the exchange.
        """
        if kind in _OPENING:
            return self._opening(kind, data)
        if kind == "keepalive":
            self.transparent = False
            return []
        if "output_index" in data:
            return self._item_frames(kind, data)
        if isinstance(item := data.get("item"), dict) and self._is_approval(item):
            return []  # at no index, and still nothing for the app
        if isinstance(data.get("response"), dict):
            self._begin(data["response"])
            data = {**data, "response": self.merged(data["response"])}
        return [(kind, self._numbered(data))]

    def _opening(self, kind: str, data: Json) -> list[tuple[str, Json]]:
        if self.round:
            return []
        response = data.get("response") or {}
        self._begin(response)
        return [(kind, self._numbered({**data, "response": self.shown(response)}))]

    def _begin(self, response: Json) -> None:
        self.id = self.id or response.get("id")
        if not self.base:
            self.base = response
            self.echo = {name: response[name] for name in _ECHOED if name in response}
            if "tools" in self.echo:
                self.echo["tools"] = _declared(self.echo["tools"], self.asked.get("tools"))
            if self.asked.get("previous_response_id") and "previous_response_id" in self.echo:
                self.echo["previous_response_id"] = self.asked["previous_response_id"]

    def _item_frames(self, kind: str, data: Json) -> list[tuple[str, Json]]:
        upstream, item = data["output_index"], data.get("item")
        if not isinstance(item, dict):
            if upstream not in self.indexes and not self.transparent:
                # It may belong to a hidden item: it waits until the item says what it is.
                self.early.append((kind, data))
                return []
            return self._placed(kind, data, self._place(upstream, None))
        known = upstream in self.indexes
        shown = self._place(upstream, item)
        frames = self._placed(kind, data, shown)
        if not known:
            for early_kind, early in self._taken(upstream):
                frames += self._placed(early_kind, early, shown)
        return frames

    def _taken(self, upstream: int) -> list[tuple[str, Json]]:
        early = self.early
        self.early = [frame for frame in early if frame[1]["output_index"] != upstream]
        return [frame for frame in early if frame[1]["output_index"] == upstream]

    def _placed(self, kind: str, data: Json, shown: int | None) -> list[tuple[str, Json]]:
        if shown is None:
            return []
        changed = {**data, "output_index": shown}
        item = data.get("item")
        if isinstance(item, dict):
            changed["item"] = self._shown_item(item)
            if kind == "response.output_item.done":
                self.items[shown] = changed["item"]
        return [(kind, self._numbered(changed))]

    def _place(self, upstream: int, item: Json | None) -> int | None:
        """The app's index for this round's index `upstream`; None for a hidden item."""
        if upstream not in self.indexes:
            if item is not None and self._hides(item):
                self.indexes[upstream] = None
            else:
                self.indexes[upstream] = len(self.items)
                self.items.append(None)
            if self.indexes[upstream] != upstream:
                self.transparent = False
        if item is not None and self._is_approval(item):
            return None  # whatever stood at this index before
        return self.indexes[upstream]

    def _hides(self, item: Json) -> bool:
        kind = item.get("type")
        if kind == "mcp_list_tools":
            label = str(item.get("server_label"))
            if label in self.listed:
                return True
            self.listed.append(label)
        return self._is_approval(item)

    def _is_approval(self, item: Json) -> bool:
        return item.get("type") in HIDDEN_ITEMS and not self.show_approvals

    def _shown_item(self, item: Json) -> Json:
        absorbed = item.get("approval_request_id") is not None and not self.show_approvals
        if item.get("type") == "mcp_call" and absorbed:
            return {**item, "approval_request_id": None}
        if item.get("type") == "reasoning" and self._added_encryption():
            return {name: value for name, value in item.items() if name != "encrypted_content"}
        return item

    def _added_encryption(self) -> bool:
        include = self.asked.get("include")
        return (
            any(_is_mcp(tool) for tool in self.asked.get("tools") or [])
            and self.asked.get("store") is False
            and "reasoning.encrypted_content" not in (include or [])
        )

    def _numbered(self, data: Json) -> Json:
        number = data.get("sequence_number")
        if self.transparent and isinstance(number, int):
            # Frames that pass unparsed keep their numbers, so the others keep theirs.
            self.sequence = number + 1
            return data
        if number is not None:
            data = {**data, "sequence_number": self.sequence}
        self.sequence += 1
        return data

    # --- response objects -------------------------------------------------------------------

    def end_round(self, response: Json) -> None:
        """Take the round's final response object in: items, usage, filters."""
        if not self.round:
            self._begin(response)
        for upstream, item in enumerate(response.get("output") or []):
            shown = self._place(upstream, item)
            if shown is None:
                continue
            final = self._shown_item(item)
            # Where it is as it was shown, one copy does for the transcript and for here.
            if self.items[shown] is None or self.items[shown] == final:
                self.items[shown] = final
        if not self.transparent:  # else the app gets this very object
            self._add_up(response)

    def _add_up(self, response: Json) -> None:
        for name in _SUMMED:
            if isinstance(response.get(name), dict):
                self.summed[name] = _added(self.summed.get(name, {}), response[name])
        for name in _CONCATENATED:
            if isinstance(response.get(name), list):
                self.concatenated.setdefault(name, []).extend(response[name])

    def output(self) -> list[Json]:
        """The items the app has been shown to the end, in order."""
        return [item for item in self.items if item is not None]

    def shown(self, response: Json) -> Json:
        """A response object under the app's id, echoing what the app declared."""
        if self.transparent and not self.asked.get("previous_response_id"):
            return response
        changed = {**response, "id": self.id}
        changed.update({name: value for name, value in self.echo.items() if name in response})
        return changed

    def merged(self, response: Json) -> Json:
        """The final response object: everything shown, everything added up."""
        changed = self.shown(response)
        if self.transparent:
            return changed
        changed = {**changed, "output": self.output()}
        if self.round:
            changed.update({name: used for name, used in self.summed.items() if name in response})
        for name, values in self.concatenated.items():
            changed[name] = values
        if "output_text" in response:
            changed["output_text"] = _text_of(changed["output"])
        return changed

    def ending(self, kind: str, data: Json) -> Json:
        """The frame that ends the logical response."""
        return self._numbered({**data, "type": kind, "response": self.merged(data["response"])})

    def interim(self, status: str) -> Json:
        """The response object while the exchange is not over: for polling."""
        shown = self.shown(self.base)
        shown = {**shown, "status": status, "output": self.output()}
        for name in ("usage", "completed_at", "error", "incomplete_details"):
            if name in shown:
                shown[name] = None
        if "output_text" in shown:
            shown["output_text"] = _text_of(shown["output"])
        return shown

    def keepalive(self) -> Json:
        """A numbered frame that says nothing but that somebody is still there."""
        return self._numbered({"type": "keepalive", "sequence_number": self.sequence})

    def failure(self, error: Json, *, told: bool) -> list[tuple[str, Json]]:
        """The frames that end a stream badly: `error`, flat and nested, unless the app was told
        already, then `response.failed`. Either alone is overlooked by some clients.
        """
        frames: list[tuple[str, Json]] = []
        if not told:
            numbered = {"type": "error", "sequence_number": self.sequence}
            flat = {**numbered, **_flat(error), "error": error}
            frames.append(("error", self._numbered(flat)))
        response = {**self.interim("failed"), "error": _response_error(error)}
        numbered = {"type": "response.failed", "sequence_number": self.sequence}
        return [*frames, ("response.failed", self._numbered({**numbered, "response": response}))]

    # --- snapshots --------------------------------------------------------------------------

    _KEPT = (
        "id", "round", "sequence", "items", "listed", "early", "echo", "base", "summed",
        "concatenated", "transparent",
    )  # fmt: skip

    def snapshot(self) -> Json:
        """Plain JSON; `restore` makes an equal stitcher of it."""
        kept = {name: getattr(self, name) for name in self._KEPT}
        return {**kept, "indexes": [[key, value] for key, value in self.indexes.items()]}

    @classmethod
    def restore(cls, asked: Json, show_approvals: bool, state: Mapping[str, Any]) -> Stitcher:
        """The stitcher as it was when `snapshot` was taken."""
        stitcher = cls(asked, show_approvals=show_approvals)
        for name in cls._KEPT:
            setattr(stitcher, name, state[name])
        stitcher.indexes = dict(state["indexes"])
        return stitcher


def _is_mcp(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "mcp"


def _declared(echoed: Any, asked: Any) -> Any:
    """The echoed tools, with the app's own words for its MCP servers and no credential."""
    if not isinstance(echoed, list) or not isinstance(asked, list):
        return echoed
    own = {tool["server_label"]: tool for tool in asked if _is_mcp(tool)}
    return [_declared_tool(tool, own) if _is_mcp(tool) else tool for tool in echoed]


def _declared_tool(echoed: Json, own: Mapping[str, Json]) -> Json:
    asked = own.get(echoed.get("server_label", ""), {})
    shown = {name: value for name, value in echoed.items() if name != "authorization"}
    for name in ("server_url", "server_description", "allowed_tools", "require_approval"):
        if name in asked:
            shown[name] = asked[name]
        elif name == "require_approval" and name in shown:
            shown[name] = "always"
        elif name in shown:
            shown[name] = None
    if "headers" in shown:
        shown["headers"] = None
    return shown


def _added(total: Json, more: Json) -> Json:
    summed = dict(total)
    for name, value in more.items():
        before = summed.get(name)
        if isinstance(value, dict):
            summed[name] = _added(before if isinstance(before, dict) else {}, value)
        elif _is_number(value):
            summed[name] = value + (before if _is_number(before) else 0)
        else:
            summed.setdefault(name, value)
    return summed


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it counts something: what no program can count to is not added up."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 2**53


def _flat(error: Json) -> Json:
    return {name: error.get(name) for name in ("code", "message", "param")}


def _response_error(error: Json) -> Json:
    return {"code": error.get("code") or "server_error", "message": error.get("message")}


def _text_of(output: list[Json]) -> str:
    return "".join(
        str(part.get("text", ""))
        for item in output
        if item.get("type") == "message"
        for part in item.get("content") or []
        if part.get("type") == "output_text"
    )
