"""Settings: read once, every wrong variable named, secrets shown nowhere."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config import Settings, duration, load
from gateway.errors import Refused


def problem(**environ: str) -> str:
    with pytest.raises(Refused) as refused:
        load({f"GATEPASS_{name}": value for name, value in environ.items()})
    return refused.value.message


def test_the_defaults_need_no_variable():
    settings = load({"PATH": "/bin", "GATEPASSWORD": "not ours"})
    assert settings.bind == ("127.0.0.1", 8080)
    assert settings.resolved_database_url == "sqlite+aiosqlite:///data/gatepass.sqlite3"
    assert settings.resolved_master_key_file == Path("data/master.key")
    assert not settings.postgresql


def test_every_unknown_variable_is_named():
    message = problem(COLOUR="red", LISTENS="x", LISTEN="127.0.0.1:1")
    assert "GATEPASS_COLOUR" in message
    assert "GATEPASS_LISTENS" in message


def test_a_wrong_value_names_its_variable_and_what_is_expected():
    assert "GATEPASS_HEARTBEAT: a duration such as 90s" in problem(HEARTBEAT="soon")
    assert "GATEPASS_UPSTREAM_URL must start with https://" in problem(UPSTREAM_URL="ftp://x")
    assert "GATEPASS_MAX_ROUNDS" in problem(MAX_ROUNDS="0")


def test_postgresql_needs_keys_that_replicas_share():
    assert "GATEPASS_MASTER_KEY_FILE" in problem(DATABASE_URL="postgresql+asyncpg://h/d")


@pytest.mark.parametrize("name", ["UPSTREAM_API_KEY", "DATABASE_URL"])
def test_a_secret_may_come_from_a_file(tmp_path: Path, name: str):
    file = tmp_path / "secret"
    file.write_text("sqlite+aiosqlite:////tmp/s3cret\n")
    settings = load({f"GATEPASS_{name}_FILE": str(file)})
    value = getattr(settings, name.lower())
    text = value if isinstance(value, str) else value.get_secret_value()
    assert text == "sqlite+aiosqlite:////tmp/s3cret"
    assert "s3cret" not in repr(settings)


def test_a_missing_secret_file_is_named():
    message = problem(UPSTREAM_API_KEY_FILE="/no/such/file")
    assert "GATEPASS_UPSTREAM_API_KEY_FILE" in message
    assert "/no/such/file" in message


def test_several_configuration_files_are_separated_like_paths():
    settings = load({"GATEPASS_CONFIG": "/etc/a.yaml:/etc/b.yaml"})
    assert settings.config == (Path("/etc/a.yaml"), Path("/etc/b.yaml"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("250ms", 0.25), ("7", 7), ("2d", 172800)]
)
def test_durations(text: str, seconds: float):
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "-1s", "1h x"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(ValueError, match="duration"):
        duration(text)


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().listen = "x"


TOKEN, APPROLE, KUBERNETES = {"VAULT_TOKEN": "x"}, {"VAULT_AUTH": "approle"}, {
    "VAULT_AUTH": "kubernetes"
}  # fmt: skip


@pytest.mark.parametrize(
    ("address", "settings"),
    [
        ("https://vault.example:8200", {"VAULT_TOKEN": "x"}),
        ("http://127.0.0.1:8200/", {"VAULT_TOKEN_FILE": "/run/token"}),
        ("http://localhost:8200", {**APPROLE, "VAULT_ROLE_ID": "r", "VAULT_SECRET_ID_FILE": "/s"}),
        ("https://vault.example", {**KUBERNETES, "VAULT_ROLE": "gatepass", "VAULT_MOUNT": "k8s"}),
    ],
)
def test_a_vault_that_can_be_signed_in_to(address: str, settings: dict[str, str]):
    environ = {"VAULT_ADDR": address, **settings}
    assert (
        load({f"GATEPASS_{name}": value for name, value in environ.items()}).vault_addr == address
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (TOKEN, "GATEPASS_VAULT_ADDR is missing, which GATEPASS_VAULT_TOKEN need"),
        ({"VAULT_ADDR": "http://vault.example", **TOKEN}, "must start with https://"),
        ({"VAULT_ADDR": "vault.example", **TOKEN}, "must start with https://"),
        ({"VAULT_ADDR": "https://v.example/v1", **TOKEN}, "nothing but scheme, host and port"),
        ({"VAULT_ADDR": "https://u@v.example", **TOKEN}, "nothing but scheme, host and port"),
        ({"VAULT_ADDR": "https://v.example"},
         "set GATEPASS_VAULT_TOKEN or GATEPASS_VAULT_TOKEN_FILE"),
        ({"VAULT_ADDR": "https://v.example", **TOKEN, "VAULT_TOKEN_FILE": "/t"},
         "set GATEPASS_VAULT_TOKEN or GATEPASS_VAULT_TOKEN_FILE"),
        ({"VAULT_ADDR": "https://v.example", **TOKEN, "VAULT_ROLE": "r"},
         "GATEPASS_VAULT_ROLE: of no use with GATEPASS_VAULT_AUTH=token"),
        ({"VAULT_ADDR": "https://v.example", **APPROLE}, "set GATEPASS_VAULT_ROLE_ID"),
        ({"VAULT_ADDR": "https://v.example", **APPROLE, "VAULT_ROLE_ID": "r"},
         "set GATEPASS_VAULT_SECRET_ID or GATEPASS_VAULT_SECRET_ID_FILE"),
        ({"VAULT_ADDR": "https://v.example", **KUBERNETES}, "set GATEPASS_VAULT_ROLE"),
        ({"VAULT_ADDR": "https://v.example", "VAULT_AUTH": "ldap"}, "GATEPASS_VAULT_AUTH"),
    ],
)  # fmt: skip
def test_a_vault_that_nobody_could_sign_in_to_stops_the_start(
    settings: dict[str, str], sentence: str
):
    assert sentence in problem(**settings)


def test_a_token_for_the_vault_prints_nowhere():
    given = {"GATEPASS_VAULT_ADDR": "https://v.example", "GATEPASS_VAULT_TOKEN": "canary"}
    assert "canary" not in repr(load(given))


OIDC = {
    "OIDC_ISSUER": "https://idp.example/t",
    "OIDC_CLIENT_ID": "gatepass",
    "OIDC_ROLES": "reviewers=reviewer, admins=admin,admins=reviewer",
    "PUBLIC_URL": "https://gatepass.example",
}


def test_an_identity_provider_is_described_by_a_few_variables():
    settings = load({f"GATEPASS_{name}": value for name, value in OIDC.items()})
    assert settings.oidc_roles == {"reviewers": ("reviewer",), "admins": ("admin", "reviewer")}
    assert settings.oidc_scopes == "openid email profile"
    named = {**OIDC, "OIDC_GROUPS": '{"CN=Desk,OU=X": ["desk"]}', "OIDC_ROLES": "CN=a=viewer"}
    settings = load({f"GATEPASS_{name}": value for name, value in named.items()})
    assert settings.oidc_groups == {"CN=Desk,OU=X": ("desk",)}
    assert settings.oidc_roles == {"CN=a": ("viewer",)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"OIDC_ISSUER": None}, "GATEPASS_OIDC_ISSUER is missing"),
        ({"OIDC_CLIENT_ID": None}, "GATEPASS_OIDC_CLIENT_ID is missing"),
        ({"OIDC_ROLES": None}, "GATEPASS_OIDC_ROLES is missing"),
        ({"OIDC_ROLES": "reviewer"}, "GATEPASS_OIDC_ROLES: pairs such as"),
        ({"OIDC_ROLES": "{reviewer"}, "GATEPASS_OIDC_ROLES: this begins like JSON"),
        ({"OIDC_SCOPES": "email"}, "must contain openid"),
        ({"PUBLIC_URL": "http://gatepass.example"}, "GATEPASS_PUBLIC_URL must start with https"),
        (
            {"OIDC_ISSUER": "https://login.microsoftonline.com/common/v2.0"},
            "must name one tenant",
        ),
    ],
)
def test_what_would_let_nobody_in_or_anybody_stops_the_start(
    changes: dict[str, str | None], sentence: str
):
    named = {name: value for name, value in {**OIDC, **changes}.items() if value is not None}
    assert sentence in problem(**named)


def test_without_a_provider_there_must_be_links():
    assert "nobody could enter" in problem(LOCAL_SIGN_IN="false")
    assert load({"GATEPASS_LOCAL_SIGN_IN": "true"}).local_sign_in
