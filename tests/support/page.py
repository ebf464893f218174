"""The app of the Azure how-to at work: its synchronous client, and what the other sides saw.

What is sent, recorded and carried out counts from the moment that the page was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai

from gateway.audit import reading
from tests.support.gateway import Gateway

DEPLOYMENT = "x-ms-oai-image-generation-deployment"


@dataclass
class Page:
    """The page's app at work: its client, and the other sides since the test began."""

    gateway: Gateway
    client: openai.AzureOpenAI
    painter: openai.AzureOpenAI
    asked: int
    recorded: int
    effects: int

    async def run(self, sample: Callable[[], Any]) -> Any:
        """A sample of the page, in a thread as it is synchronous."""
        return await asyncio.to_thread(sample)

    async def held(self, sample: Callable[[], Any], verdict: str = "approve") -> Any:
        """A sample whose call a person decides about, through the management API."""
        result, _ = await asyncio.gather(self.run(sample), self.gateway.decide(verdict))
        return result

    async def sent(self, end: str = "/responses") -> list[dict[str, Any]]:
        """What Azure was sent since the test began, whose path ends so."""
        requests = (await self.gateway.upstream_requests())[self.asked :]
        return [entry for entry in requests if entry["path"].endswith(end)]

    async def records(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind since the test began, oldest first; all are of this app."""
        assert self.gateway.services is not None
        await self.gateway.services.ledger.settle()
        query = reading.Query(kind=kind, limit=200)
        found = (await reading.search(self.gateway.services.db, query)).items
        new = [e for e in reversed(found) if e.index is None or e.index > self.recorded]
        assert {entry.document["subject"].get("app") for entry in new} <= {"support-bot"}
        return [entry.document for entry in new]

    async def passed(self, *expected: tuple[str, str]) -> None:
        """The ledger has exactly these requests, which passed through: method and route."""
        found = await self.records("request.completed")
        asked = [(entry.get("method", "POST"), entry["route"]) for entry in found]
        assert asked == list(expected)
        assert {entry["status"] for entry in found} <= {200}

    async def decided(self, *verdicts: str) -> None:
        """The ledger has these decisions, and what they released was carried out as approved."""
        found = await self.records("approval.decided")
        assert [entry["decision"]["value"] for entry in found] == list(verdicts)
        observed = await self.records("execution.observed")
        approved = verdicts.count("approve")
        assert [entry["outcome"] for entry in observed] == ["executed"] * approved
        assert len(await self.gateway.effects()) == self.effects + approved

    def mcp(self, **changes: Any) -> dict[str, Any]:
        """The page's tool: the app says that it need not be asked."""
        return self.gateway.tool(**changes)


async def page_of(gateway: Gateway, client: openai.AzureOpenAI) -> Page:
    """The page as of now."""
    assert gateway.services is not None
    await gateway.services.ledger.settle()
    newest = (await reading.search(gateway.services.db, reading.Query(limit=1))).items[0]
    asked, effects = len(await gateway.upstream_requests()), len(await gateway.effects())
    painter = client.with_options(default_headers={DEPLOYMENT: "my-image-deployment"})
    return Page(gateway, client, painter, asked, newest.index or 0, effects)


def kinds(response: Any) -> list[str]:
    return [item.type for item in response.output]


def create(page: Page, **body: Any) -> Callable[[], Any]:
    """`responses.create` of the page, to be run in a thread."""
    return lambda: page.client.responses.create(**{"model": "gpt-4.1", **body})


def streamed(page: Page, **body: Any) -> Callable[[], list[Any]]:
    """The same with `stream=True`, read to its end."""
    return lambda: list(create(page, stream=True, **body)())
