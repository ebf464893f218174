"""The Helm chart: rendered by Helm's own library, validated strictly against Kubernetes schemas.

No cluster is started here: what is shown is that the objects are well formed, hardened and refer
to each other, and that values which cannot work are refused before anything is installed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from gateway.config import load

CHART = Path(__file__).parents[2] / "helm"
OLDEST, NEWEST = "1.25.0", kubernetes_validate.latest_version()

POSTGRES: dict[str, Any] = {
    "publicUrl": "https://gatepass.example",
    "database": {"kind": "postgresql", "existingSecret": "gatepass-db"},
    "keys": {"existingSecret": "gatepass-keys"},
    "upstream": {
        "url": "https://res.openai.azure.com/openai/v1/",
        "existingSecret": "gatepass-azure",
    },
    "signIn": {
        "issuer": "https://login.microsoftonline.com/0b1c/v2.0",
        "clientId": "gatepass",
        "existingSecret": "gatepass-sign-in",
        "roles": "Reviewer=reviewer",
    },
    "config": {"b.yaml": "apps: []\n", "a.yaml": "servers: []\n"},
    "credentialSecrets": ["mcp-credentials"],
    "settings": {"GATEPASS_APPROVAL_EXPIRES": "30m"},
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["pull"]},
    "networkPolicy": {
        "from": [{"podSelector": {"matchLabels": {"app": "bot"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    },
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "podAnnotations": {"example.org/team": "platform"},
}
INGRESS: dict[str, Any] = {
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "gatepass.example",
        "tlsSecret": "gatepass-tls",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
    },
    "persistence": {"storageClass": "fast", "size": "20Gi"},
}
REPLICAS: dict[str, Any] = {**POSTGRES, "replicaCount": 3}
VAULT: dict[str, Any] = {
    "vault": {
        "address": "https://vault.example:8200",
        "role": "gatepass",
        "audience": "vault",
        "namespace": "team",
        "caConfigMap": "vault-ca",
    },
    "credentialFiles": ["crm.token", "wiki"],
    "podLabels": {"azure.workload.identity/use": "true"},
}
APPROLE: dict[str, Any] = {
    "vault": {
        "address": "https://vault.example:8200",
        "auth": "approle",
        "roleId": "gatepass",
        "existingSecret": "vault-secret-id",
        "mount": "teams/approle",
    }
}
TOKEN: dict[str, Any] = {
    "vault": {"address": "https://vault.example", "auth": "token", "existingSecret": "token"}
}
CASES = {"default": {}, "postgresql": POSTGRES, "replicas": REPLICAS, "ingress": INGRESS,
         "vault": VAULT, "approle": APPROLE, "token": TOKEN}  # fmt: skip


@pytest.fixture(scope="module")
def chart() -> Iterator[helm_python.Chart]:
    with helm_python.Chart.load(CHART) as loaded:
        yield loaded


def render(chart: helm_python.Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    chart.validate_schema(chart.merge_values(values))
    files = chart.render(values, name="demo", namespace="prod", is_install=True)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def by_kind(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    kinds = {item["kind"]: item for item in objects}
    assert len(kinds) == len(objects)
    return kinds


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item["spec"]["template"]["spec"] for item in objects if "template" in item["spec"]]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("name", CASES)
def test_lint_finds_nothing(name: str) -> None:
    report = helm_python.lint(CHART, CASES[name], strict=True, kube_version="v1.30.0")
    findings = [message for message in report["messages"] if "icon" not in message["error"]]
    assert findings == []
    assert report["errors"] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", CASES)
def test_every_object_is_strictly_valid(chart: helm_python.Chart, name: str, version: str) -> None:
    for item in render(chart, CASES[name]):
        kubernetes_validate.validate(item, version, strict=True)


def test_strict_validation_would_see_a_misspelt_member(chart: helm_python.Chart) -> None:
    deployment = copy.deepcopy(by_kind(render(chart, {}))["Deployment"])
    deployment["spec"]["template"]["spec"]["containers"][0]["securityContex"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


def test_a_vault_is_signed_in_to_with_what_is_mounted(chart: helm_python.Chart) -> None:
    for values, variable, file in (
        (VAULT, "GATEPASS_VAULT_JWT_FILE", "jwt"),
        (APPROLE, "GATEPASS_VAULT_SECRET_ID_FILE", "value"),
        (TOKEN, "GATEPASS_VAULT_TOKEN_FILE", "value"),
    ):
        objects = by_kind([item for item in render(chart, values) if item["kind"] != "ConfigMap"])
        pod = objects["Deployment"]["spec"]["template"]["spec"]
        (gateway,) = pod["containers"]
        env = {entry["name"]: entry["value"] for entry in gateway["env"]}
        assert env[variable] == f"/run/gatepass/vault/{file}"
        environ = {name: value for name, value in env.items() if name.startswith("GATEPASS_VAULT_")}
        assert load(environ).vault_auth == values["vault"].get("auth", "kubernetes")
        (volume,) = [one for one in pod["volumes"] if one["name"] == "vault"]
        source = volume["projected"]["sources"][0]
        paths = [item["path"] for kind in source.values() for item in kind.get("items", [kind])]
        assert paths == [file]
        ports = [rule["port"] for rule in objects["NetworkPolicy"]["spec"]["egress"][1]["ports"]]
        assert 8200 in ports
    mounts = {mount["mountPath"] for mount in _gateway(render(chart, VAULT))["volumeMounts"]}
    assert {"/run/credentials/crm.token", "/run/credentials/wiki"} <= mounts


def _gateway(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (pod,) = [item for item in objects if item["kind"] == "Deployment"]
    (found,) = pod["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_pods_are_hardened(chart: helm_python.Chart, name: str) -> None:
    for pod in pods([item for item in render(chart, CASES[name]) if "spec" in item]):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False  # else GATEPASS_PORT=… stops the start
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 10000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts <= {volume["name"] for volume in pod["volumes"]}
            assert {"data", "tmp"} <= mounts


@pytest.mark.parametrize("name", CASES)
def test_no_secret_value_is_in_the_chart(chart: helm_python.Chart, name: str) -> None:
    objects = render(chart, CASES[name])
    assert "Secret" not in {item["kind"] for item in objects}
    for pod in pods([item for item in objects if "spec" in item]):
        for entry in (entry for container in containers(pod) for entry in container["env"]):
            if entry["name"].endswith("_FILE"):
                assert entry["value"].startswith(("/run/gatepass/", "/data/"))
            elif re.search(r"DATABASE_URL|API_KEY$|_SECRET|_TOKEN", entry["name"]):
                assert "secretKeyRef" in entry["valueFrom"], entry["name"]


def test_sqlite_runs_once_and_keeps_its_data(chart: helm_python.Chart) -> None:
    kinds = by_kind(render(chart, {}))
    assert kinds.keys() == {
        "Deployment",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Service",
        "ServiceAccount",
    }
    deployment = kinds["Deployment"]["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    pod = deployment["template"]["spec"]
    assert [container["args"] for container in containers(pod)] == [["migrate"], ["serve"]]
    claim = kinds["PersistentVolumeClaim"]["metadata"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": claim["name"]}} in pod["volumes"]
    assert claim["annotations"]["helm.sh/resource-policy"] == "keep"


def test_postgresql_migrates_before_the_new_pods(chart: helm_python.Chart) -> None:
    kinds = by_kind(render(chart, POSTGRES))
    assert "PersistentVolumeClaim" not in kinds
    job = kinds["Job"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # A hook of the first installation cannot use what the release itself creates.
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    (migrate,) = job["spec"]["template"]["spec"]["containers"]
    assert migrate["args"] == ["migrate"]
    shared = {"GATEPASS_DATABASE_URL", "GATEPASS_MASTER_KEY_FILE", "GATEPASS_SIGNING_KEY_FILE"}
    assert shared <= {entry["name"] for entry in migrate["env"]}
    (gateway,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert gateway["image"].endswith("@sha256:" + "0" * 64)
    assert gateway["envFrom"] == [{"secretRef": {"name": "mcp-credentials"}}]
    environment = {entry["name"]: entry.get("value") for entry in gateway["env"]}
    assert environment["GATEPASS_CONFIG"] == "/etc/gatepass/a.yaml:/etc/gatepass/b.yaml"
    assert environment["GATEPASS_OIDC_ROLES"] == "Reviewer=reviewer"
    file = environment["GATEPASS_OIDC_CLIENT_SECRET_FILE"]
    assert file.rpartition("/")[0] in {m["mountPath"] for m in gateway["volumeMounts"]}
    assert "GATEPASS_OIDC_GROUPS" not in environment
    assert set(kinds["ConfigMap"]["data"]) == {"a.yaml", "b.yaml"}


def test_replicas_are_replaced_one_by_one_and_kept_apart(chart: helm_python.Chart) -> None:
    kinds = by_kind(render(chart, REPLICAS))
    deployment = kinds["Deployment"]["spec"]
    assert deployment["replicas"] == 3
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    labels = deployment["template"]["metadata"]["labels"].items()
    budget = kinds["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels
    apart = deployment["template"]["spec"]["affinity"]["podAntiAffinity"]
    terms = apart["preferredDuringSchedulingIgnoredDuringExecution"]
    keys = {term["podAffinityTerm"]["topologyKey"] for term in terms}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for term in terms:
        selector = term["podAffinityTerm"]["labelSelector"]["matchLabels"]
        assert selector.items() <= labels


def test_a_single_replica_needs_no_budget_and_an_affinity_of_ones_own_wins(
    chart: helm_python.Chart,
) -> None:
    assert "PodDisruptionBudget" not in by_kind(render(chart, POSTGRES))
    off = {**REPLICAS, "podDisruptionBudget": {"enabled": False}}
    assert "PodDisruptionBudget" not in by_kind(render(chart, off))
    own = {"nodeAffinity": {}}
    kinds = by_kind(render(chart, {**REPLICAS, "affinity": own}))
    assert kinds["Deployment"]["spec"]["template"]["spec"]["affinity"] == own


@pytest.mark.parametrize("name", CASES)
def test_environment_holds_only_settings_that_exist(chart: helm_python.Chart, name: str) -> None:
    from gateway.config import Settings

    known = {"GATEPASS_" + field.upper() for field in Settings.model_fields}
    known |= {variable + "_FILE" for variable in known}
    for pod in pods([item for item in render(chart, CASES[name]) if "spec" in item]):
        for container in containers(pod):
            names = [entry["name"] for entry in container["env"]]
            assert set(names) <= known
            assert len(names) == len(set(names))


def test_H_12_pods_and_visitors_may_call_the_gateway_by_its_names(chart: helm_python.Chart) -> None:
    more = {"GATEPASS_ALLOWED_HOSTS": "proxy.example"}
    values = {"settings": more, "ingress": {"host": "gate.example"}}
    kinds = by_kind(render(chart, values))
    name = kinds["Service"]["metadata"]["name"]
    container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    found = {entry["name"]: entry.get("value") for entry in container["env"]}
    hosts = found["GATEPASS_ALLOWED_HOSTS"].split(",")
    assert hosts[0] == name
    assert hosts[1].startswith(f"{name}.")
    assert hosts[2:4] == [f"{hosts[1]}.svc", f"{hosts[1]}.svc.cluster.local"]
    assert hosts[4:] == ["gate.example", "proxy.example"]


@pytest.mark.parametrize("name", CASES)
def test_parts_select_each_other(chart: helm_python.Chart, name: str) -> None:
    kinds = by_kind(render(chart, CASES[name]))
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert kinds["Service"]["spec"]["selector"].items() <= labels
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    if "Job" in kinds:  # the Service must never send traffic to a migrating pod
        job = kinds["Job"]["spec"]["template"]["metadata"]["labels"].items()
        assert not kinds["Service"]["spec"]["selector"].items() <= job
    probes = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert probes["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert probes["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("values", [POSTGRES, {"keys": {"existingSecret": "gatepass-keys"}}])
def test_the_signer_can_write_beside_its_key(
    chart: helm_python.Chart, values: dict[str, Any]
) -> None:
    # It keeps the last signed head there; on a read-only folder the ledger cannot be sealed.
    for pod in pods([item for item in render(chart, values) if "spec" in item]):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in containers(pod):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            settings = {entry["name"]: entry.get("value") for entry in container["env"]}
            for name in ("GATEPASS_MASTER_KEY_FILE", "GATEPASS_SIGNING_KEY_FILE"):
                path = Path(str(settings[name]))
                assert mounts[str(path)]["readOnly"] is True
                assert mounts[str(path)]["subPath"] == path.name
                folder = mounts[str(path.parent)]
                assert not folder.get("readOnly", False)
                assert volumes[folder["name"]].keys() & {"emptyDir", "persistentVolumeClaim"}


def test_ingress_leads_to_the_service(chart: helm_python.Chart) -> None:
    kinds = by_kind(render(chart, INGRESS))
    (rule,) = kinds["Ingress"]["spec"]["rules"]
    assert rule["host"] == "gatepass.example"
    service = rule["http"]["paths"][0]["backend"]["service"]
    assert service["name"] == kinds["Service"]["metadata"]["name"]
    assert kinds["Ingress"]["spec"]["tls"][0]["secretName"] == "gatepass-tls"


def test_network_policy_opens_only_what_is_named(chart: helm_python.Chart) -> None:
    for values, allowed in (({}, {53, 443}), (POSTGRES, {53, 443, 5432})):
        spec = by_kind(render(chart, values))["NetworkPolicy"]["spec"]
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        ports = [port for rule in spec["egress"] if "ports" in rule for port in rule["ports"]]
        assert {port["port"] for port in ports} == allowed
        assert all(rule.get("ports") or rule.get("to") for rule in spec["egress"])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"replicaCount": 2}, id="two replicas on sqlite"),
        pytest.param({"replicaCount": 0}, id="none"),
        pytest.param(
            {"database": {"kind": "postgresql"}, "keys": {"existingSecret": "k"}}, id="no database"
        ),
        pytest.param(
            {"database": {"kind": "postgresql", "existingSecret": "d"}}, id="no shared keys"
        ),
        pytest.param({"database": {"kind": "mysql"}}, id="unknown database"),
        pytest.param({"database": {"url": "postgresql://u:p@h/d"}}, id="secret as a value"),
        pytest.param({"upstream": {"apiKey": "abc"}}, id="key as a value"),
        pytest.param({"settings": {"GATEPASS_UPSTREAM_API_KEY": "abc"}}, id="key as a setting"),
        pytest.param({"settings": {"GATEPASS_VAULT_TOKEN": "abc"}}, id="token as a setting"),
        pytest.param({"vault": {"address": "https://v.example"}}, id="vault without a role"),
        pytest.param({"vault": {"address": "http://v.example", "role": "r"}}, id="plain vault"),
        pytest.param(
            {"vault": {"address": "https://v.example", "auth": "token"}}, id="vault without a token"
        ),
        pytest.param({"settings": {"LOG_LEVEL": "debug"}}, id="setting without the prefix"),
        pytest.param({"settings": {"GATEPASS_LISTEN": "0.0.0.0:1"}}, id="setting the chart owns"),
        pytest.param({"settings": {"GATEPASS_MAX_BODY_BYTES": 33554432}}, id="number unquoted"),
        pytest.param({"ingress": {"enabled": True}}, id="ingress without a host"),
        pytest.param({"image": {"digest": "sha256:abc"}}, id="short digest"),
        pytest.param({"publicUrl": "gatepass.example"}, id="no scheme"),
        pytest.param({"config": {"../x": "a"}}, id="file name that leaves the directory"),
        pytest.param({"replicas": 2}, id="misspelt"),
    ],
)
def test_values_that_cannot_work_are_refused(
    chart: helm_python.Chart, values: dict[str, Any]
) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        chart.validate_schema(chart.merge_values(values))


def test_the_chart_ships_the_version_of_the_project() -> None:
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parent / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version is not None
    assert metadata["version"] == metadata["appVersion"] == version.group(1)
