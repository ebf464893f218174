"""The measured results behind docs/compatibility.md: read, compared, written on demand.

`make compatibility` plays every case and writes results.json, from which `make docs` draws the
table. What is written holds no times and no ids: the same clients give the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.support.clients import CAPABILITIES, CLIENTS, RESULTS, Client, cases


def measured(client: Client, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, str] | None:
    """Capability and mode → works or breaks, of one client; None unless all was played."""
    own = [case for case in cases() if case.client == client]
    if any(case.name not in reports for case in own):
        return None
    words = {True: "works", False: "breaks"}
    return {case.name.partition("/")[2]: words[bool(reports[case.name]["ok"])] for case in own}


def recorded() -> dict[str, Any]:
    """What stands in the file."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def declared() -> dict[str, Any]:
    """Everything of the file but the results: what the table needs to be drawn."""
    return {
        "clients": {client.name: client.title for client in CLIENTS},
        "capabilities": [
            {"name": each.name, "title": each.title, "note": each.note} for each in CAPABILITIES
        ],
    }


def write(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the file; AssertionError unless every case of every client was played."""
    results = {client.name: measured(client, reports) for client in CLIENTS}
    assert None not in results.values(), "not every case was played"
    document = {**declared(), "results": results}
    RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
