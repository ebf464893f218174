"""The curl command line as the vendor's pages print it, and a look at the bytes on the wire."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from itertools import pairwise
from typing import Any

from checks import (
    DRAWN,
    EXECUTED,
    MODEL,
    OWN,
    PIXEL,
    SCREEN,
    WEATHER,
    Play,
    Run,
    check_events,
    check_hidden,
    check_picture,
    equal,
    main,
    screenshot,
    text_of,
)

PLAYS: dict[str, Play] = {}


def play(function: Play) -> Play:
    """Of the capability that is the function's name."""
    PLAYS[function.__name__] = function
    return function


async def curl(run: Run, path: str, *options: str, lines: int | None = None) -> list[bytes]:
    """What curl prints, line by line; `seen` gets the longest silence between two of them.

    `path` is below /responses unless it begins otherwise than with `/` or `?`.
    """
    run.attempts += "-d" in options
    silent = ("-N", "-s", "--max-time", "60", "--noproxy", "*")
    below = f"responses{path}" if path[0] in "/?" else path
    address = f"{run.url}/openai/v1/{below}"
    kind = () if "-F" in options else ("-H", "Content-Type: application/json")
    key = ("-H", f"Authorization: Bearer {run.key}")
    command = [*silent, address, *kind, *key, *options]
    process = await asyncio.create_subprocess_exec(
        "curl", *command, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )
    assert process.stdout is not None
    found, last, gap = [], time.monotonic(), 0.0
    while line := await process.stdout.readline():
        now = time.monotonic()
        last, gap = now, max(gap, now - last)
        found.append(line)
        if len(found) == lines:
            process.kill()
            break
    await process.wait()
    run.seen["silence"] = gap
    return found


async def read(run: Run, path: str, *options: str) -> Any:
    """The JSON that curl prints."""
    return json.loads(b"".join(await curl(run, path, *options)))


async def create(run: Run, *options: str, **body: Any) -> dict[str, Any]:
    """One request in the mode of the run: its final response."""
    streamed = {"stream": True} if run.mode == "stream" else {}
    data = json.dumps({"model": MODEL, **body, **streamed})
    lines = await curl(run, "?api-version=preview", "-d", data, *options)
    if streamed:
        run.seen["wire"] = sorted({line.partition(b":")[0].strip().decode() for line in lines})
        final = check_events(events_in(lines))
        run.seen["partial"] = [
            event["partial_image_b64"] for event in events_in(lines) if "partial_image_b64" in event
        ]
        run.seen["events"] = len(events_in(lines))
        run.seen["comments"] = sum(line.startswith(b":") for line in lines)
        run.seen["keepalives"] = lines.count(b"event: keepalive\n")
    else:
        run.seen["blank"] = sum(line == b"\n" for line in lines)
        final = json.loads(b"".join(lines))
    check_hidden(final)
    run.keep(final, text_in(final))
    return final


def events_in(lines: list[bytes]) -> list[dict[str, Any]]:
    """The events of a stream; each is named, and named as its data is."""
    events = []
    for name, data in pairwise(lines):
        if data.startswith(b"data: "):
            events.append(json.loads(data.removeprefix(b"data: ")))
            equal(name.decode().strip(), f"event: {events[-1]['type']}", "name of the event")
    named = sum(line.startswith(b"event:") for line in lines)
    equal(named, len(events), "events with data")
    return events


def text_in(response: dict[str, Any]) -> str:
    """The text of its messages."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for message in messages for part in message["content"])


@play
async def text(run: Run) -> None:
    final = await create(run, input=f"Hello from {run.case}")
    equal(text_in(final), f"You said: Hello from {run.case}", "text")


@play
async def approved(run: Run) -> None:
    final = await create(run, input=run.transfer(), tools=[run.tool()])
    run.check_held(final, text_in(final))


@play
async def denied(run: Run) -> None:
    final = await create(run, input=run.transfer(), tools=[run.tool()])
    run.check_held(final, text_in(final), denied=True)


@play
async def credential(run: Run) -> None:
    final = await create(run, input=run.transfer(), tools=[run.tool(headers=OWN)])
    run.check_held(final, text_in(final))


@play
async def wish(run: Run) -> None:
    header = ("-H", "Gatepass-Wait: return")
    body = {"model": MODEL, "tools": [run.tool()]}
    data = json.dumps({**body, "input": run.transfer()})
    first = await read(run, "?api-version=preview", *header, "-d", data)
    request = first["output"][-1]
    equal(request["type"], "mcp_approval_request", "last item")
    answer = {"type": "mcp_approval_response", "approval_request_id": request["id"]}
    more = {"previous_response_id": first["id"], "input": [{**answer, "approve": False}]}
    data = json.dumps({**body, **more})
    refused = await read(run, "?api-version=preview", "-d", data)
    equal(refused["error"]["code"], "approval_forged", "without the header")
    second = await read(run, "?api-version=preview", *header, "-d", data)
    run.keep(second, text_in(second))
    equal(text_in(second).startswith(EXECUTED), True, text_in(second))


@play
async def wait(run: Run) -> None:
    began = time.monotonic()
    await approved(run)
    run.seen["waited"] = time.monotonic() - began


@play
async def function(run: Run) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER}]
    first = await create(run, input='function weather {"city": "Riga"}', tools=tools)
    call = first["output"][-1]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny in Riga"}
    final = await create(run, previous_response_id=first["id"], input=[output], tools=tools)
    equal("sunny in Riga" in text_in(final), True, text_in(final))


@play
async def image(run: Run) -> None:
    parts = [
        {"type": "input_text", "text": "What is in these images?"},
        {"type": "input_image", "image_url": "https://images.example/otter.jpg"},
        {"type": "input_image", "image_url": PIXEL},
    ]
    final = await create(run, input=[{"role": "user", "content": parts}])
    equal("What is in these images?" in text_in(final), True, text_in(final))


@play
async def chain(run: Run) -> None:
    question = {"role": "user", "content": run.transfer()}
    first = await create(run, input=[question], tools=[run.tool()])
    final = await create(run, input="And by id?", previous_response_id=first["id"])
    equal(final["previous_response_id"], first["id"], "previous")
    again = {"role": "user", "content": "And with everything?"}
    final = await create(run, input=[question, *first["output"], again], tools=[run.tool()])
    equal("And with everything?" in text_in(final), True, text_in(final))


@play
async def reasoning(run: Run) -> None:
    kept = {"store": False, "include": ["reasoning.encrypted_content"], "tools": [run.tool()]}
    body = {**kept, "model": "o4-mini", "reasoning": {"effort": "medium"}}
    question = {"role": "user", "content": run.transfer()}
    first = await create(run, input=[question], **body)
    thoughts = [item for item in first["output"] if item["type"] == "reasoning"]
    equal(bool(thoughts), True, "thoughts")
    equal([bool(item["encrypted_content"]) for item in thoughts], [True] * len(thoughts), "them")
    again = {"role": "user", "content": "And then?"}
    final = await create(run, input=[question, *first["output"], again], **body)
    equal("And then?" in text_in(final), True, text_in(final))


@play
async def stored(run: Run) -> None:
    final = await create(run, input="Keep this")
    path = f"/{final['id']}"
    again = json.loads(b"".join(await curl(run, f"{path}?api-version=preview")))
    equal(again, final, "retrieved")
    listing = json.loads(b"".join(await curl(run, f"{path}/input_items?api-version=preview")))
    equal(listing["data"][0]["content"][0]["text"], "Keep this", "input")
    gone = json.loads(b"".join(await curl(run, f"{path}?api-version=preview", "-X", "DELETE")))
    equal(gone["deleted"], True, "deleted")


@play
async def background(run: Run) -> None:
    response = await create(run, input=run.transfer(), tools=[run.tool()], background=True)
    statuses = [response["status"]]
    while response["status"] in {"queued", "in_progress"}:
        await asyncio.sleep(0.2)
        lines = await curl(run, f"/{response['id']}?api-version=preview")
        response = json.loads(b"".join(lines))
        check_hidden(response)
        statuses.append(response["status"])
    run.seen["statuses"] = statuses
    run.check_held(response, text_in(response))
    run.keep(response, text_in(response))


@play
async def cancel(run: Run) -> None:
    response = await create(run, input=run.transfer(), tools=[run.tool()], background=True)
    status = response["status"]
    while status == "queued":
        path = f"/{response['id']}?api-version=preview"
        status = json.loads(b"".join(await curl(run, path)))["status"]
    # Long enough for the call to be held.
    await asyncio.sleep(4)
    statuses = []
    for action, post in (("", ()), ("/cancel", ("-X", "POST")), ("/cancel", ("-X", "POST"))):
        path = f"/{response['id']}{action}?api-version=preview"
        statuses.append(json.loads(b"".join(await curl(run, path, *post)))["status"])
    run.seen["statuses"] = statuses
    equal(statuses[0], "in_progress", "before")


@play
async def resume(run: Run) -> None:
    body = {"model": MODEL, "input": run.transfer(), "tools": [run.tool()]}
    data = json.dumps({**body, "background": True, "stream": True})
    seen = events_in(await curl(run, "?api-version=preview", "-d", data, lines=12))
    path = (
        f"/{seen[0]['response']['id']}?stream=true&starting_after=3&api-version=2025-04-01-preview"
    )
    rest = events_in(await curl(run, path))
    final = check_events(seen[:4] + rest)
    equal(text_of(rest).startswith(EXECUTED), True, "text")
    run.check_held(final, text_in(final))
    run.keep(final, text_in(final))


@play
async def drawing(run: Run) -> None:
    [header] = [f"{name}: {value}" for name, value in DRAWN.items()]
    tool = {"type": "image_generation", **({"partial_images": 2} if run.mode == "stream" else {})}
    final = await create(run, "-H", header, input=f"Draw an otter for {run.case}", tools=[tool])
    partial = run.seen.pop("partial", [])
    equal(len(partial), 2 if run.mode == "stream" else 0, "partial images")
    [drawn] = [item for item in final["output"] if item["type"] == "image_generation_call"]
    for picture in (*partial, drawn["result"]):
        check_picture(picture)


@play
async def computer(run: Run) -> None:
    tools = [SCREEN, run.tool()]
    body = {"model": "computer-use-preview", "truncation": "auto", "tools": tools}
    first = await create(run, input=f"Use the computer and {run.transfer()}", **body)
    call = first["output"][-1]
    equal((call["type"], call["action"]["type"]), ("computer_call", "screenshot"), "call")
    answer = [screenshot(call)]
    final = await create(run, previous_response_id=first["id"], input=answer, **body)
    equal("mcp_call" in run.seen["items"], True, "items")
    equal("screenshot" in text_in(final), True, text_in(final))


@play
async def conversation(run: Run) -> None:
    name = (await read(run, "conversations", "-d", "{}"))["id"]
    body = {"tools": [run.tool()], "conversation": name}
    final = await create(run, input=run.transfer(), **body)
    run.check_held(final, text_in(final))
    listed = await read(run, f"conversations/{name}/items?order=asc")
    kinds = [item["type"] for item in listed["data"]]
    equal(kinds, ["message", "mcp_list_tools", "mcp_call", "message"], "items")
    final = await create(run, input="Thank you", conversation=name)
    equal(text_in(final), "You said: Thank you", "text")
    equal((await read(run, f"conversations/{name}", "-X", "DELETE"))["deleted"], True, "deleted")


@play
async def files(run: Run) -> None:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(run.case.encode())
        file.flush()
        form = ("-F", "purpose=vision", "-F", f"file=@{file.name}")
        name = (await read(run, "files", *form))["id"]
    listed = await read(run, "files?purpose=vision")
    equal(name in [one["id"] for one in listed["data"]], True, "listed")
    equal((await read(run, f"files/{name}"))["bytes"], len(run.case), "bytes")
    content = b"".join(await curl(run, f"files/{name}/content"))
    equal(content, run.case.encode(), "content")
    part = {"type": "input_image", "file_id": name}
    await create(run, input=[{"role": "user", "content": [part]}])
    equal((await read(run, f"files/{name}", "-X", "DELETE"))["deleted"], True, "deleted")
    equal("error" in await read(run, f"files/{name}"), True, "gone")


@play
async def chat(run: Run) -> None:
    text = f"Hello from {run.case}"
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    if run.mode == "stream":
        lines = await curl(run, "chat/completions", "-d", json.dumps({**body, "stream": True}))
        equal(lines[-2], b"data: [DONE]\n", "end")
        data = [line[6:] for line in lines if line.startswith(b"data: {")]
        chunks = [json.loads(line) for line in data]
        parts = [choice["delta"].get("content") for c in chunks for choice in c["choices"]]
        said = "".join(part or "" for part in parts)
    else:
        answer = await read(run, "chat/completions", "-d", json.dumps(body))
        said = answer["choices"][0]["message"]["content"]
    equal(said, f"You said: {text}", "text")


@play
async def embeddings(run: Run) -> None:
    data = json.dumps({"model": "text-embedding-3-small", "input": ["Hello", "Good day"]})
    answer = await read(run, "embeddings", "-d", data)
    first, second = [one["embedding"] for one in answer["data"]]
    equal(len(first) == len(second) > 0 and first != second, True, "vectors")


@play
async def models(run: Run) -> None:
    names = [model["id"] for model in (await read(run, "models"))["data"]]
    equal((await read(run, f"models/{names[0]}"))["id"], names[0], "model")


if __name__ == "__main__":
    main(PLAYS)
