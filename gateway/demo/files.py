"""/files: what was uploaded, kept as bytes, with the purposes and ids of an Azure resource.

It never looks into a file. Whether an id that a request names exists is asked by `parts`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.demo.paging import page
from gateway.demo.service import Endpoint, Service
from gateway.demo.store import File
from gateway.demo.wire import JSON, ApiError, bad_request

# What Azure accepts; `user_data`, which others accept, is not among them.
_PURPOSES = {
    "assistants": "assistant",
    "vision": "assistant",
    "batch": "file",
    "fine-tune": "file",
    "evals": "file",
}
_MOST_A_PAGE = 10_000


async def _upload(service: Service, request: Request) -> Response:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise bad_request("Expected a multipart/form-data body.", code="invalidPayload")
    async with request.form() as form:
        purpose, upload = _purpose(form), form.get("file")
        if not isinstance(upload, UploadFile):
            raise bad_request(
                "Missing required parameter: 'file'.",
                param="file",
                code="missing_required_parameter",
            )
        content = await upload.read()
        name = upload.filename or "upload"
    created = int(service.settings.clock().timestamp())
    file_id = f"{_PURPOSES[purpose]}-{secrets.token_hex(11)}"
    file = File(_described(file_id, len(content), name, purpose) | {"created_at": created}, content)
    service.memory.put_file(file)
    return JSONResponse(file.described)


def _purpose(form: Mapping[str, Any]) -> str:
    purpose = str(form.get("purpose", ""))
    if purpose not in _PURPOSES:
        raise bad_request("Invalid value for purpose.", param="purpose", code="invalidPayload")
    return purpose


def _described(file_id: str, size: int, name: str, purpose: str) -> JSON:
    return {
        "object": "file",
        "id": file_id,
        "purpose": purpose,
        "filename": name,
        "bytes": size,
        "created_at": 0,
        "status": "processed",
    }


def _file(service: Service, request: Request) -> File:
    file_id = request.path_params["file_id"]
    if file_id not in service.memory.files:
        raise ApiError(404, f"No such File object: {file_id}", param="id", code="404")
    return service.memory.files[file_id]


async def _list(service: Service, request: Request) -> Response:
    wanted = request.query_params.get("purpose")
    found = [file.described for file in service.memory.files.values()]
    kept = [file for file in found if wanted in (None, file["purpose"])]
    query = {"limit": str(_MOST_A_PAGE), **request.query_params}
    return JSONResponse(page(kept, query, most=_MOST_A_PAGE))


async def _retrieve(service: Service, request: Request) -> Response:
    return JSONResponse(_file(service, request).described)


async def _content(service: Service, request: Request) -> Response:
    file = _file(service, request)
    return Response(file.content, media_type="application/octet-stream")


async def _delete(service: Service, request: Request) -> Response:
    file_id = _file(service, request).described["id"]
    del service.memory.files[file_id]
    return JSONResponse({"object": "file", "id": file_id, "deleted": True})


ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/files", _upload),
    ("GET", "/files", _list),
    ("GET", "/files/{file_id}", _retrieve),
    ("DELETE", "/files/{file_id}", _delete),
    ("GET", "/files/{file_id}/content", _content),
)
