"""The OpenAI Agents SDK with a hosted MCP tool whose approval callback must never be called."""

from __future__ import annotations

import time
from typing import Any

import openai
from agents import (
    Agent,
    HostedMCPTool,
    ImageGenerationTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import (
    DRAWN,
    EXECUTED,
    FAULTS,
    MODEL,
    OWN,
    PIXEL,
    REASON,
    TOOLS,
    Play,
    Run,
    check_events,
    check_hidden,
    check_picture,
    equal,
    main,
)

PLAYS: dict[str, Play] = {}


def play(function: Play) -> Play:
    """Of the capability that is the function's name."""
    PLAYS[function.__name__] = function
    return function


def client_of(run: Run, **options: Any) -> openai.AsyncOpenAI:
    """The official client, which counts what it posts."""

    async def count(request: Any) -> None:
        run.attempts += request.method == "POST"

    http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
    options = {"base_url": f"{run.url}/openai/v1/", "api_key": run.key, **options}
    return openai.AsyncOpenAI(http_client=http, **options)


def model_of(run: Run, **options: Any) -> OpenAIResponsesModel:
    """The model of the Responses API."""
    return OpenAIResponsesModel(MODEL, client_of(run, **options))


def hosted(run: Run, **changes: Any) -> HostedMCPTool:
    """The bank, and a callback that would say yes to everything, were it ever asked."""

    def approve(_: Any) -> dict[str, bool]:
        run.seen["approval_callbacks"] = run.seen.get("approval_callbacks", 0) + 1
        return {"approve": True}

    tool: Any = run.tool(**changes)
    return HostedMCPTool(tool_config=tool, on_approval_request=approve)


async def ask(run: Run, text: Any, tools: list[Any], **options: Any) -> Any:
    """One run of an agent in the mode of the run: its result."""
    model = options.pop("model", None) or model_of(run)
    settings = ModelSettings(extra_headers=options.pop("headers", None))
    agent = Agent(name="Teller", model=model, tools=tools, model_settings=settings)
    if run.mode == "stream":
        result = Runner.run_streamed(agent, text, **options)
        raw = [
            event.data.to_dict()
            async for event in result.stream_events()
            if event.type == "raw_response_event"
        ]
        check_events(raw)
        run.seen["events"] = len(raw)
    else:
        result = await Runner.run(agent, text, **options)
    items = [item.to_dict() for response in result.raw_responses for item in response.output]
    check_hidden(items)
    kinds = [item["type"] for item in items]
    run.seen.update(id=result.last_response_id, text=result.final_output, items=kinds)
    return result


async def held(run: Run, **options: Any) -> None:
    """One call of the bank in a single turn, of which the callback knows nothing."""
    result = await ask(run, run.transfer(), [hosted(run)], **options)
    equal(len(result.raw_responses), 1, "turns")
    equal(result.interruptions, [], "interruptions")
    if run.capability == "denied":
        equal(REASON in result.final_output, True, result.final_output)
    else:
        equal(run.seen["items"], ["mcp_list_tools", "mcp_call", "message"], "items")
        equal(result.final_output.startswith(EXECUTED), True, result.final_output)


@play
async def text(run: Run) -> None:
    result = await ask(run, f"Hello from {run.case}", [])
    equal(result.final_output, f"You said: Hello from {run.case}", "text")


@play
async def approved(run: Run) -> None:
    await held(run)
    equal(run.attempts, 1, "attempts")


@play
async def denied(run: Run) -> None:
    await held(run)


@play
async def credential(run: Run) -> None:
    result = await ask(run, run.transfer(), [hosted(run, headers=OWN)])
    equal(result.final_output.startswith(EXECUTED), True, result.final_output)


@play
async def wait(run: Run) -> None:
    began = time.monotonic()
    await approved(run)
    run.seen["waited"] = time.monotonic() - began


@play
async def function(run: Run) -> None:
    @function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    result = await ask(run, 'function weather {"city": "Riga"}', [weather])
    equal("sunny in Riga" in result.final_output, True, result.final_output)


@play
async def image(run: Run) -> None:
    parts = [
        {"type": "input_text", "text": "What is in these images?"},
        {"type": "input_image", "image_url": "https://images.example/otter.jpg", "detail": "auto"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    ]
    result = await ask(run, [{"role": "user", "content": parts}], [])
    equal("What is in these images?" in result.final_output, True, result.final_output)


@play
async def chain(run: Run) -> None:
    first = await ask(run, run.transfer(), [hosted(run)])
    by_id = await ask(run, "And by id?", [], previous_response_id=first.last_response_id)
    equal("And by id?" in by_id.final_output, True, by_id.final_output)
    whole = [*first.to_input_list(), {"role": "user", "content": "And with everything?"}]
    again = await ask(run, whole, [hosted(run)])
    equal("And with everything?" in again.final_output, True, again.final_output)


@play
async def drawing(run: Run) -> None:
    tool = ImageGenerationTool(tool_config={"type": "image_generation"})
    text = f"Draw an otter for {run.case}"
    result = await ask(run, text, [tool], headers=DRAWN)
    items = [item for response in result.raw_responses for item in response.output]
    [drawn] = [item for item in items if item.type == "image_generation_call"]
    check_picture(drawn.result)


@play
async def conversation(run: Run) -> None:
    client = client_of(run)
    name = (await client.conversations.create()).id
    await held(run, conversation_id=name)
    result = await ask(run, "Thank you", [], conversation_id=name)
    equal(result.final_output, "You said: Thank you", "text")


@play
async def chat(run: Run) -> None:
    agent = Agent(name="Teller", model=OpenAIChatCompletionsModel(MODEL, client_of(run)))
    text = f"Hello from {run.case}"
    if run.mode == "stream":
        result: Any = Runner.run_streamed(agent, text)
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, text)
    equal(result.final_output, f"You said: {text}", "text")


@play
async def unknown(run: Run) -> None:
    result = await ask(run, f"Hello from {run.case} quirk: unknown-event", [])
    equal("Hello from" in result.final_output, True, result.final_output)


@play
async def retry(run: Run) -> None:
    # The header would tell the gateway how impatient the client is, and be answered in time.
    patient = {"x-stainless-read-timeout": "600"}
    await held(run, model=model_of(run, api_key=run.strict, timeout=5.0), headers=patient)


@play
async def refusal(run: Run) -> None:
    place = run.refused()
    headers = {"api-key": place["other"]} if "other" in place else None
    options = {"base_url": place["url"], "api_key": place["key"], "default_headers": headers}
    model = model_of(run, **options)
    text = run.transfer(*FAULTS.get(run.mode, ()))
    tools = [hosted(run, **TOOLS.get(run.mode, {}))]
    try:
        await ask(run, text, tools, model=model)
    except openai.APIStatusError as error:
        run.seen.update(statuses=[error.status_code], code=error.code)
        return
    raise AssertionError("not refused")


if __name__ == "__main__":
    set_tracing_disabled(True)
    main(PLAYS)
