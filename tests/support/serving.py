"""`gatepass serve` with a lease of LEASE seconds, and a clock that is SKEW seconds off.

python -m tests.support.serving

Finished exchanges are forgotten after LINGER seconds. `GET /_test/counts` says how many tasks run,
and lets go of what is garbage.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway import config
from gateway.app import create_app
from gateway.cli.serving import serve
from gateway.proxy import live
from gateway.telemetry import configure_logging, utc_now


async def counts(_: Request) -> JSONResponse:
    """What this process holds on to that is not to be seen from outside."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return JSONResponse({"tasks": len(asyncio.all_tasks())})


def main() -> None:
    """Serve until a signal."""
    settings = config.load(os.environ)
    configure_logging(settings.log_level)
    skew = timedelta(seconds=float(os.environ.get("SKEW", "0")))
    live.LINGER = float(os.environ.get("LINGER", live.LINGER))

    def clock() -> datetime:
        return utc_now() + skew

    lease = timedelta(seconds=float(os.environ.get("LEASE", "10")))
    app = create_app(settings, clock, lease)
    app.router.routes.insert(0, Route("/_test/counts", counts))
    if (failure := serve(app, settings)) is not None:
        raise failure


if __name__ == "__main__":
    main()
