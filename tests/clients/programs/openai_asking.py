"""One request of the official Python client: sync or async, plain, a raw stream or the helper.

Counts what is posted, and checks every stream on the client's side. Which capability is asked for
is no concern here.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
from checks import MODEL, Run, check_events, check_hidden, equal, text_of


def client_of(run: Run, kind: str = "OpenAI", **options: Any) -> Any:
    """A client that counts what it posts."""

    def count(request: Any) -> None:
        run.attempts += request.method == "POST"

    async def count_async(request: Any) -> None:
        count(request)

    if run.asynchronous:
        kind = f"Async{kind}"
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count_async]})
    else:
        http = openai.DefaultHttpxClient(event_hooks={"request": [count]})
    if kind.endswith("AzureOpenAI"):
        return getattr(openai, kind)(http_client=http, **options)
    options = {"base_url": f"{run.url}/openai/v1/", "api_key": run.key, **options}
    return getattr(openai, kind)(http_client=http, **options)


async def settled(value: Any) -> Any:
    """What a call of either kind of client returns."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def opened(manager: Any) -> AsyncIterator[Any]:
    """Inside a stream helper of either kind."""
    if hasattr(manager, "__aenter__"):
        async with manager as inside:
            yield inside
    else:
        with manager as inside:
            yield inside


async def collected(stream: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """Its events, as many as wanted, as plain data."""
    events: list[dict[str, Any]] = []
    if hasattr(stream, "__aiter__"):
        async for event in stream:
            events.append(event.to_dict())
            if len(events) == limit:
                break
    else:
        for event in stream:
            events.append(event.to_dict())
            if len(events) == limit:
                break
    return events


async def ask(run: Run, client: Any, **body: Any) -> tuple[dict[str, Any], str]:
    """One request in the mode of the run: the final response and its text."""
    body = {"model": MODEL, **body}
    if run.mode == "stream":
        events = await collected(await settled(client.responses.create(stream=True, **body)))
        final, text = check_events(events), text_of(events)
        run.seen["events"] = len(events)
    elif run.mode == "helper":
        async with opened(client.responses.stream(**body)) as stream:
            events = await collected(stream)
            response = await settled(stream.get_final_response())
        final, text = response.to_dict(), response.output_text
        equal(check_events(events)["id"], final["id"], "id")
        equal(text_of(events), text, "deltas")
        run.seen["events"] = len(events)
    else:
        response = await settled(client.responses.create(**body))
        final, text = response.to_dict(), response.output_text
    check_hidden(final)
    run.keep(final, text)
    return final, text
