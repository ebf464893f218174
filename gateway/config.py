"""Settings: the only reader of the environment.

Every variable starts with GATEPASS_; an unknown one stops the start with its name. A secret may
be given as NAME or, better, as NAME_FILE with the path of a file that holds it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from gateway.errors import Refused

PREFIX = "GATEPASS_"
_SECRETS = ("UPSTREAM_API_KEY", "DATABASE_URL", "OIDC_CLIENT_SECRET")
_DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(value: object) -> timedelta:
    """Read `30m`, `90s`, `1h30m` or a number of seconds."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    if text.isdigit():
        return timedelta(seconds=int(text))
    parts = _DURATION.findall(text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.replace(" ", ""):
        raise ValueError("a duration such as 90s, 30m, 8h or 1h30m is expected")
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))


def _paths(value: object) -> object:
    if isinstance(value, str):
        return tuple(Path(part) for part in value.split(os.pathsep) if part)
    return value


def _hosts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip().lower() for part in value.split(",") if part.strip())
    return value


def _pairs(value: object) -> object:
    """Read `a=x,b=y,a=z`, or JSON such as `{"a": ["x", "z"]}` for names with commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("this begins like JSON and is none") from None
    found: dict[str, tuple[str, ...]] = {}
    for pair in filter(None, (part.strip() for part in value.split(","))):
        name, equals, target = (part.strip() for part in pair.rpartition("="))
        if not (name and equals and target):
            raise ValueError("pairs such as theirs=ours, separated by commas, are expected")
        found[name] = (*found.get(name, ()), target)
    return found


Duration = Annotated[timedelta, BeforeValidator(duration)]
Pairs = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_pairs)]
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ANY_TENANT = re.compile(r"https://login\.microsoftonline\.\w+/(common|organizations|consumers)\b")


class Settings(BaseModel):
    """What one process runs with. Read once at the start; never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:8080", description="Address and port to listen on.")
    public_url: str = Field(
        "http://127.0.0.1:8080", description="Where people and apps reach the gateway."
    )
    data_dir: Path = Field(
        Path("data"), description="SQLite file and the keys made at first start (mode 0600)."
    )
    database_url: str = Field(
        "",
        repr=False,  # it may hold a password
        description="Empty: SQLite in the data directory. Else postgresql+asyncpg://…; also as "
        "GATEPASS_DATABASE_URL_FILE.",
    )
    upstream_url: str | None = Field(
        None, description="The Azure resource, https://RESOURCE.openai.azure.com/openai/v1/"
    )
    upstream_api_key: SecretStr | None = Field(
        None, description="Key of the resource; also as GATEPASS_UPSTREAM_API_KEY_FILE."
    )
    upstream_auth: Literal["key", "entra"] = Field(
        "key",
        description="How to sign in to Azure: by the key, or as the gateway's own identity at "
        "Azure, with a token of Microsoft Entra ID.",
    )
    upstream_scope: str = Field(
        "https://cognitiveservices.azure.com/.default",
        description="With `entra`: what the token is for. National clouds, and newer resources, "
        "have others.",
    )
    azure_credential: Literal["default", "managed", "workload"] = Field(
        "default",
        description="The gateway's identity at Azure: a managed identity, the workload identity of "
        "its pod, or the first that is found (these, the variables of a service principal, the "
        "command line of a developer).",
    )
    azure_client_id: str | None = Field(
        None, description="Client id of that identity, where there is more than one."
    )
    vault_addr: str | None = Field(
        None,
        description="OpenBao or HashiCorp Vault, for `vault:` references: https://HOST:8200",
    )
    vault_auth: Literal["token", "approle", "kubernetes"] = Field(
        "token", description="How the gateway signs in there; see docs/vaults.md."
    )
    vault_token: SecretStr | None = Field(
        None, description="For `token`. Better as a file: it is read again when it changes."
    )
    vault_token_file: Path | None = Field(None, description="For `token`: a file that holds it.")
    vault_role_id: str | None = Field(None, description="For `approle`: the id of the role.")
    vault_secret_id: SecretStr | None = Field(
        None, description="For `approle`: the secret id. Better as a file."
    )
    vault_secret_id_file: Path | None = Field(
        None, description="For `approle`: a file that holds the secret id, read at each sign-in."
    )
    vault_role: str | None = Field(None, description="For `kubernetes`: the name of the role.")
    vault_jwt_file: Path = Field(
        Path("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        description="For `kubernetes`: the token of the pod's service account, read at each "
        "sign-in.",
    )
    vault_mount: str | None = Field(
        None, description="Where the way to sign in is mounted, if not at its own name."
    )
    vault_namespace: str | None = Field(None, description="Namespace of mounts and sign-in.")
    vault_ca_file: Path | None = Field(
        None, description="Certificates that sign the vault's own; else those of the system."
    )
    keyvault_suffix: str = Field(
        "vault.azure.net",
        description="What follows the name of an Azure Key Vault, for `keyvault:` references; "
        "another one in a national cloud.",
    )
    secret_cache: Duration = Field(
        timedelta(seconds=5),
        description="How long a value from another vault may be used again where no approved call "
        "goes out with it. Approved calls always ask the vault.",
    )
    master_key_file: Path | None = Field(
        None,
        description="32 bytes that wrap every data key. Made in the data directory when absent; "
        "required with PostgreSQL.",
    )
    signing_key_file: Path | None = Field(
        None,
        description="32-byte Ed25519 seed that signs the ledger. Made in the data directory when "
        "absent; required with PostgreSQL.",
    )
    ledger_origin: str = Field("gatepass", description="Name of the ledger in its checkpoints.")
    config: Annotated[tuple[Path, ...], BeforeValidator(_paths)] = Field(
        (), description="Declarative files applied at start, separated by the path separator."
    )
    allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(_hosts)] = Field(
        (),
        description="More Host names to answer to, beside that of GATEPASS_PUBLIC_URL; for apps "
        "as for people.",
    )
    approval_expires: Duration = Field(
        timedelta(hours=1), description="How long a request waits for people before it is denied."
    )
    break_glass_review: Duration = Field(
        timedelta(hours=24),
        description="How soon somebody else must have looked into an approval in an emergency.",
    )
    disconnect_grace: Duration = Field(
        timedelta(minutes=2),
        description="How long a hold outlives the app's lost connection before it is cancelled.",
    )
    heartbeat: Duration = Field(
        timedelta(seconds=10), description="Pause between two comments on a held stream."
    )
    keepalive: Duration = Field(
        timedelta(seconds=60), description="Pause between two typed keepalive events on a hold."
    )
    early_header: Duration = Field(
        timedelta(seconds=20), description="How long a held plain call is sent nothing at all."
    )
    plain_limit: Duration = Field(
        timedelta(seconds=570), description="When a held plain call is answered in_progress."
    )
    strict_limit: Duration = Field(
        timedelta(seconds=240), description="The same for apps that are held strictly."
    )
    upstream_timeout: Duration = Field(
        timedelta(minutes=10), description="Longest silence of Azure that is waited for."
    )
    drain: Duration = Field(
        timedelta(seconds=20),
        description="How long open answers may go on after SIGTERM. Held ones resume afterwards.",
    )
    allow_at_azure: bool = Field(
        False,
        description="Let Azure call tools that a rule always allows without asking the gateway "
        "first; see docs/policy.md.",
    )
    max_rounds: int = Field(25, ge=1, le=100, description="Rounds of one exchange at the most.")
    max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, description="Longest request body accepted from an app."
    )
    max_file_bytes: int = Field(
        512 * 1024 * 1024, ge=1024, description="Longest file that an app may upload."
    )
    oidc_issuer: str | None = Field(
        None,
        description="Identity provider that people sign in with, as it names itself; see "
        "docs/people.md.",
    )
    oidc_client_id: str | None = Field(
        None, description="What the identity provider calls this installation."
    )
    oidc_client_secret: SecretStr | None = Field(
        None,
        description="Its secret there; without one it is a public client. Also as "
        "GATEPASS_OIDC_CLIENT_SECRET_FILE.",
    )
    oidc_scopes: str = Field(
        "openid email profile", description="What the identity provider is asked for."
    )
    oidc_name: str = Field("single sign-on", description="What the button to sign in calls it.")
    oidc_roles_claim: str = Field(
        "roles",
        description="The claim that says who has which role; `a.b` is the member b of the claim a.",
    )
    oidc_groups_claim: str = Field(
        "groups", description="The claim that says who belongs to which reviewer group."
    )
    oidc_roles: Pairs = Field(
        {}, description="Values of that claim and the roles they give: theirs=ours,theirs=ours."
    )
    oidc_groups: Pairs = Field(
        {}, description="Values of that claim and the reviewer groups they stand for."
    )
    local_sign_in: bool = Field(
        True, description="Whether one-time links sign in who is not of the identity provider."
    )
    step_up: Duration = Field(
        timedelta(minutes=5),
        description="How old a sign-in may be where a rule says `step_up: true`.",
    )
    token_days: int = Field(
        366, ge=1, le=366, description="Longest life of a personal access token, in days."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged. Payloads never are."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.postgresql and (self.master_key_file is None or self.signing_key_file is None):
            raise ValueError(
                "with PostgreSQL, GATEPASS_MASTER_KEY_FILE and GATEPASS_SIGNING_KEY_FILE are "
                "required: every replica needs the same keys"
            )
        if self.upstream_auth == "entra" and self.upstream_api_key is not None:
            raise ValueError(
                "GATEPASS_UPSTREAM_AUTH=entra signs in without GATEPASS_UPSTREAM_API_KEY: give one"
            )
        for name in ("public_url", "upstream_url"):
            value = getattr(self, name)
            if value is not None and urlsplit(value).scheme not in {"http", "https"}:
                raise ValueError(f"{PREFIX}{name.upper()} must start with https:// or http://")
        given = {name for name in self.model_fields_set if getattr(self, name) not in (None, "")}
        problem = _problem_with_vault(self.vault_addr, self.vault_auth, given)
        if problem := problem or self._problem_with_sign_in():
            raise ValueError(problem)
        return self

    def _problem_with_sign_in(self) -> str | None:
        """Why people could not sign in, or anybody could, in a sentence."""
        given = self.oidc_client_id, self.oidc_client_secret, self.oidc_roles, self.oidc_groups
        if self.oidc_issuer is None:
            if any(given):
                return "GATEPASS_OIDC_ISSUER is missing: it names the identity provider"
            if not self.local_sign_in:
                return "GATEPASS_LOCAL_SIGN_IN=false needs GATEPASS_OIDC_ISSUER: nobody could enter"
            return None
        public = urlsplit(self.public_url)
        wrong = {
            "GATEPASS_OIDC_CLIENT_ID is missing": not self.oidc_client_id,
            "GATEPASS_OIDC_ROLES is missing: it says which values of the claim "
            f"{self.oidc_roles_claim!r} give which roles, such as reviewers=reviewer": (
                not self.oidc_roles
            ),
            "GATEPASS_OIDC_ISSUER must name one tenant: in common, organizations and consumers "
            "anybody may call themselves anything": bool(_ANY_TENANT.match(self.oidc_issuer)),
            "GATEPASS_OIDC_SCOPES must contain openid": "openid" not in self.oidc_scopes.split(),
            "GATEPASS_PUBLIC_URL must start with https:// where people come from an identity "
            "provider": public.scheme != "https" and public.hostname not in _LOOPBACK,
        }
        return next((sentence for sentence, is_so in wrong.items() if is_so), None)

    @property
    def postgresql(self) -> bool:
        """Whether the database is a PostgreSQL server rather than the embedded SQLite."""
        return self.database_url.startswith("postgresql")

    @property
    def resolved_database_url(self) -> str:
        """The URL to open, with the default filled in."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'gatepass.sqlite3'}"

    @property
    def resolved_master_key_file(self) -> Path:
        """Where the master key lies."""
        return self.master_key_file or self.data_dir / "master.key"

    @property
    def resolved_signing_key_file(self) -> Path:
        """Where the seed of the ledger's signing key lies."""
        return self.signing_key_file or self.data_dir / "signing.key"

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Where the gateway's own data and secrets lie: never to be sent as a credential."""
        files = (self.vault_token_file, self.vault_secret_id_file, self.vault_jwt_file)
        keys = (self.data_dir, self.resolved_master_key_file, self.resolved_signing_key_file)
        return (*keys, *(file for file in files if file is not None))

    @property
    def bind(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


#: What each way to sign in to a vault takes: each of these, and one of each pair.
_SIGN_IN: dict[str, tuple[tuple[str, ...], ...]] = {
    "token": (("vault_token", "vault_token_file"),),
    "approle": (("vault_role_id",), ("vault_secret_id", "vault_secret_id_file")),
    "kubernetes": (("vault_role",),),
}
_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})


def _problem_with_vault(address: str | None, auth: str, given: set[str]) -> str | None:
    """What is wrong with the settings of the vault; `given` names those that were."""
    ours = {name for name in given if name.startswith("vault_")}
    if address is None:
        return f"GATEPASS_VAULT_ADDR is missing, which {_variables(ours)} need" if ours else None
    parts = urlsplit(address)
    plain = parts.scheme == "http" and parts.hostname in _LOCAL
    if not parts.hostname or not (parts.scheme == "https" or plain):
        return "GATEPASS_VAULT_ADDR must start with https:// (http:// on this machine alone)"
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        return "GATEPASS_VAULT_ADDR must hold nothing but scheme, host and port"
    wanted = _SIGN_IN[auth]
    for choice in wanted:
        if len(ours & set(choice)) != 1:
            return f"with GATEPASS_VAULT_AUTH={auth}, set {_variables(choice, ' or ')}"
    secrets = {name for pairs in _SIGN_IN.values() for choice in pairs for name in choice}
    useless = ours & (secrets - {name for choice in wanted for name in choice})
    return f"{_variables(useless)}: of no use with GATEPASS_VAULT_AUTH={auth}" if useless else None


def _variables(names: Iterable[str], between: str = ", ") -> str:
    return between.join(sorted(f"{PREFIX}{name.upper()}" for name in names))


def environment() -> Mapping[str, str]:
    """The process's environment, for `load` and for the vault's `env:` references."""
    return os.environ  # noqa: TID251  this module is the one reader


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings; raises `Refused` naming every variable that is unknown or wrong."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        name = variable.removeprefix(PREFIX)
        if name.removesuffix("_FILE") in _SECRETS and name.endswith("_FILE"):
            name = name.removesuffix("_FILE")
            try:
                values[name.lower()] = Path(environ[variable]).read_text().strip()
            except OSError as error:
                problems.append(f"{variable}: {error.strerror}: {environ[variable]}")
        elif name.lower() in Settings.model_fields:
            values.setdefault(name.lower(), environ[variable])
        else:
            problems.append(f"{variable} is not a setting of Gatepass")
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_problem(item["loc"], item["msg"]) for item in error.errors()]
        raise Refused("; ".join(problems), code="configuration_invalid") from None
    if problems:
        raise Refused("; ".join(problems), code="configuration_invalid")
    return settings


def _problem(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{PREFIX}{str(location[0]).upper()}: {message}" if location else message
