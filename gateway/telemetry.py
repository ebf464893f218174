"""The clock, the log and the metrics. Nothing here ever sees a payload or a secret."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter, Gauge, Histogram

Clock = Callable[[], datetime]

requests_total = Counter("gatepass_requests_total", "App requests answered.", ["route", "outcome"])
refusals_total = Counter("gatepass_refusals_total", "App requests refused, by code.", ["code"])
holds_open = Gauge("gatepass_holds_open", "Exchanges that wait for people in this process.")
decisions_total = Counter("gatepass_decisions_total", "Decisions on calls.", ["by", "outcome"])
executions_total = Counter("gatepass_executions_total", "Outcomes of released calls.", ["outcome"])
alarms_total = Counter("gatepass_alarms_total", "Alarms raised, by kind.", ["kind"])
vault_up = Gauge("gatepass_vault_up", "Whether a vault on another machine answers.", ["store"])
decision_seconds = Histogram(
    "gatepass_decision_seconds",
    "Time from the request for approval to its decision.",
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400),
)


def utc_now() -> datetime:
    """The real clock. Everything but the composition root takes it as an argument."""
    return datetime.now(UTC)  # noqa: TID251


def failure(error: BaseException) -> dict[str, str]:
    """What may be logged of an exception: its type, and `FILE:LINE` where it happened.

    What it says may quote a payload or a secret, whoever raised it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    return {"error": type(error).__name__, "at": place}


def configure_logging(level: str) -> None:
    """Log JSON lines to stderr from `level` up; keep the libraries' chatter out.

    HTTP client libraries log headers at debug level, so they are pinned to warnings whatever
    `level` says.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number, format="%(message)s", stream=sys.stderr, force=True)
    for library in (
        "aiohttp", "authlib", "httpx2", "httpcore", "httpcore2", "sqlalchemy", "aiosqlite",
        "asyncio", "mcp",
    ):  # fmt: skip
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in ("azure", "msal"):  # they warn of what is then tried in another way, at length
        logging.getLogger(library).setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _on_stderr(*_: object) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


def say_on_stderr() -> None:
    """Where nothing is configured, say things there: what a command prints stays clean."""
    structlog.configure(logger_factory=_on_stderr, cache_logger_on_first_use=False)


say_on_stderr()

log: structlog.stdlib.BoundLogger = structlog.get_logger()
