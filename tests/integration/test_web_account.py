"""The page about oneself: roles, tokens made and revoked, sessions ended."""

from __future__ import annotations

import re

from gateway.identity import login
from gateway.store.database import Database
from tests.support.clock import FakeClock
from tests.support.stage import stage


async def test_tokens_are_made_shown_once_listed_and_revoked(
    sqlite: Database, clock: FakeClock
) -> None:
    async with stage(sqlite, clock) as played:
        ann = await played.signed_in("ann@example.org", "reviewer")
        page = await ann.post("/account/tokens", data={"days": "7", "may": "read"})
        [token] = set(re.findall(r"gp_pat_\w{8}_[\w-]{43}", page.text))
        assert token not in (await ann.get("/account")).text
        principal = await login.token(sqlite, token, clock())
        assert principal is not None
        assert principal.scopes == {
            "requests.read", "exchanges.read", "servers.read", "apps.read", "policies.read"
        }  # fmt: skip
        assert "2026" in (await ann.get("/account")).text
        wide = await ann.post("/account/tokens", data={"days": "1", "may": "all"})
        assert "all that you may" in wide.text
        assert (await ann.post("/account/tokens", data={"days": "0"})).status_code == 400
        bo = await played.signed_in("bo@example.org", "reviewer")
        path = f"/account/tokens/{token[7:15]}/revoke"
        assert (await bo.post(path)).status_code == 404
        assert (await ann.post(path)).status_code == 303
        assert await login.token(sqlite, token, clock()) is None


async def test_signing_out_everywhere_ends_every_session_of_ones_own(
    sqlite: Database, clock: FakeClock
) -> None:
    async with stage(sqlite, clock) as played:
        ann = await played.signed_in("ann@example.org", "reviewer")
        bo = await played.signed_in("bo@example.org", "reviewer")
        kept = ann.cookies["gatepass"]
        assert (await ann.post("/account/sign-out-everywhere")).status_code == 303
        assert await login.session(sqlite, kept, clock()) is None
        assert (await bo.get("/account")).status_code == 200
