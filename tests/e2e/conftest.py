"""Whole gateways for end-to-end tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, open_gateway

pytestmark = pytest.mark.e2e


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway in this process; its ledger must be sound when the test is over."""
    async with AsyncExitStack() as stack:
        gateway = await open_gateway(stack, tmp_path)
        yield gateway
        await gateway.verify()
