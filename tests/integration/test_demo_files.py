"""Uploaded files of the scripted upstream, and the images and files inside messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import openai
import pytest

from tests.support.demo import World, open_world, refused

pytestmark = pytest.mark.e2e

DATA = "data:image/png;base64,aW1n"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack)


async def upload(world: World, name: str, purpose: str = "vision"):
    return await world.client.files.create(file=(name, name.encode()), purpose=purpose)


def shows(*parts: dict, text: str = "what is in this image?") -> list[dict]:
    content = [{"type": "input_text", "text": text}, *parts]
    return [{"role": "user", "content": content}]


async def test_files_are_kept_listed_and_deleted(world: World) -> None:
    files = world.client.files
    picture = await upload(world, "a.png")
    assert picture.id.startswith("assistant-")
    assert (picture.object, picture.bytes, picture.filename) == ("file", 5, "a.png")
    assert (picture.purpose, picture.status) == ("vision", "processed")
    assert (await files.retrieve(picture.id)) == picture
    assert (await files.content(picture.id)).content == b"a.png"
    for purpose in ("assistants", "batch", "fine-tune", "evals"):
        assert (await upload(world, purpose, purpose)).purpose == purpose

    newest_first = [file.filename async for file in files.list(limit=2)]
    assert newest_first == ["evals", "fine-tune", "batch", "assistants", "a.png"]
    oldest = await files.list(order="asc", limit=1)
    assert (oldest.data, oldest.has_more) == ([picture], True)
    assert [file.id async for file in files.list(purpose="vision")] == [picture.id]

    assert (await files.delete(picture.id)).deleted is True
    for call in (files.retrieve, files.content, files.delete):
        problem = await refused(call(picture.id))
        assert problem.status_code == 404
        assert picture.id in problem.message


async def test_a_purpose_that_azure_does_not_know_is_refused(world: World) -> None:
    for purpose in ("user_data", "anything"):
        problem = await refused(upload(world, "a.pdf", purpose))
        assert (problem.status_code, problem.code) == (400, "invalidPayload")
    bare = await world.post("/v1/files", json={"purpose": "vision"})
    assert bare.json()["error"]["code"] == "invalidPayload"
    without = await world.post("/v1/files", data={"purpose": "vision"}, files={"other": b"x"})
    assert (without.status_code, without.json()["error"]["param"]) == (400, "file")


async def test_the_answer_says_what_was_shown(world: World) -> None:
    picture = {"type": "input_image", "file_id": (await upload(world, "a.png")).id}
    linked = {"type": "input_image", "image_url": "https://pictures.example/a.png"}
    inline = {"type": "input_image", "image_url": DATA, "detail": "high"}
    report = {"type": "input_file", "file_id": (await upload(world, "b", "assistants")).id}
    one = await world.ask(shows(inline), model="gpt-4o", tools=[])
    assert one.output_text == "You said: what is in this image? You showed 1 image."
    all_of_them = await world.ask(shows(picture, linked, inline, report), tools=[])
    assert all_of_them.output_text.endswith("You showed 3 images. You attached 1 file.")
    next_turn = await world.ask("And now?", previous_response_id=one.id, tools=[])
    assert next_turn.output_text == "You said: And now?"


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ({"image_url": "data:image/png;base64,###"}, "invalid_base64"),
        ({"image_url": "data:image/png;base64,"}, "empty_base64"),
        ({"image_url": "data:image/tiff;base64,aW1n"}, "invalid_value"),
        ({"image_url": "data:text/html;base64,aW1n"}, "invalid_value"),
        ({"image_url": "pictures/a.png"}, "invalid_value"),
        ({"image_url": "file:///etc/passwd"}, "invalid_value"),
        ({"file_id": "assistant-unknown"}, "invalid_value"),
        ({}, "missing_required_parameter"),
    ],
)
async def test_an_image_that_cannot_be_seen_is_refused(
    world: World, image: dict, code: str
) -> None:
    problem = await refused(world.ask(shows({"type": "input_image", **image}), tools=[]))
    assert (problem.status_code, problem.code) == (400, code)
    assert problem.param.startswith("input[0].content[1].")


async def test_a_deleted_file_can_be_used_no_more(world: World) -> None:
    file = await upload(world, "a.pdf", "assistants")
    part = {"type": "input_file", "file_id": file.id}
    assert await world.ask(shows(part), tools=[])
    await world.client.files.delete(file.id)
    with pytest.raises(openai.BadRequestError, match=file.id):
        await world.ask(shows(part), tools=[])
    problem = await refused(world.ask(shows({"type": "input_file"}), tools=[]))
    assert problem.code == "missing_required_parameter"
