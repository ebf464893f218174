"""The official Python client, in whichever version the interpreter's environment holds.

One function for each capability; how a request is made and read is in openai_asking.py.
"""

from __future__ import annotations

import time
from typing import Any

import openai
from checks import (
    DRAWN,
    EXECUTED,
    FAULTS,
    MODEL,
    OWN,
    PIXEL,
    SCREEN,
    TOOLS,
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
from openai_asking import ask, client_of, collected, opened, settled

PLAYS: dict[str, Play] = {}
RUNNING = {"queued", "in_progress"}


def play(function: Play) -> Play:
    """Of the capability that is the function's name."""
    PLAYS[function.__name__] = function
    return function


@play
async def text(run: Run) -> None:
    _, text = await ask(run, client_of(run), input=f"Hello from {run.case}")
    equal(text, f"You said: Hello from {run.case}", "text")


@play
async def approved(run: Run) -> None:
    final, text = await ask(run, client_of(run), input=run.transfer(), tools=[run.tool()])
    run.check_held(final, text)
    equal(run.attempts, 1, "attempts")


@play
async def denied(run: Run) -> None:
    final, text = await ask(run, client_of(run), input=run.transfer(), tools=[run.tool()])
    run.check_held(final, text, denied=True)


@play
async def credential(run: Run) -> None:
    tools = [run.tool(headers=OWN)]
    final, text = await ask(run, client_of(run), input=run.transfer(), tools=tools)
    run.check_held(final, text)


@play
async def wait(run: Run) -> None:
    began = time.monotonic()
    await approved(run)
    run.seen["waited"] = time.monotonic() - began


@play
async def azure(run: Run) -> None:
    v1 = {"base_url": f"{run.url}/openai/v1/", "api_version": "preview"}
    deployment = f"{run.url}/openai/deployments/{MODEL}"
    options: dict[str, Any] = {
        "key": {"api_key": run.key, **v1},
        "token": {"azure_ad_token_provider": lambda: run.key, **v1},
        "endpoint": {
            "api_key": run.key,
            "azure_endpoint": run.url,
            "api_version": "2025-04-01-preview",
        },
        "deployment": {"api_key": run.key, "base_url": deployment, "api_version": "preview"},
    }[run.mode]
    client = client_of(run, "AzureOpenAI", **options)
    final, text = await ask(run, client, input=run.transfer(), tools=[run.tool()])
    run.check_held(final, text)
    again = await settled(client.responses.retrieve(final["id"]))
    equal(again.output_text, text, "retrieved")


@play
async def function(run: Run) -> None:
    client = client_of(run)
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    first, _ = await ask(run, client, input='function weather {"city": "Riga"}', tools=tools)
    call = first["output"][-1]
    equal((call["type"], call["name"]), ("function_call", "weather"), "call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny in Riga"}
    _, text = await ask(run, client, previous_response_id=first["id"], input=[output], tools=tools)
    equal("sunny in Riga" in text, True, text)


@play
async def image(run: Run) -> None:
    parts = [
        {"type": "input_text", "text": "What is in these images?"},
        {"type": "input_image", "image_url": "https://images.example/otter.jpg"},
        {"type": "input_image", "image_url": PIXEL},
    ]
    client = client_of(run)
    final, text = await ask(run, client, input=[{"role": "user", "content": parts}])
    equal("What is in these images?" in text, True, text)
    listing = await settled(client.responses.input_items.list(final["id"]))
    listed = [part["type"] for part in listing.data[0].to_dict()["content"]]
    equal(listed, ["input_text", "input_image", "input_image"], "parts")


@play
async def chain(run: Run) -> None:
    client = client_of(run)
    question = {"role": "user", "content": run.transfer()}
    first = await settled(
        client.responses.create(model=MODEL, input=[question], tools=[run.tool()])
    )
    final, text = await ask(run, client, input="And by id?", previous_response_id=first.id)
    equal("And by id?" in text, True, text)
    equal(final["previous_response_id"], first.id, "previous")
    whole = [question, *first.output, {"role": "user", "content": "And with everything?"}]
    _, text = await ask(run, client, input=whole, tools=[run.tool()])
    equal("And with everything?" in text, True, text)


@play
async def reasoning(run: Run) -> None:
    client = client_of(run)
    kept = {"store": False, "include": ["reasoning.encrypted_content"], "tools": [run.tool()]}
    body = {**kept, "model": "o4-mini", "reasoning": {"effort": "medium"}}
    question = {"role": "user", "content": run.transfer()}
    first = await settled(client.responses.create(input=[question], **body))
    thoughts = [item for item in first.output if item.type == "reasoning"]
    equal([bool(item.encrypted_content) for item in thoughts], [True] * len(thoughts), "encrypted")
    equal(bool(thoughts), True, "thoughts")
    whole = [question, *first.output, {"role": "user", "content": "And then?"}]
    _, text = await ask(run, client, input=whole, **body)
    equal("And then?" in text, True, text)


@play
async def stored(run: Run) -> None:
    client = client_of(run)
    final, text = await ask(run, client, input="Keep this")
    again = await settled(client.responses.retrieve(final["id"]))
    equal((again.id, again.output_text), (final["id"], text), "retrieved")
    listing = await settled(client.responses.input_items.list(final["id"]))
    equal(listing.data[0].content[0].text, "Keep this", "input")
    await settled(client.responses.delete(final["id"]))
    try:
        await settled(client.responses.retrieve(final["id"]))
    except openai.NotFoundError:
        return
    raise AssertionError("deleted, and still there")


@play
async def background(run: Run) -> None:
    client = client_of(run)
    body = {"model": MODEL, "input": run.transfer(), "tools": [run.tool()], "background": True}
    response = await settled(client.responses.create(**body))
    statuses = [response.status]
    while response.status in RUNNING:
        time.sleep(0.2)
        response = await settled(client.responses.retrieve(response.id))
        check_hidden(response.to_dict())
        statuses.append(response.status)
    run.seen["statuses"] = statuses
    run.check_held(response.to_dict(), response.output_text)
    run.keep(response.to_dict(), response.output_text)


@play
async def cancel(run: Run) -> None:
    client = client_of(run)
    body = {"model": MODEL, "input": run.transfer(), "tools": [run.tool()], "background": True}
    response = await settled(client.responses.create(**body))
    # Long enough for the call to be held.
    time.sleep(4)
    statuses = [(await settled(client.responses.retrieve(response.id))).status]
    for _ in range(2):
        response = await settled(client.responses.cancel(response.id))
        statuses.append(response.status)
    run.keep(response.to_dict(), response.output_text)
    run.seen["statuses"] = statuses
    equal(statuses[0], "in_progress", "before")


@play
async def resume(run: Run) -> None:
    client = client_of(run)
    body = {"model": MODEL, "input": run.transfer(), "tools": [run.tool()], "background": True}
    left = await settled(client.responses.create(stream=True, **body))
    seen = await collected(left, 4)
    await settled(left.close())
    response_id = seen[0]["response"]["id"]
    if run.mode == "helper":
        again = client.responses.stream(response_id=response_id, starting_after=3)
        async with opened(again) as stream:
            rest = await collected(stream)
            response = await settled(stream.get_final_response())
        final, text = response.to_dict(), response.output_text
        equal([event["sequence_number"] > 3 for event in rest], [True] * len(rest), "numbers")
    else:
        again = await settled(client.responses.retrieve(response_id, stream=True, starting_after=3))
        events = seen + await collected(again)
        final, text = check_events(events), text_of(events)
    equal(final["id"], response_id, "id")
    run.check_held(final, text)
    run.keep(final, text)


@play
async def drawing(run: Run) -> None:
    client = client_of(run, default_headers=DRAWN)
    body = {"model": MODEL, "input": f"Draw an otter for {run.case}"}
    tool: dict[str, Any] = {"type": "image_generation"}
    if run.mode == "stream":
        tool["partial_images"] = 2
        events = await collected(client.responses.create(stream=True, tools=[tool], **body))
        kind = "response.image_generation_call.partial_image"
        partial = [event for event in events if event["type"] == kind]
        equal([event["partial_image_index"] for event in partial], [0, 1], "partial images")
        for event in partial:
            check_picture(event["partial_image_b64"])
        final = check_events(events)
    else:
        final = client.responses.create(tools=[tool], **body).to_dict()
    [drawn] = [item for item in final["output"] if item["type"] == "image_generation_call"]
    check_picture(drawn["result"])
    run.keep(final, "")


@play
async def computer(run: Run) -> None:
    client = client_of(run)
    tools = [SCREEN, run.tool()]
    body = {"model": "computer-use-preview", "truncation": "auto", "tools": tools}
    text = f"Use the computer and {run.transfer()}"
    first = client.responses.create(input=text, **body)
    check_hidden(first.to_dict())
    call = first.to_dict()["output"][-1]
    equal((call["type"], call["action"]["type"]), ("computer_call", "screenshot"), "call")
    answer = client.responses.create(
        previous_response_id=first.id, input=[screenshot(call)], **body
    )
    check_hidden(answer.to_dict())
    run.keep(answer.to_dict(), answer.output_text)
    equal("mcp_call" in run.seen["items"], True, "items")
    equal("screenshot" in answer.output_text, True, answer.output_text)


@play
async def conversation(run: Run) -> None:
    client = client_of(run)
    name = client.conversations.create(metadata={"case": run.case}).id
    final, text = await ask(
        run, client, input=run.transfer(), tools=[run.tool()], conversation=name
    )
    run.check_held(final, text)
    listed = [item.type for item in client.conversations.items.list(name, order="asc")]
    equal(listed, ["message", "mcp_list_tools", "mcp_call", "message"], "items")
    _, text = await ask(run, client, input="Thank you", conversation=name)
    equal(text, "You said: Thank you", "text")
    equal(client.conversations.delete(name).deleted, True, "deleted")


@play
async def wish(run: Run) -> None:
    client = client_of(run, default_headers={"Gatepass-Wait": "return"})
    body = {"model": MODEL, "tools": [run.tool()]}
    first = client.responses.create(input=run.transfer(), **body)
    request = first.output[-1]
    equal(request.type, "mcp_approval_request", "last item")
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": False}
    second = client.responses.create(input=[answer], previous_response_id=first.id, **body)
    run.keep(second.to_dict(), second.output_text)
    equal(second.output_text.startswith(EXECUTED), True, second.output_text)


@play
async def files(run: Run) -> None:
    client = client_of(run, default_headers=DRAWN)
    content = run.case.encode()
    file = client.files.create(file=(f"{run.mode}.png", content), purpose="vision")
    equal(file.id in [one.id for one in client.files.list(purpose="vision")], True, "listed")
    equal(client.files.retrieve(file.id).bytes, len(content), "bytes")
    equal(client.files.content(file.id).content, content, "content")
    parts = [
        {"type": "input_text", "text": "What is in this image?"},
        {"type": "input_image", "file_id": file.id, "detail": "auto"},
    ]
    await ask(run, client, input=[{"role": "user", "content": parts}])
    equal(client.files.delete(file.id).deleted, True, "deleted")
    try:
        client.files.retrieve(file.id)
    except openai.NotFoundError:
        return
    raise AssertionError("deleted, and still there")


@play
async def chat(run: Run) -> None:
    client = client_of(run)
    text = f"Hello from {run.case}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    if run.mode == "stream":
        chunks = list(client.chat.completions.create(stream=True, **body))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        said = client.chat.completions.create(**body).choices[0].message.content
    equal(said, f"You said: {text}", "text")


@play
async def embeddings(run: Run) -> None:
    texts = ["Hello", "Good day"]
    answer = client_of(run).embeddings.create(model="text-embedding-3-small", input=texts)
    first, second = [one.embedding for one in answer.data]
    equal(len(first) == len(second) > 0 and first != second, True, "vectors")


@play
async def models(run: Run) -> None:
    client = client_of(run)
    names = [model.id for model in client.models.list()]
    equal(client.models.retrieve(names[0]).id, names[0], "model")


@play
async def unknown(run: Run) -> None:
    text = f"Hello from {run.case} quirk: unknown-event"
    final, _ = await ask(run, client_of(run), input=text)
    equal(final["status"], "completed", "status")


@play
async def runner(run: Run) -> None:
    from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner

    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    functions = [RegisteredFunction(tool, lambda _: "sunny")]
    params = {"model": MODEL, "input": run.transfer(), "tools": [run.tool()]}
    streaming = run.mode == "stream"
    response = ResponsesToolRunner(functions=functions).run(
        client_of(run), params, stream=streaming
    )
    run.check_held(response.to_dict(), response.output_text)
    run.keep(response.to_dict(), response.output_text)
    equal(run.attempts, 1, "turns")


@play
async def retry(run: Run) -> None:
    # The header would tell the gateway how impatient the client is, and be answered in time.
    patient = {"x-stainless-read-timeout": "600"}
    client = client_of(run, api_key=run.strict, timeout=5.0)
    body = {"input": run.transfer(), "tools": [run.tool()], "extra_headers": patient}
    final, text = await ask(run, client, **body)
    run.check_held(final, text)


@play
async def refusal(run: Run) -> None:
    place = run.refused()
    headers = {"api-key": place["other"]} if "other" in place else None
    options = {"base_url": place["url"], "api_key": place["key"], "default_headers": headers}
    client = client_of(run, **options)
    text = run.transfer(*FAULTS.get(run.mode, ()))
    tools = [run.tool(**TOOLS.get(run.mode, {}))]
    try:
        await settled(client.responses.create(model=MODEL, input=text, tools=tools))
    except openai.APIStatusError as error:
        run.seen["statuses"] = [error.status_code]
        run.seen["code"] = error.code
        return
    raise AssertionError("not refused")


if __name__ == "__main__":
    main(PLAYS)
