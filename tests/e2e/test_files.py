"""Files through the gateway: whose they are, what they may be for, and how they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from sqlmodel import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo.runner import serve
from gateway.store.tables import UploadedFile
from tests.support.attempts import House, error_of, open_house
from tests.support.demo import KEY
from tests.support.gateway import MODEL, Gateway, open_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

FILES = "/openai/v1/files"
LIMIT = 200_000
BOUNDARY = "----gatepass-test"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("house")
        yield await open_house(stack, folder, GATEPASS_MAX_FILE_BYTES=str(LIMIT))


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    """The ledger must be sound after every test."""
    yield shared
    await shared.gateway.verify()


async def client_of(house: House, key: str | None = None) -> openai.AsyncOpenAI:
    return await house.gateway.app(**({} if key is None else {"api_key": key}))


async def upload(house: House, content: bytes = b"hello", key: str | None = None) -> str:
    """The id of a new file."""
    client = await client_of(house, key)
    return (await client.files.create(file=("a.txt", content), purpose="assistants")).id


async def owners(gateway: Gateway) -> dict[str, str]:
    """Whose file is which, as it is stored."""
    assert gateway.services is not None
    async with gateway.services.db.reading() as session:
        rows = await session.exec(select(UploadedFile))
        return {row.file_id: row.app_id for row in rows}


def part(name: str, text: str | bytes, more: str = "") -> bytes:
    """One part of a form, written by hand."""
    raw = text if isinstance(text, bytes) else text.encode()
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + raw + b"\r\n"


FILE = part("file", "hello", '; filename="a.txt"')
PURPOSE = part("purpose", "assistants")


def form(*parts: bytes) -> dict[str, Any]:
    """Options of a request with such a form."""
    content = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return {
        "content": content,
        "headers": {"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    }


# --- what works -----------------------------------------------------------------------------


async def test_a_file_is_uploaded_listed_read_and_deleted(house: House):
    client = await client_of(house)
    content = bytes(range(256)) * 500
    file = await client.files.create(file=('Отчёт "1".bin', content), purpose="assistants")
    assert (file.bytes, file.filename) == (len(content), "Отчёт %221%22.bin")
    assert (await owners(house.gateway))[file.id]
    assert file.id in [item.id async for item in client.files.list()]
    assert (await client.files.retrieve(file.id)).bytes == len(content)
    read = await client.files.content(file.id)
    assert read.content == content
    assert read.response.headers["content-type"] == "application/octet-stream"
    assert read.response.headers["x-content-type-options"] == "nosniff"
    assert (await client.files.delete(file.id)).deleted
    assert file.id not in await owners(house.gateway)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    recorded = [
        (entry["method"], entry["route"])
        for entry in await house.gateway.records("request.completed")
        if entry["subject"]["app"] == "support-bot"
    ]
    assert recorded[-5:] == [
        ("POST", "/files"),
        ("GET", "/files"),
        ("GET", f"/files/{file.id}"),
        ("GET", f"/files/{file.id}/content"),
        ("DELETE", f"/files/{file.id}"),
    ]


async def test_a_file_is_shown_to_the_model_by_its_owner_alone(house: House):
    file_id = await upload(house)
    body = {"model": MODEL, "input": [shows(file_id)]}
    assert (await house.post(body)).status_code == 200
    headers = {"api-key": house.other}
    expected = (404, "file_not_found")
    path = "/openai/v1/responses"
    await house.refused("POST", path, expected, json=body, headers=headers, app="other-bot")
    chat = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": file_id}}]}],
    }
    path = "/openai/v1/chat/completions"
    assert (await house.gateway.raw("POST", path, json=chat)).status_code == 200
    await house.refused("POST", path, expected, json=chat, headers=headers, app="other-bot")


def shows(file_id: str) -> dict[str, Any]:
    part = {"type": "input_file", "file_id": file_id}
    return {"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, part]}


async def test_a_form_is_written_anew_for_azure(house: House):
    expiry = part("expires_after[anchor]", "created_at") + part("expires_after[seconds]", "3600")
    answer = await house.gateway.raw("POST", FILES, **form(FILE, expiry, PURPOSE))
    assert answer.status_code == 200, answer.text
    asked = (await house.gateway.upstream_requests())[-1]
    assert BOUNDARY not in asked["body"]
    assert asked["headers"]["content-type"].startswith("multipart/form-data; boundary=gatepass-")
    assert int(asked["headers"]["content-length"]) == len(asked["body"])
    assert 'name="expires_after[seconds]"\r\n\r\n3600' in asked["body"]
    assert "Content-Type: application/octet-stream\r\n\r\nhello\r\n" in asked["body"]


async def test_lists_hold_the_apps_own_files_page_by_page(house: House):
    key = house.narrow
    mine = [await upload(house, key=key) for _ in range(3)]
    other = await upload(house)
    client = await client_of(house, key)
    assert {item.id async for item in client.files.list()} == set(mine)
    page = await client.files.list(limit=2, order="asc")
    assert (len(page.data), page.has_more) == (2, True)
    rest = await client.files.list(limit=2, order="asc", after=page.data[-1].id)
    assert (len(rest.data), rest.has_more) == (1, False)
    assert {item.id for item in [*page.data, *rest.data]} == set(mine)
    assert [item.id async for item in client.files.list(limit=1)] == [
        item.id for item in reversed([*page.data, *rest.data])
    ]
    assert (await client.files.list(purpose="vision")).data == []
    headers = {"api-key": key}
    raw = (await house.gateway.raw("GET", FILES, headers=headers, params={"limit": 2})).json()
    assert (raw["first_id"], raw["last_id"]) == (raw["data"][0]["id"], raw["data"][-1]["id"])
    await house.refused(
        "GET", f"{FILES}?after={other}", (404, "file_not_found"), headers=headers, app="narrow-bot"
    )
    for query in ("limit=0", "limit=x", "limit=10001", "order=up"):
        async with house.untouched():
            answer = await house.gateway.raw("GET", f"{FILES}?{query}")
        assert answer.status_code == 400


async def test_an_error_of_azure_is_passed_on_and_makes_no_owner(house: House):
    before = await owners(house.gateway)
    client = await client_of(house)
    with pytest.raises(openai.BadRequestError):  # Azure does not know this purpose
        await client.files.create(file=("a.txt", b"x"), purpose="user_data")
    assert await owners(house.gateway) == before
    record = (await house.gateway.records("request.completed"))[-1]
    assert (record["status"], record["outcome"]) == (400, "rejected")


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["batch", "evals", "fine-tune", "Assistants", "", "x" * 3000])
async def test_B_38_files_that_could_hold_requests_are_refused(house: House, purpose: str):
    options = form(part("purpose", purpose), FILE)
    await house.refused("POST", FILES, (403, "purpose_refused"), **options)


LATE = part("purpose", "assistants") + FILE + part("purpose", "batch")
FORMS: dict[str, tuple[bytes, str]] = {
    "two purposes": (PURPOSE + part("purpose", "batch") + FILE, "duplicate_member"),
    "the same purpose twice": (PURPOSE + PURPOSE + FILE, "duplicate_member"),
    "a purpose behind the file": (LATE, "duplicate_member"),
    "two files": (PURPOSE + FILE + FILE, "invalid_form"),
    "a purpose that is a file": (
        part("purpose", "assistants", '; filename="p"') + FILE,
        "invalid_form",
    ),
    "a file that is a text": (PURPOSE + part("file", "hello"), "invalid_form"),
    "a field that nobody knows": (
        PURPOSE + part("endpoint", "/v1/responses") + FILE,
        "invalid_form",
    ),
    "a name of another case": (PURPOSE + part("Purpose", "batch") + FILE, "invalid_form"),
    "a part without a name": (PURPOSE + FILE + part("", "batch"), "invalid_form"),
    "a file without a name": (PURPOSE + part("file", "x", '; filename=""'), "invalid_form"),
    "a name with a line end": (PURPOSE + part("file", "x", '; filename="a\tb"'), "invalid_form"),
    "an expiry with line ends": (
        PURPOSE + part("expires_after[anchor]", 'a\r\nb: "c"') + FILE,
        "invalid_form",
    ),
}


@pytest.mark.parametrize("name", FORMS)
async def test_B_30_a_form_that_two_parsers_read_differently_is_refused(house: House, name: str):
    content, code = FORMS[name]
    await house.refused("POST", FILES, (400, code), **form(content))


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={BOUNDARY}; boundary=other",
        f"multipart/form-data; charset=utf-16; boundary={BOUNDARY}",
        f"multipart/mixed; boundary={BOUNDARY}",
        "application/x-www-form-urlencoded",
        "application/json",
    ],
)
async def test_B_30_a_form_of_another_kind_is_refused(house: House, content_type: str):
    options = {**form(PURPOSE, FILE), "headers": {"content-type": content_type}}
    await house.refused("POST", FILES, (415, "content_type_unsupported"), **options)


async def test_a_broken_or_missing_file_is_refused(house: House):
    async with house.untouched():
        for parts, code in (
            ((PURPOSE,), "missing_required_parameter"),
            ((FILE,), "missing_required_parameter"),
        ):
            answer = await house.gateway.raw("POST", FILES, **form(*parts))
            assert (answer.status_code, error_of(answer)["code"]) == (400, code)


async def test_a_file_that_is_too_large_is_refused_and_one_at_the_limit_is_not(house: House):
    large = part("file", b"x" * (LIMIT + 1), '; filename="a"')
    await house.refused("POST", FILES, (413, "body_too_large"), **form(PURPOSE, large))
    huge = part("file", b"x" * (LIMIT + 100_000), '; filename="a"')
    await house.refused("POST", FILES, (413, "body_too_large"), **form(PURPOSE, huge))
    assert await upload(house, b"x" * LIMIT)
    options = form(PURPOSE, FILE)
    options["headers"]["content-encoding"] = "gzip"
    await house.refused("POST", FILES, (415, "content_encoding_unsupported"), **options)


@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("DELETE", ""), ("GET", "/content")], ids=str
)
async def test_B_06_a_file_of_another_app_does_not_exist(house: House, method: str, rest: str):
    file_id = await upload(house)
    elsewhere = await house.gateway.world.client.files.create(
        file=("b.txt", b"x"), purpose="assistants"
    )
    for root in ("/openai/v1", "/v1", "/openai"):
        await house.refused(
            method,
            f"{root}/files/{file_id}{rest}",
            (404, "file_not_found"),
            headers={"api-key": house.other},
            app="other-bot",
        )
        await house.refused(method, f"{root}/files/{elsewhere.id}{rest}", (404, "file_not_found"))
    client = await client_of(house, house.other)
    assert [item.id async for item in client.files.list()] == []
    assert (await house.gateway.raw("GET", f"{FILES}/{file_id}")).status_code == 200


async def test_files_have_the_methods_that_they_have(house: House):
    file_id = await upload(house)
    for method, path in (
        ("PUT", FILES),
        ("DELETE", FILES),
        ("POST", f"{FILES}/{file_id}"),
        ("DELETE", f"{FILES}/{file_id}/content"),
    ):
        await house.refused(method, path, (405, "method_not_allowed"))
    await house.refused("POST", "/openai/v1/uploads", (403, "route_refused"), json={})
    await house.refused("POST", "/openai/v1/batches", (403, "route_refused"), json={})


# --- an Azure of another kind ---------------------------------------------------------------


class Old:
    """An Azure that knows no pages, or cuts every list after one file."""

    def __init__(self, *, paged: bool) -> None:
        self.paged = paged
        self.ids = [f"assistant-{number}" for number in range(5)]
        self.next = iter(self.ids)
        self.lists = 0

    async def files(self, request: Request) -> Response:
        if request.method == "POST":
            async with request.form():
                return JSONResponse(described(next(self.next)))
        self.lists += 1
        ids = self.ids
        if self.paged:
            after = request.query_params.get("after")
            start = self.ids.index(after) + 1 if after else 0
            ids = self.ids[start : start + 1]
        more = not self.paged or ids[-1:] != self.ids[-1:]
        return JSONResponse({"data": [described(i) for i in ids], "has_more": more})

    async def gone(self, _: Request) -> Response:
        error = {"message": f"gone, {KEY}", "code": "404"}
        return JSONResponse({"error": error}, status_code=404)


def described(file_id: str) -> dict[str, Any]:
    number = int(file_id.partition("-")[2])
    return {"object": "file", "id": file_id, "created_at": number, "purpose": "assistants"}


@pytest.mark.parametrize("paged", [True, False])
async def test_a_list_is_true_whatever_azure_knows_of_pages(tmp_path: Path, paged: bool):
    old = Old(paged=paged)
    routes = [
        Route("/openai/v1/files", old.files, methods=["GET", "POST"]),
        Route("/openai/v1/files/{file_id}", old.gone, methods=["GET", "DELETE"]),
    ]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(Starlette(routes=routes)))
        house = await open_house(stack, tmp_path, GATEPASS_UPSTREAM_URL=f"{url}/openai/v1/")
        first = await upload(house)
        assert await upload(house, key=house.other)
        third = await upload(house)
        old.lists = 0
        client = await client_of(house)
        assert [item.id async for item in client.files.list(limit=1)] == [third, first]
        # Two questions of the client, and nothing is asked once all files are found.
        assert old.lists == (6 if paged else 2)
        nobody = await client_of(house, house.narrow)
        assert (await nobody.files.list()).data == []
        # What Azure has lost is nobody's any more once somebody has tried to delete it.
        with pytest.raises(openai.NotFoundError) as problem:
            await client.files.delete(first)
        assert KEY not in problem.value.response.text
        for _ in range(100):
            if first not in await owners(house.gateway):
                break
            await asyncio.sleep(0.05)
        assert set(await owners(house.gateway)) == {"assistant-1", third}
        await house.gateway.verify()


async def test_an_owner_is_stored_before_the_app_knows_the_id(tmp_path: Path):
    """A ledger that cannot write: no id is given away."""
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path)
        assert gateway.services is not None

        async def fails(*_: object) -> None:
            raise openai.OpenAIError("the disk is full")

        gateway.services.ledger.append_all = fails  # type: ignore[method-assign]
        answer = await gateway.raw("POST", FILES, **form(PURPOSE, FILE))
        assert answer.status_code == 500
        assert "assistant-" not in answer.text
        assert await owners(gateway) == {}


async def test_several_uploads_at_once_all_have_their_owner(house: House):
    ids = await asyncio.gather(*(upload(house, b"x" * 150_000) for _ in range(6)))
    assert set(ids) <= set(await owners(house.gateway))


async def test_a_client_that_goes_away_while_it_uploads_leaves_nothing(house: House):
    before = await owners(house.gateway)

    async def half() -> AsyncIterator[bytes]:
        yield PURPOSE + FILE[:-10]
        raise ConnectionAbortedError("the app was stopped")

    async with house.untouched():
        with pytest.raises((ConnectionAbortedError, httpx2.HTTPError)):
            await house.gateway.raw("POST", FILES, **{**form(), "content": half()})
    assert await owners(house.gateway) == before
