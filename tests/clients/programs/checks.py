"""What every Python client checks of an answer on its own side, and how a program reports.

Run by the interpreter of a client's environment: standard library only.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

MODEL = "gpt-4.1"
EXECUTED = "bank.transfer returned:"
AT_ONCE = 4
REASON = "as tested"
HIDDEN = ("mcp_approval_request", "mcp_approval_response")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


OWN = {"Authorization": "Bearer my-own-key"}
DRAWN = {"x-ms-oai-image-generation-deployment": "my-image-deployment"}
SCREEN = {
    "type": "computer_use_preview",
    "display_width": 1024,
    "display_height": 768,
    "environment": "browser",
}


@dataclass
class Run:
    """One case: where to, as whom, and what was noticed on the way."""

    case: str
    url: str
    key: str
    strict: str
    bank: str
    mute: str
    mute_key: str
    seen: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0

    @property
    def capability(self) -> str:
        return self.case.partition("/")[2].partition(":")[0]

    @property
    def mode(self) -> str:
        """How: `plain`, `stream`, `helper`, or what the capability calls it."""
        return self.case.partition(":")[2].removesuffix("-async")

    @property
    def asynchronous(self) -> bool:
        return self.case.endswith("-async")

    def transfer(self, *more: str) -> str:
        """A text that makes the model call the bank, recognisable to the reviewer."""
        arguments = {"to_account": "0815", "amount": 12.5, "currency": "EUR"}
        call = json.dumps({**arguments, "reference": self.case})
        return " ".join([f"call transfer {call}", *more])

    def tool(self, **changes: Any) -> dict[str, Any]:
        """The bank, as an app that would rather not be asked declares it."""
        declared = {"server_label": "bank", "server_url": f"{self.bank}/mcp"}
        return {"type": "mcp", "require_approval": "never", **declared, **changes}

    def refused(self) -> dict[str, str]:
        """The client's `url` and `key` for a refusal, those of the strict app by itself.

        It is sent no header before the answer is known. `other` is a second key to send along.
        """
        strict = {"url": f"{self.url}/openai/v1", "key": self.strict}
        match self.mode:
            case "400":
                return {**strict, "other": self.key}
            case "401":
                return {**strict, "key": "gp_app_nobody"}
            case "404":
                return {**strict, "url": f"{self.url}/openai/v1/x"}
            case "503":
                return {"url": f"{self.mute}/openai/v1", "key": self.mute_key}
            case _:
                return strict

    def check_held(self, response: dict[str, Any], text: str, *, denied: bool = False) -> None:
        """The finished answer of a call that was held: one response, and nothing of the hold."""
        kinds = [item["type"] for item in response["output"]]
        wanted = (
            ["mcp_list_tools", "message"] if denied else ["mcp_list_tools", "mcp_call", "message"]
        )
        equal((response["status"], response["error"]), ("completed", None), "end")
        equal(kinds, wanted, "items")
        equal(REASON in text if denied else text.startswith(EXECUTED), True, f"text {text!r}")

    def keep(self, response: dict[str, Any], text: str) -> None:
        """Report what came of it."""
        kinds = [item["type"] for item in response["output"]]
        self.seen.update(id=response["id"], text=text, items=kinds)


def equal(found: object, wanted: object, what: str) -> None:
    """AssertionError, which says both, unless they are equal."""
    if found != wanted:
        raise AssertionError(f"{what}: {found!r}, not {wanted!r}")


def check_events(events: list[dict[str, Any]], *, after: int = -1) -> dict[str, Any]:
    """A stream without seams; returns its final response."""
    if after < 0:
        equal(events[0]["type"], "response.created", "first event")
    check_numbers(events, after + 1)
    whole = [event["response"] for event in events if "response" in event]
    equal(len({response["id"] for response in whole}), 1, "response ids")
    ends = [event["type"] for event in events if event["type"] in ENDS]
    equal(ends, ["response.completed"], f"ends, {whole[-1].get('error')}")
    equal(events[-1]["type"], "response.completed", "last event")
    final = whole[-1]
    if after < 0:
        added = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
        equal(added, list(range(len(final["output"]))), "indices added")
        done = [e["output_index"] for e in events if e["type"] == "response.output_item.done"]
        equal(sorted(done), added, "indices done")
    check_hidden(events)
    return final


#: What provokes which refusal: words for the model, another declared tool.
FAULTS = {
    "500": ("fail: server-error on resume",),
    "502": ("fail: drop-before-bytes on resume",),
}
TOOLS = {
    "403": {"server_label": "nobody", "server_url": "https://nobody.example/mcp"},
    "424": {"server_label": "silent", "server_url": "http://127.0.0.1:9/mcp"},
    "503": {"server_label": "branch"},
    "vault": {"server_label": "keyless", "server_url": "http://127.0.0.1:9/keyless"},
}
ENDS = ("response.completed", "response.failed", "response.incomplete", "error")


def check_numbers(events: Iterable[dict[str, Any]], first: int) -> None:
    """Sequence numbers go on without a gap, those of keepalive events included."""
    numbers = [event.get("sequence_number") for event in events]
    equal(numbers, list(range(first, first + len(numbers))), "sequence numbers")


def check_picture(encoded: str) -> None:
    """Base64 of a PNG."""
    equal(base64.b64decode(encoded)[:8], b"\x89PNG\r\n\x1a\n", "picture")


def screenshot(call: dict[str, Any]) -> dict[str, Any]:
    """What an app answers to a `computer_call`."""
    output = {"type": "computer_screenshot", "image_url": PIXEL}
    return {"type": "computer_call_output", "call_id": call["call_id"], "output": output}


def check_hidden(value: object) -> None:
    """Nothing anywhere in it is an approval."""
    text = json.dumps(value)
    equal([word for word in HIDDEN if word in text], [], "visible approvals")


def text_of(events: Iterable[dict[str, Any]]) -> str:
    """The deltas put together."""
    kind = "response.output_text.delta"
    return "".join(event["delta"] for event in events if event["type"] == kind)


Play = Callable[[Run], Awaitable[None]]
_PRINTING = threading.Lock()


def _report(run: Run, error: str | None) -> None:
    blank = {"id": None, "text": None, "statuses": [], "items": [], "approval_callbacks": 0}
    line = {"case": run.case, "ok": error is None, **blank, **run.seen}
    with _PRINTING:
        print(json.dumps({**line, "attempts": run.attempts, "error": error}), flush=True)


def main(plays: dict[str, Play]) -> None:
    """A few cases at a time, one JSON line for each.

    Called as `PROGRAM URL KEY STRICT_KEY BANK MUTE_URL MUTE_KEY CASE…`.
    """
    places, names = sys.argv[1:7], sys.argv[7:]

    def work(name: str) -> None:
        run = Run(name, *places)
        try:
            asyncio.run(plays[run.capability](run))
        except Exception as problem:
            where = traceback.extract_tb(problem.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            _report(run, f"{type(problem).__name__} at {place}: {problem}")
        else:
            _report(run, None)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, names))
