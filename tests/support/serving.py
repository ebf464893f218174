"""`gatepass serve` with a lease of LEASE seconds, and a clock that is SKEW seconds off.

python -m tests.support.serving
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from gateway import config
from gateway.app import create_app
from gateway.cli.serving import serve
from gateway.telemetry import configure_logging, utc_now


def main() -> None:
    """Serve until a signal."""
    settings = config.load(os.environ)
    configure_logging(settings.log_level)
    skew = timedelta(seconds=float(os.environ.get("SKEW", "0")))

    def clock() -> datetime:
        return utc_now() + skew

    lease = timedelta(seconds=float(os.environ.get("LEASE", "10")))
    if (failure := serve(create_app(settings, clock, lease), settings)) is not None:
        raise failure


if __name__ == "__main__":
    main()
