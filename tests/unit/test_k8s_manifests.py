"""The manifests: valid by the letter of the schemas, locked down, and about the program that exists."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sidecar import settings
from sidecar.settings import Settings

K8S = Path(__file__).parents[2] / "k8s"
ENVOY = K8S.parent / "envoy" / "envoy.yaml"
IMAGE = "registry.example.com/quota-sidecar"
FILES = sorted(path.name for path in K8S.glob("*.yaml") if path.name != "kustomization.yaml")


def documents(name: str | None = None) -> Iterator[dict[str, Any]]:
    for file in FILES if name is None else (name,):
        yield from yaml.safe_load_all((K8S / file).read_text())


def named(kind: str, name: str) -> dict[str, Any]:
    return next(found for found in documents() if (found["kind"], found["metadata"]["name"]) == (kind, name))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents():
        if "template" in document.get("spec", {}):
            yield document["metadata"]["name"], document["spec"]["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for pod, template in pods():
        spec = template["spec"]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            yield f"{pod}/{container['name']}", container


def ours() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((name, container) for name, container in containers() if container["image"] == IMAGE)


@pytest.mark.parametrize("version", ["1.33", "1.37"])
@pytest.mark.parametrize("file", FILES)
def test_every_document_is_valid_to_the_letter(file: str, version: str) -> None:
    for document in documents(file):
        kubernetes_validate.validate(document, version, strict=True)


def test_kustomize_applies_every_file() -> None:
    kustomization = yaml.safe_load((K8S / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == FILES
    assert {document["metadata"].get("namespace", "quota") for document in documents()} == {kustomization["namespace"]}


@pytest.mark.parametrize(("name", "container"), [pytest.param(*found, id=found[0]) for found in containers()])
def test_containers_cannot_write_gain_rights_or_take_the_node(name: str, container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("name", "template"), [pytest.param(*found, id=found[0]) for found in pods()])
def test_pods_are_not_root_and_hold_no_token(name: str, template: dict[str, Any]) -> None:
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert named("ServiceAccount", spec["serviceAccountName"])["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


def billing(name: str) -> dict[str, Any]:
    """A deployment as the component for Stripe makes it."""
    deployment = copy.deepcopy(named("Deployment", name))
    for patch in yaml.safe_load((K8S / "stripe" / "kustomization.yaml").read_text())["patches"]:
        if re.fullmatch(patch["target"]["name"], name):
            for change in yaml.safe_load(patch["patch"]):
                assert change["op"] == "add"
                place: Any = deployment
                *path, last = change["path"].removeprefix("/").split("/")
                for key in path:
                    place = place[int(key) if isinstance(place, list) else key]
                assert last == "-"
                place.append(change["value"])
    return deployment


@pytest.mark.parametrize("name", ["flusher", "control"])
def test_with_the_component_for_stripe_it_is_valid_and_reads_every_secret_from_a_file(
    name: str, tmp_path: Path
) -> None:
    deployment = billing(name)
    kubernetes_validate.validate(deployment, "1.37", strict=True)
    loaded = loads(deployment["spec"]["template"]["spec"]["containers"][0], tmp_path)
    assert loaded.stripe_key == "rk_live_0123456789"
    assert loaded.stripe_webhook_secrets == (("whsec_1", "whsec_2") if name == "control" else ())
    mounted = deployment["spec"]["template"]["spec"]["volumes"]
    assert [volume["secret"]["secretName"] for volume in mounted if volume["name"] == "stripe"] == ["quota-stripe"]


@pytest.mark.parametrize(("name", "container"), [pytest.param(*found, id=found[0]) for found in ours()])
def test_every_setting_exists_and_secrets_come_from_files(name: str, container: dict[str, Any], tmp_path: Path) -> None:
    loads(container, tmp_path)


def loads(container: dict[str, Any], tmp_path: Path) -> Settings:
    """What the program itself reads in the environment of the manifest, with files in place of the mounted secrets."""
    contents = {
        "key": "rk_live_0123456789",
        "webhook-secrets": "whsec_1,whsec_2",
        "url": "rediss://user:password@redis.example.com:6380/0",
        "dsn": "postgresql://user:password@postgres.example.com/quota",
        "admin-tokens": "0123456789abcdef0123456789abcdef",
    }
    environ = {}
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for variable in container["env"]:
        value = variable["value"]
        if variable["name"].endswith("_FILE"):
            path = Path(value)
            assert mounted[str(path.parent)]["readOnly"] is True
            secret = tmp_path / path.name
            secret.write_text(contents[path.name])
            value = str(secret)
        environ[variable["name"]] = value
    args = container["args"]
    roles = (args[args.index("--role") + 1],) if "--role" in args else ()
    loaded = settings.load(environ, **({"roles": roles} if roles else {}))
    secrets = {"redis_url", "postgres_dsn", "admin_tokens", "stripe_key", "stripe_webhook_secrets"}
    assert not secrets & {
        field.name for variable, field in settings.NAMES.items() if variable in environ and "_FILE" not in variable
    }
    if "--role" in args:
        assert loaded.state_dir in mounted
    return loaded


def test_the_sidecar_is_native_starts_before_the_gateway_and_ends_after_it() -> None:
    spec = dict(pods())["gateway"]["spec"]
    assert [(init["name"], init["restartPolicy"]) for init in spec["initContainers"]] == [
        ("sidecar", "Always"),
        ("envoy", "Always"),
    ]
    assert all("startupProbe" in init for init in spec["initContainers"])


def test_the_grace_period_covers_what_is_stopped_one_after_another() -> None:
    for name, template in pods():
        if name == "migrate":
            continue
        spec = template["spec"]
        every = [*spec.get("initContainers", ()), *spec["containers"]]
        sleeps = sum(each.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0) for each in every)
        drains = [
            int(variable["value"])
            for each in every
            for variable in each.get("env", ())
            if variable["name"] == "SIDECAR_DRAIN_S"
        ]
        assert len(drains) == 1
        assert spec["terminationGracePeriodSeconds"] >= sleeps + drains[0] + 10


def test_probes_ask_the_ops_port_and_mean_what_they_ask() -> None:
    for name, container in ours():
        if "--role" not in container["args"]:
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["ops"] == 9002
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "ops"}, name
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}, name


def test_what_listens_beyond_the_pod_is_let_in_and_nothing_else() -> None:
    assert named("NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    let_in = {
        port["port"]
        for document in documents("networkpolicy.yaml")
        for rule in document["spec"].get("ingress", ())
        for port in rule["ports"]
    }
    assert let_in == {10000, 9002, 9003}


def test_every_deployment_survives_the_draining_of_a_node() -> None:
    deployments = [document for document in documents() if document["kind"] == "Deployment"]
    assert {found["metadata"]["name"] for found in deployments} == {"gateway", "flusher", "control"}
    for deployment in deployments:
        budget = named("PodDisruptionBudget", deployment["metadata"]["name"])
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]
        assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]


def test_the_gateway_runs_the_tested_envoy_configuration() -> None:
    assert named("ConfigMap", "envoy-config")["data"]["envoy.yaml"] == ENVOY.read_text(), "copy it over again"


def test_each_part_has_a_login_of_its_own_and_only_those_it_needs() -> None:
    mounted = {
        pod: {volume["secret"]["secretName"] for volume in template["spec"]["volumes"] if "secret" in volume}
        for pod, template in pods()
    }
    assert mounted == {
        "gateway": {"quota-redis-authz"},
        "flusher": {"quota-redis-flusher", "quota-postgres-flusher"},
        "control": {"quota-postgres-control", "quota-control"},
        "migrate": {"quota-postgres-migrator"},
    }
