"""/embeddings and /models: numbers that follow from the text alone, and the models there are.

Deployment names are free everywhere else; the list is only what a resource would name.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.demo.service import Endpoint, Service
from gateway.demo.wire import JSON, ApiError, bad_request, compact, parse_object

_MODELS = (
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4.1-nano",
    "gpt-5",
    "gpt-image-1",
    "o3",
    "o4-mini",
    "computer-use-preview",
    "text-embedding-3-small",
    "text-embedding-3-large",
)
_SINCE = 1_741_392_000
_SMALL, _LARGE = 1536, 3072


async def _embed(_: Service, request: Request) -> Response:
    body = parse_object(await request.body())
    for name in ("model", "input"):
        if not body.get(name):
            raise bad_request(
                f"Missing required parameter: '{name}'.",
                param=name,
                code="missing_required_parameter",
            )
    written = body.get("encoding_format") or "float"
    if written not in ("float", "base64"):
        raise bad_request(
            f"Invalid value: '{written}'. Supported values are: 'float' and 'base64'.",
            param="encoding_format",
            code="invalid_value",
        )
    texts, size = _texts(body["input"]), _size(body)
    tokens = sum(len(text) // 4 + 1 for text in texts)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector(text, size), written)}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})


def _texts(given: Any) -> list[str]:
    """A text, several texts, a list of tokens, or several of those."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(one, int) for one in given):
        return [compact(given)]
    if isinstance(given, list) and all(isinstance(one, str | list) for one in given):
        return [one if isinstance(one, str) else compact(one) for one in given]
    raise bad_request("Invalid type for 'input'.", param="input", code="invalid_type")


def _size(body: JSON) -> int:
    most = _LARGE if "large" in str(body["model"]) else _SMALL
    size = body.get("dimensions") or most
    if not isinstance(size, int) or not 1 <= size <= most:
        raise bad_request(
            f"Invalid value for 'dimensions': expected an integer between 1 and {most}.",
            param="dimensions",
            code="invalid_value",
        )
    return size


def vector(text: str, size: int) -> list[float]:
    """Deterministic and of length one."""
    digest = hashlib.shake_256(text.encode()).digest(size * 2)
    numbers = [float(number) for number in struct.unpack(f"<{size}h", digest)]
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return [number / length for number in numbers]


def _written(numbers: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return numbers
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _model(name: str) -> JSON:
    embeds, draws = name.startswith("text-embedding"), name.startswith("gpt-image")
    return {
        "id": name,
        "object": "model",
        "created": _SINCE,
        "owned_by": "system",
        "status": "succeeded",
        "capabilities": {
            "fine_tune": False,
            "inference": True,
            "completion": False,
            "chat_completion": not (embeds or draws),
            "embeddings": embeds,
        },
        "lifecycle_status": "generally-available",
    }


async def _list(_: Service, __: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(name) for name in _MODELS]})


async def _retrieve(_: Service, request: Request) -> Response:
    name = request.path_params["model"]
    if name not in _MODELS:
        raise ApiError(404, f"The model '{name}' does not exist.", code="model_not_found")
    return JSONResponse(_model(name))


ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/embeddings", _embed),
    ("GET", "/models", _list),
    ("GET", "/models/{model}", _retrieve),
)
