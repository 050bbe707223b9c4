"""The Kubernetes manifest: what holds of it without a cluster."""

from __future__ import annotations

from typing import Any

import yaml

from deploy_files import DEPLOY, KNOWN_SETTINGS, compose

TEXT = (DEPLOY / "kubernetes" / "megacontext.yml").read_text("utf-8")
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(TEXT))
SET = next(document for document in DOCUMENTS if document["kind"] == "StatefulSet")["spec"]
POD = SET["template"]["spec"]
(SERVER,) = POD["containers"]
ENV = {entry["name"]: entry for entry in SERVER["env"]}


def test_parts_fit_each_other() -> None:
    """Law: services, budget and replicas select the pods that the set makes, by ports that these have."""
    labels = SET["template"]["metadata"]["labels"]
    assert SET["selector"]["matchLabels"] == labels
    ports = {port["name"] for port in SERVER["ports"]}
    services = {document["metadata"]["name"]: document for document in DOCUMENTS if document["kind"] == "Service"}
    for service in services.values():
        assert service["spec"]["selector"] == labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert services[SET["serviceName"]]["spec"]["clusterIP"] == "None"
    (budget,) = [document for document in DOCUMENTS if document["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["selector"]["matchLabels"] == labels


def test_one_gpu_a_replica() -> None:
    """Law: each replica owns one GPU, and its memory is bounded."""
    assert SERVER["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "memory" in SERVER["resources"]["limits"]
    assert SERVER["image"].endswith(":cuda")


def test_settings_and_secrets() -> None:
    """Law: what the server is told are settings of it; keys and the store's password come from a Secret alone."""
    assert {name for name in ENV if name.startswith("MEGACONTEXT_")} <= KNOWN_SETTINGS
    keys = {name: entry["valueFrom"]["secretKeyRef"]["key"] for name, entry in ENV.items() if "valueFrom" in entry}
    assert keys == {"MEGACONTEXT_API_KEY": "api-key", "MEGACONTEXT_STORE": "store"}
    assert all(document["kind"] != "Secret" for document in DOCUMENTS)
    # The compose file's collector listens for the same.
    told = compose()["services"]["megacontext-gpu"]["environment"]
    for name in (name for name in told if name.startswith("OTEL_")):
        assert ENV[name]["value"] == told[name]
    for key in keys.values():
        assert f"--from-literal={key}=" in TEXT


def test_a_service_cannot_change_a_setting() -> None:
    """Law: Kubernetes' own MEGACONTEXT_PORT=tcp://... doesn't reach the server's setting of that name."""
    named = {document["metadata"]["name"] for document in DOCUMENTS if document["kind"] == "Service"}
    assert {f"{name}_PORT".upper() for name in named} & KNOWN_SETTINGS
    assert POD["enableServiceLinks"] is False


def test_probes() -> None:
    """Law: a server that loads is waited for, one that is dead is restarted, one that isn't ready gets no requests."""
    paths = {name: SERVER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert SERVER["startupProbe"]["periodSeconds"] * SERVER["startupProbe"]["failureThreshold"] >= 120


def test_the_drain_fits_before_the_kill() -> None:
    """Law: the time until the kill holds the wait for the endpoints, the drain and the last answers."""
    wait = int(SERVER["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain = int(ENV["MEGACONTEXT_DRAIN_SECONDS"]["value"])
    assert POD["terminationGracePeriodSeconds"] >= wait + drain + 5


def test_pods_are_unprivileged() -> None:
    """Law: no root, no capability, no account token, a root file system that nobody writes, and the image's own uid."""
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == 10001
    assert f"--uid {POD['securityContext']['runAsUser']} " in (DEPLOY.parent / "Dockerfile").read_text("utf-8")
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = SERVER["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}


def test_every_mount_is_a_volume() -> None:
    """Law: what is mounted is a claim or a volume; /data, where the image writes, is a claim."""
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in SET["volumeClaimTemplates"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in SERVER["volumeMounts"]}
    assert set(mounts.values()) == set(claims) | {volume["name"] for volume in POD["volumes"]}
    assert claims[mounts["/data"]]["resources"]["requests"]["storage"]
