"""One row of the conformance list on a gateway that many share, and a look at a whole stream.

Every row marks what it asks for, and finds its own traces by that mark: at Azure, at the bank, in
the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support.attempts import House
from tests.support.gateway import Gateway

HIDDEN = ("mcp_approval_request", "mcp_approval_response")
EXECUTED = "bank.transfer returned:"
_marks = itertools.count(1)


@dataclass
class Row:
    """One row on the shared gateway; `mark` is what its transfers refer to."""

    house: House
    mark: str
    before: int

    @property
    def gateway(self) -> Gateway:
        return self.house.gateway

    def call(self, amount: int = 5, *more: str) -> str:
        """Words that make the model transfer money, and more words."""
        arguments = {"amount": amount, "currency": "EUR", "to_account": "0815"}
        text = json.dumps({**arguments, "reference": self.mark})
        return " ".join([f"call transfer {text}", *more])

    async def held(self, text: str, verdict: str = "approve", **changes: Any) -> httpx2.Response:
        """Ask, decide, and hear the answer."""
        asking = asyncio.ensure_future(self.house.post(self.house.body(input=text, **changes)))
        await self.gateway.decide(verdict)
        return await asking

    async def streamed(
        self, text: str, verdict: str | None = "approve", **changes: Any
    ) -> list[dict[str, Any]]:
        """The same as a stream: its events."""
        body = self.house.body(input=text, stream=True, **changes)
        asking = asyncio.ensure_future(self.house.post(body))
        if verdict:
            await self.gateway.decide(verdict)
        return events(await asking)

    async def rounds(self) -> list[dict[str, Any]]:
        """The rounds that Azure was sent since the test began."""
        requests = (await self.gateway.upstream_requests())[self.before :]
        return [entry["body"] for entry in requests if entry["path"].endswith("/responses")]

    async def done(self) -> list[dict[str, Any]]:
        """The arguments of what the bank carried out for this row."""
        effects = [effect["arguments"] for effect in await self.gateway.effects()]
        return [arguments for arguments in effects if arguments.get("reference") == self.mark]

    async def rounds_at_azure(self, exchange_id: str) -> list[dict[str, Any]]:
        """Every round of an exchange as Azure itself keeps it."""
        shown = (await self.gateway.api("GET", f"/exchanges/{exchange_id}")).json()
        path = "/openai/v1/responses"
        found = [await self.gateway.world.get(f"{path}/{name}") for name in shown["upstream_ids"]]
        return [answer.json() for answer in found]

    async def outcomes(self, exchange_id: str) -> list[str]:
        """What the ledger says of the calls of an exchange."""
        observed = await self.gateway.records("execution.observed")
        own = [entry for entry in observed if entry["subject"]["exchange"] == exchange_id]
        return [entry["outcome"] for entry in own]


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a stream, comments left out; each is named as its data is."""
    assert answer.status_code == 200, answer.text
    found = []
    for block in answer.text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def kinds(items: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in items]


def deltas(found: list[dict[str, Any]]) -> list[str]:
    return [event["delta"] for event in found if event["type"] == "response.output_text.delta"]


def seamless(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One response without a gap in any numbering; its final object."""
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    types = [event["type"] for event in found]
    for once in ("response.created", "response.in_progress", "response.completed"):
        assert types.count(once) == 1, once
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    final: dict[str, Any] = found[-1]["response"]
    assert {event["response"]["id"] for event in found if "response" in event} == {final["id"]}
    places = {
        step: [e["output_index"] for e in found if e["type"] == f"response.output_item.{step}"]
        for step in ("added", "done")
    }
    assert places["added"] == sorted(places["done"]) == list(range(len(final["output"])))
    ended = [event for event in found if event["type"] == "response.output_item.done"]
    assert [event["item"]["id"] for event in ended] == [item["id"] for item in final["output"]]
    assert not [word for word in HIDDEN if word in json.dumps(found)]
    return final


async def row_of(house: House) -> Row:
    """A row with a mark of its own."""
    before = len(await house.gateway.upstream_requests())
    return Row(house, f"row {next(_marks)}", before)
