"""vault: with a real OpenBao: what is read, what is refused, how the gateway stays signed in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request, Response
from joserfc import jwt
from joserfc.jwk import ECKey

from gateway.config import load
from gateway.demo.runner import serve
from gateway.errors import Unavailable
from gateway.vault import Purpose, Secret, SecretRef
from gateway.vault.openbao import OpenBaoStore
from gateway.vault.openbao_http import Http, Place
from gateway.vault.openbao_sign_in import SignIn, way_of
from tests.support.openbao import OpenBao, running_openbao
from tests.support.tls import over_tls

VALUE = "canary-7f3a-9e21"
FRESH = Purpose()


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with running_openbao(tmp_path_factory.mktemp("bao")) as running:
        yield running


class House:
    """A store that is signed in to a vault, and the time by its clock."""

    def __init__(self, url: str, **settings: str) -> None:
        environ = {f"GATEPASS_VAULT_{name}": value for name, value in settings.items()}
        found = load({"GATEPASS_VAULT_ADDR": url, **environ})
        self.http = Http(Place(url, found.vault_namespace, found.vault_ca_file))
        self.now = 0.0
        self.sign_in = SignIn(self.http, way_of(found), lambda: self.now)
        self.store = OpenBaoStore(self.http, self.sign_in)
        self.asked: list[str] = []
        ask = self.http.ask

        async def noted(method: str, path: str, *rest: Any, **more: Any) -> Any:
            self.asked.append(path)
            return await ask(method, path, *rest, **more)

        self.http.ask = noted  # type: ignore[method-assign]

    async def open(self, text: str) -> Secret:
        return await self.store.open(SecretRef.parse(text), FRESH)

    async def fails(self, text: str, code: str) -> str:
        with pytest.raises(Unavailable) as caught:
            await self.open(text)
        assert caught.value.code == code, caught.value.message
        assert "canary" not in caught.value.message
        return caught.value.message


@pytest.fixture
async def houses() -> AsyncIterator[list[House]]:
    made: list[House] = []
    yield made
    for house in made:
        await house.store.close()


@pytest.fixture
async def house(bao: OpenBao, houses: list[House]) -> House:
    houses.append(House(bao.url, TOKEN=await bao.token()))
    return houses[-1]


# --- what is read ---------------------------------------------------------------------------


async def test_the_newest_version_is_read_and_named(bao: OpenBao, house: House):
    ref = "vault:secret/mcp/newest#token"
    for number, value in (("1", VALUE), ("2", "canary-2")):
        assert await bao.put("mcp/newest", token=value) == number
        secret = await house.open(ref)
        assert (secret.reveal(), secret.version) == (value, number)
        assert repr(secret) == f"<secret {ref}>"
    await house.store.ping()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("12345678", "12345678"),
        ("9007199254740992", "9007199254740992"),
        ("1.25", "1.25"),
        ("true", "true"),
        ("false", "false"),
        ('"text"', "text"),
    ],
)
async def test_S_14_numbers_and_truth_values_are_read_as_they_stand_there(
    bao: OpenBao, house: House, written: str, read: str
):
    body = f'{{"data": {{"pin": {written}}}}}'
    headers = {"x-vault-token": "root-token", "content-type": "application/json"}
    async with httpx2.AsyncClient(base_url=bao.url, headers=headers) as client:
        assert (await client.post("/v1/secret/data/mcp/kinds", content=body)).status_code == 200
    assert (await house.open("vault:secret/mcp/kinds#pin")).reveal() == read


@pytest.mark.parametrize("value", [{"a": VALUE}, [VALUE], [], {}])
async def test_S_14_objects_and_lists_are_refused(bao: OpenBao, house: House, value: object):
    await bao.put("mcp/objects", pin=value)
    assert "an object or a list" in await house.fails(
        "vault:secret/mcp/objects#pin", "secret_unusable"
    )


async def test_H_05_a_value_that_begins_another_header_is_refused(bao: OpenBao, house: House):
    await bao.put("mcp/lines", pin="canary\r\nX-Evil: 1", empty="")
    assert "a line break" in await house.fails("vault:secret/mcp/lines#pin", "secret_unusable")
    assert "is empty" in await house.fails("vault:secret/mcp/lines#empty", "secret_unusable")


async def test_what_is_not_there_is_told(bao: OpenBao, house: House):
    await bao.put("mcp/gone", token=VALUE, nothing=None)
    for name in ("other", "nothing"):
        said = await house.fails(f"vault:secret/mcp/gone#{name}", "secret_field_missing")
        assert f"has no field '{name}'" in said
    assert "no secret at" in await house.fails("vault:secret/mcp/none#x", "secret_missing")
    await bao.ask("DELETE", "secret/data/mcp/gone")
    said = await house.fails("vault:secret/mcp/gone#token", "secret_missing")
    assert "was deleted: undelete it" in said
    await bao.put("mcp/gone", token=VALUE)
    await bao.ask("PUT", "secret/destroy/mcp/gone", versions=[2])
    said = await house.fails("vault:secret/mcp/gone#token", "secret_missing")
    assert "was destroyed: store it again" in said


async def test_an_engine_of_another_version_is_told(bao: OpenBao, houses: list[House]):
    await bao.ask("POST", "sys/mounts/old", type="kv", options={"version": "1"})
    await bao.ask("POST", "old/mcp", token=VALUE)
    reads = 'path "old/*" { capabilities = ["read"] }'
    await bao.policy(reads, "old")
    houses.append(House(bao.url, TOKEN=await bao.token(policies=["old"])))
    said = await houses[0].fails("vault:old/mcp#token", "vault_unusable")
    assert "no key/value engine of version 2" in said


async def test_what_may_not_be_read_names_the_right_that_is_missing(bao: OpenBao, house: House):
    said = await house.fails("vault:other/mcp#token", "vault_forbidden")
    assert "'read' on other/data/mcp" in said
    before = list(house.asked)
    await house.fails("vault:other/mcp#token", "vault_forbidden")
    again = house.asked[len(before) :]
    assert again == ["other/data/mcp", "auth/token/lookup-self"], "it is signed in well"


# --- signing in -----------------------------------------------------------------------------


async def approle(bao: OpenBao, houses: list[House], name: str, **options: Any) -> House:
    mount = f"approle-{name}"
    role, secret = await bao.approle(mount, **options)
    houses.append(House(bao.url, AUTH="approle", ROLE_ID=role, SECRET_ID=secret, MOUNT=mount))
    return houses[-1]


async def test_one_sign_in_serves_all_who_wait(bao: OpenBao, houses: list[House]):
    house = await approle(bao, houses, "one")
    await bao.put("mcp/many", token=VALUE)
    secrets = await asyncio.gather(*(house.open("vault:secret/mcp/many#token") for _ in range(9)))
    assert {secret.reveal() for secret in secrets} == {VALUE}
    assert house.asked.count("auth/approle-one/login") == 1


async def test_a_token_is_renewed_before_its_end(bao: OpenBao, houses: list[House]):
    house = await approle(bao, houses, "renewed")
    await bao.put("mcp/renewed", token=VALUE)
    await house.open("vault:secret/mcp/renewed#token")
    first = await house.sign_in.token()
    house.now = 3600 * 2 / 3 - 1
    await house.store.ping()
    assert "auth/token/renew-self" not in house.asked
    house.now += 2
    # The vault's own clock has not moved: the renewal gives the whole hour again.
    await house.store.ping()
    assert house.asked.count("auth/token/renew-self") == 1
    assert await house.sign_in.token() is first


async def test_at_the_end_of_its_days_another_token_is_obtained(bao: OpenBao, houses: list[House]):
    house = await approle(bao, houses, "ends", token_max_ttl="1h")
    first = await house.sign_in.token()
    house.now = 3500.0
    # By our clock 100 s are left, and a renewal would add little by that of a vault as late.
    house.now = 3601.0
    assert (await house.sign_in.token()).reveal() != first.reveal()
    assert house.asked.count("auth/approle-ends/login") == 2


@pytest.mark.parametrize("way", ["approle", "token"])
async def test_S_16_a_revoked_token_opens_nothing_and_another_one_does(
    bao: OpenBao, houses: list[House], tmp_path: Path, way: str
):
    await bao.put("mcp/revoked", token=VALUE)
    if way == "approle":
        house = await approle(bao, houses, "revoked")
        await bao.revoke((await house.sign_in.token()).reveal())
    else:
        file = tmp_path / "token"
        file.write_text(await bao.token())
        houses.append(house := House(bao.url, TOKEN_FILE=str(file)))
        await house.open("vault:secret/mcp/revoked#token")
        await bao.revoke(file.read_text())
        await house.fails("vault:secret/mcp/revoked#token", "vault_forbidden")
        file.write_text(await bao.token() + "\n")
    assert (await house.open("vault:secret/mcp/revoked#token")).reveal() == VALUE


async def test_a_token_file_is_read_again_when_it_changes(
    bao: OpenBao, houses: list[House], tmp_path: Path
):
    file, other = tmp_path / "token", tmp_path / "other"
    file.write_text(await bao.token())
    houses.append(house := House(bao.url, TOKEN_FILE=str(file)))
    assert (await house.sign_in.token()).reveal() == file.read_text()
    other.write_text(await bao.token())
    other.replace(file)
    assert (await house.sign_in.token()).reveal() == file.read_text()
    file.unlink()
    await house.fails("vault:secret/mcp/any#token", "secret_missing")


async def test_a_sign_in_that_is_refused_says_what_to_look_at(bao: OpenBao, houses: list[House]):
    role, _ = await bao.approle("approle-wrong")
    wrong = {"AUTH": "approle", "ROLE_ID": role, "SECRET_ID": VALUE, "MOUNT": "approle-wrong"}
    houses.append(House(bao.url, **wrong))
    said = await houses[0].fails("vault:secret/mcp/any#token", "vault_login")
    assert "look at the role, the secret and the mount" in said


@cache
def pod_jwt(name: str) -> str:
    """The token of a service account, as a pod finds it in its files."""
    account = {"namespace": "house", "serviceaccount": {"name": name, "uid": "1"}}
    claims = {
        "iss": "https://kubernetes.default.svc", "sub": f"system:serviceaccount:house:{name}",
        "aud": ["vault"], "iat": 1_700_000_000, "nbf": 1_700_000_000, "exp": 4_000_000_000,
        "kubernetes.io": account,
    }  # fmt: skip
    return jwt.encode({"alg": "ES256"}, claims, ECKey.generate_key("P-256"))


def cluster() -> FastAPI:
    """An API server that knows one service account."""
    app = FastAPI()

    @app.post("/apis/authentication.k8s.io/v1/tokenreviews")
    async def review(request: Request) -> dict[str, Any]:
        assert request.headers["authorization"] == "Bearer reviewer"
        asked = (await request.json())["spec"]["token"]
        name = {pod_jwt("gatepass"): "gatepass", pod_jwt("other"): "other"}.get(asked)
        user = {
            "username": f"system:serviceaccount:house:{name}",
            "uid": "1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:house"],
        }
        status = {"authenticated": False}
        if name is not None:
            status = {"authenticated": True, "user": user, "audiences": ["vault"]}
        return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}

    return app


async def test_a_pod_signs_in_with_its_service_account(
    bao: OpenBao, houses: list[House], tmp_path: Path
):
    await bao.put("mcp/pod", token=VALUE)
    file = tmp_path / "jwt"
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(serve(cluster()))
        url, ca = await stack.enter_async_context(over_tls(plain, tmp_path))
        await bao.kubernetes(url, ca.read_text())
        settings = {"AUTH": "kubernetes", "ROLE": "gatepass", "JWT_FILE": str(file)}
        houses.append(house := House(bao.url, **settings))
        await house.fails("vault:secret/mcp/pod#token", "secret_missing")
        for text in (pod_jwt("other"), pod_jwt("unknown"), "canary-jwt"):
            file.write_text(text)
            await house.fails("vault:secret/mcp/pod#token", "vault_login")
        file.write_text(pod_jwt("gatepass"))
        assert (await house.open("vault:secret/mcp/pod#token")).reveal() == VALUE


# --- states ---------------------------------------------------------------------------------


async def test_S_16_a_vault_that_limits_its_rate_is_told_so(bao: OpenBao, house: House):
    await bao.put("mcp/often", token=VALUE)
    await bao.ask("POST", "sys/quotas/rate-limit/slow", path="secret/", rate=1, interval="1h")
    try:
        assert (await house.open("vault:secret/mcp/often#token")).reveal() == VALUE
        said = await house.fails("vault:secret/mcp/often#token", "vault_busy")
        assert "asked too often" in said
    finally:
        await bao.ask("DELETE", "sys/quotas/rate-limit/slow")
    assert (await house.open("vault:secret/mcp/often#token")).reveal() == VALUE


async def test_S_16_a_vault_that_is_sealed_gone_or_back(houses: list[House], tmp_path: Path):
    with running_openbao(tmp_path) as bao:
        await bao.put("mcp/crm", token=VALUE)
        role, secret = await bao.approle("approle")
        houses.append(house := House(bao.url, AUTH="approle", ROLE_ID=role, SECRET_ID=secret))
        assert (await house.open("vault:secret/mcp/crm#token")).reveal() == VALUE
        await bao.ask("PUT", "sys/seal")
        assert "is sealed" in await house.fails("vault:secret/mcp/crm#token", "vault_sealed")
        bao.kill()
        said = await house.fails("vault:secret/mcp/crm#token", "vault_unreachable")
        assert "cannot be reached" in said
        with pytest.raises(Unavailable):
            await house.store.ping()
        bao.start()
        # It forgot everything, our sign-in among it: that is obtained anew.
        await bao.put("mcp/crm", token="canary-after")
        await bao.approle("approle", role_id=role, secret_id=secret)
        assert (await house.open("vault:secret/mcp/crm#token")).reveal() == "canary-after"


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (307, "", "vault_standby", "sends the gateway elsewhere"),
        (429, "{}", "vault_busy", "asked too often"),
        (503, '{"errors": ["Vault is sealed"]}', "vault_sealed", "is sealed"),
        (500, '{"errors": ["local node not active but active cluster node not found"]}',
         "vault_standby", "no active node"),
        (500, '{"errors": ["canary"]}', "vault_unavailable", "cannot answer at the moment (500)"),
        (502, "<html>canary</html>", "vault_unavailable", "(502)"),
        (200, "<html>canary</html>", "vault_unusable", "cannot be read"),
        (200, '["canary"]', "vault_unusable", "cannot be read"),
        (200, '{"data": {"token": "canary"}}', "vault_unusable", "not that of a key/value engine"),
        (200, '{"data": "' + "canary" * 200_000 + '"}', "vault_unusable", "cannot be read"),
        (404, "canary", "secret_missing", "no secret at"),
        (405, "canary", "vault_unusable", "(405)"),
        (412, "canary", "vault_unusable", "(412)"),
    ],
)  # fmt: skip
async def test_S_16_each_state_is_told_and_no_answer_repeated(
    houses: list[House], status: int, body: str, code: str, said: str
):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        headers = {"location": "http://127.0.0.1:9/"} if status == 307 else {}
        await Response(body, status, headers)(scope, receive, send)

    async with serve(_lifespan(app)) as url:
        houses.append(house := House(url, TOKEN=VALUE))
        house.sign_in.token = _secret  # type: ignore[method-assign]
        house.sign_in.again = _never  # type: ignore[method-assign]
        assert said in await house.fails("vault:kv/mcp#token", code)


def _lifespan(app: Any) -> Any:
    wrapped = FastAPI()
    wrapped.mount("/", app)
    return wrapped


async def _secret() -> Secret:
    return Secret("the token", VALUE)


async def _never(refused: Secret) -> bool:
    return False


async def test_an_authority_that_signed_nothing_of_the_vaults(houses: list[House], tmp_path: Path):
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(serve(FastAPI()))
        url, ca = await stack.enter_async_context(over_tls(plain, tmp_path))
        houses.append(House(url, TOKEN=VALUE))
        await houses[0].fails("vault:kv/mcp#token", "vault_unreachable")
        houses.append(House(url, TOKEN=VALUE, CA_FILE=str(tmp_path / "none.pem")))
        said = await houses[1].fails("vault:kv/mcp#token", "vault_unreachable")
        assert "GATEPASS_VAULT_CA_FILE" in said
        houses.append(House(url, TOKEN=VALUE, CA_FILE=str(ca), NAMESPACE="team"))
        await houses[2].fails("vault:kv/mcp#token", "secret_missing")
