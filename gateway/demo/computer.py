"""The computer tools: their conditions, the call, and the screenshots that come back. Pure.

`computer_use_preview` carries one `action` a call; the newer `computer` a list of `actions`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gateway.demo.items import new_call_id
from gateway.demo.wire import JSON, bad_request, new_id

_PREVIEW = "computer_use_preview"


def computer_tool(body: JSON) -> str | None:
    """The type of the request's computer tool, if it has one."""
    kinds = (str(tool.get("type")) for tool in body.get("tools") or [])
    return next((kind for kind in kinds if kind in (_PREVIEW, "computer")), None)


def check_computer_tool(body: JSON) -> None:
    """ApiError(400) when the preview tool comes without `truncation: auto`."""
    if computer_tool(body) == _PREVIEW and body.get("truncation") != "auto":
        raise bad_request(
            f"Invalid 'truncation': the '{_PREVIEW}' tool requires 'truncation' to be 'auto'.",
            param="truncation",
            code="invalid_value",
        )


def computer_call(tool: str, action: str, *, unsafe: bool) -> JSON:
    """The model's wish; without an `action` in the text it wants to see the screen."""
    wanted = json.loads(action) or {"type": "screenshot"}
    checks = [
        {
            "id": new_id("cu_sc"),
            "code": "malicious_instructions",
            "message": "We've detected instructions that may cause your application to perform "
            "malicious or unauthorized actions. Please acknowledge this warning if you'd like to "
            "proceed.",
        }
    ]
    return {
        "id": new_id("cu"),
        "type": "computer_call",
        "status": "completed",
        **({"action": wanted} if tool == _PREVIEW else {"actions": [wanted]}),
        "call_id": new_call_id(),
        "pending_safety_checks": checks if unsafe else [],
    }


def check_acknowledged(context: Sequence[JSON]) -> None:
    """ApiError(400) when a screenshot comes without the safety checks of its call."""
    seen = {
        check.get("id")
        for item in context
        if item["type"] == "computer_call_output"
        for check in item.get("acknowledged_safety_checks") or []
    }
    calls = (item for item in context if item["type"] == "computer_call")
    asked = [c["id"] for call in calls for c in call.get("pending_safety_checks") or []]
    if missing := [check for check in asked if check not in seen]:
        raise bad_request(
            "The following pending safety checks have not been acknowledged: " + ", ".join(missing),
            param="input",
        )
