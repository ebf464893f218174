"""Nobody goes out but through the guarded client."""

from __future__ import annotations

import ast

from tests.support.repository import ROOT

#: To Azure, whose address is the operator's own setting; and the guard itself.
_MAY = {"gateway/egress/client.py", "gateway/proxy/azure.py", "gateway/cli/doctor.py"}
_CLIENTS = {
    "AsyncClient", "Client", "ClientSession", "AsyncHTTPTransport", "HTTPTransport", "urlopen",
    "AsyncConnectionPool", "ConnectionPool", "open_connection", "create_connection",
}  # fmt: skip
_LIBRARIES = {"httpx2", "aiohttp", "httpcore2", "asyncio", "socket", "request"}


def ways_out(tree: ast.AST) -> list[int]:
    """Lines where something is made that connects to a name by itself."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _CLIENTS
        and isinstance(node.func.value, ast.Name | ast.Attribute)
        and (getattr(node.func.value, "id", None) or getattr(node.func.value, "attr", None))
        in _LIBRARIES
    ]


def test_a_way_out_would_be_seen() -> None:
    for bad in (
        "async with httpx2.AsyncClient() as client: pass",
        "session = aiohttp.ClientSession()",
        "await asyncio.open_connection(host, 80)",
        "urllib.request.urlopen(url)",
    ):
        source = f"async def go():\n    {bad}"
        assert ways_out(ast.parse(source)), bad
    assert not ways_out(ast.parse("open_client(bounds)\nhttpx2.Headers()"))


def test_only_the_guard_goes_out() -> None:
    found = [
        f"{name}:{line}: use gateway.egress.client.open_client"
        for top in ("gateway", "web")
        for path in sorted((ROOT / top).rglob("*.py"))
        if (name := path.relative_to(ROOT).as_posix()) not in _MAY
        and not name.startswith("gateway/demo/")
        for line in ways_out(ast.parse(path.read_text()))
    ]
    assert found == []
