"""Problem details (RFC 9457) for every error under /api: the one place that renders them.

A problem says what is wrong, where, and what to do. It never repeats what was sent: a request
may have carried a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from gateway.errors import GatepassError
from gateway.store.database import outage
from gateway.telemetry import log

MEDIA_TYPE = "application/problem+json"
_MOST_ERRORS = 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,30}")
_CODES = {
    400: "invalid_request",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}
_SENTENCES = {
    400: "The body is not JSON that can be read.",
    404: "There is nothing at this address.",
    405: "This address does not take that method.",
    413: "The body is longer than this address accepts.",
}


class Fault(BaseModel):
    """One member of the request that is not acceptable."""

    where: str = Field(description="Path of the member, such as body.verdict.")
    detail: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """What every error under /api looks like (RFC 9457, application/problem+json)."""

    type: str = Field("about:blank", description="Always about:blank; look at `code`.")
    title: str = Field(description="The HTTP status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="One sentence: what is wrong and what to do.")
    code: str = Field(description="Stable name of the cause, for programs.")
    param: str | None = Field(None, description="The member or parameter it is about.")
    errors: list[Fault] | None = Field(None, description="Each member that is wrong.")


def response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Render a problem."""
    return JSONResponse(
        problem.model_dump(exclude_none=True),
        status_code=problem.status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def of_error(error: GatepassError) -> JSONResponse:
    """The problem of one of the six kinds of refusal and failure."""
    headers = {"www-authenticate": 'Bearer realm="gatepass"'} if error.status == 401 else None
    return response(
        Problem(
            title=_phrase(error.status),
            status=error.status,
            detail=error.message,
            code=error.code,
            param=error.param,
        ),
        headers,
    )


def of_status(
    status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The problem of a bare HTTP status."""
    phrase = _phrase(status)
    code = _CODES.get(status, phrase.lower().replace(" ", "_"))
    return response(
        Problem(title=phrase, status=status, detail=detail or f"{phrase}.", code=code), headers
    )


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem."""
    app.add_exception_handler(GatepassError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(SQLAlchemyError, _database)


async def _refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GatepassError)  # noqa: S101  registered for this type only
    return of_error(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for this type only
    faults = [
        Fault(where=_path(item["loc"]), detail=str(item["msg"]))
        for item in _first(error.errors(), _MOST_ERRORS)
    ]
    return response(
        Problem(
            title=_phrase(422),
            status=422,
            detail=_summary(faults),
            code="invalid_request",
            errors=faults,
        )
    )


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this type only
    return of_status(error.status_code, _SENTENCES.get(error.status_code), error.headers)


async def _database(_request: Request, error: Exception) -> JSONResponse:
    unavailable = outage(error)
    if unavailable is None:
        raise error
    log.warning("database.no_answer", error=type(error).__name__)
    return of_error(unavailable)


def _summary(faults: Sequence[Fault]) -> str:
    if not faults:
        return "The request is not acceptable."
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0].where}: {faults[0].detail}{more}."


def _first(items: Iterable[Any], most: int) -> list[Any]:
    return list(items)[:most]


def _path(location: Sequence[int | str]) -> str:
    # A location may end in a member name that the caller chose: shown if it looks like one.
    shown = (str(part) if _NAME.fullmatch(str(part)) else "…" for part in location)
    return ".".join(shown) or "body"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
