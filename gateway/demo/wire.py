"""What every part of the scripted upstream says on the wire: ids, error bodies, headers.

Owns the shapes only; it holds no state and knows nothing of the model or of MCP.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from gateway.errors import GatepassError

JSON = dict[str, Any]
SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


# Python would write these numbers differently; they are put in when the JSON is written.
UNKNOWN_NUMBERS = "\0numbers"
_NUMBERS_IN_JSON = json.dumps(UNKNOWN_NUMBERS)
_NUMBERS_AS_WRITTEN = '{"zulu":12345678901234567890123,"alpha":1.10,"mike":1e-7}'


def new_id(prefix: str) -> str:
    """An opaque id as the real service makes them: `resp_` and 50 hex digits."""
    return f"{prefix}_{secrets.token_hex(25)}"


def compact(value: object) -> str:
    """JSON in one line, Unicode kept as it is."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace(_NUMBERS_IN_JSON, _NUMBERS_AS_WRITTEN)


class ServiceJSON(JSONResponse):
    """A body written as everything else of the service is."""

    def render(self, content: object) -> bytes:
        return compact(content).encode()


class ApiError(GatepassError):
    """An answer in the error shape of the service: `{"error": {message, type, param, code}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, param=param, status=status)
        self.kind = kind
        self.wire_code = code
        self.extra = dict(extra or {})
        self.headers: dict[str, str] = {}

    def error(self) -> JSON:
        """The inner object; also what an `error` event in a stream carries."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.wire_code,
            **self.extra,
        }

    def body(self) -> JSON:
        return {"error": self.error()}

    def with_headers(self, **headers: str) -> ApiError:
        """The same error, answered with these headers too (underscores become dashes)."""
        self.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        return self


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def parse_object(raw: bytes) -> JSON:
    """A JSON object; ApiError(400) with the service's text for anything else."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise bad_request(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The API expects a JSON payload.)"
        )
    return body


def unauthorized() -> ApiError:
    """The management layer's own shape: a string code and nothing else but the message."""
    return ApiError(
        401,
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide "
        "a valid key for an active subscription and use a correct regional API endpoint for your "
        "resource.",
        code="401",
    )


def response_not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id '{response_id}' not found.")


def previous_not_found(response_id: str) -> ApiError:
    return bad_request(
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def content_filtered() -> ApiError:
    """The prompt was refused by the content filter (400 with the filter's own verdict)."""
    safe = {"filtered": False, "severity": "safe"}
    return ApiError(
        400,
        "The response was filtered due to the prompt triggering Azure OpenAI's content management "
        "policy. Please modify your prompt and retry. To learn more about our content filtering "
        "policies please read our documentation: https://go.microsoft.com/fwlink/?linkid=2198766",
        kind="invalid_request_error",
        param="prompt",
        code="content_filter",
        extra={
            "status": 400,
            "innererror": {
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {
                    "hate": safe,
                    "jailbreak": {"filtered": True, "detected": True},
                    "self_harm": safe,
                    "sexual": safe,
                    "violence": safe,
                },
            },
        },
    )


def rate_limited() -> ApiError:
    error = ApiError(
        429,
        "Requests to the Responses API have exceeded the call rate limit of your current pricing "
        "tier. Please retry after 1 second.",
        kind="too_many_requests",
        code="too_many_requests",
    )
    return error.with_headers(retry_after="1", retry_after_ms="200")


def server_error() -> ApiError:
    return ApiError(
        500,
        "The server had an error while processing your request. Sorry about that!",
        kind="server_error",
        code="server_error",
    )


def service_headers(region: str, served: int) -> dict[str, str]:
    """The headers that every answer of the resource carries; `served` counts down the quota."""
    return {
        "x-request-id": secrets.token_hex(16),
        "apim-request-id": secrets.token_hex(16),
        "x-ms-region": region,
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": str(max(0, 999 - served % 1000)),
        "x-ratelimit-limit-tokens": "1000000",
        "x-ratelimit-remaining-tokens": str(max(0, 1_000_000 - 100 * (served % 10_000))),
    }
