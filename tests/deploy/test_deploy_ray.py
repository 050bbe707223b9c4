"""The files for Ray Serve: what holds of them without a cluster."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from deploy_files import DEPLOY, KNOWN_SETTINGS, ROOT, read_yaml
from server.affinity import ROUTE, middlewares
from server.settings import Settings

CONFIG: dict[str, Any] = read_yaml(DEPLOY / "ray" / "serve.yaml")
SERVICE: dict[str, Any] = read_yaml(DEPLOY / "kubernetes" / "rayservice.yml")
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
TEMPLATES = [group["template"]["spec"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]
ENVIRONMENT = {
    "RAY_SERVE_SESSION_ID_HEADER_KEY": ROUTE,
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{middlewares.__module__}:{middlewares.__name__}",
}


def test_both_ways_deploy_the_same() -> None:
    """Law: KubeRay runs what `serve deploy` runs, with as many GPUs as replicas may need."""
    assert yaml.safe_load(SERVICE["spec"]["serveConfigV2"]) == CONFIG
    (application,) = CONFIG["applications"]
    (deployment,) = application["deployments"]
    (workers,) = CLUSTER["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    scaling = deployment["autoscaling_config"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == deployment["ray_actor_options"]["num_gpus"] == 1
    assert (workers["minReplicas"], workers["maxReplicas"]) == (scaling["min_replicas"], scaling["max_replicas"])


def test_the_application_takes_what_it_is_given() -> None:
    """Law: arguments are settings, the drain fits before the kill, and a replica scales up before it queues."""
    (application,) = CONFIG["applications"]
    (deployment,) = application["deployments"]
    settings = Settings(**application["args"])
    assert deployment["graceful_shutdown_timeout_s"] >= settings.drain_seconds + 5
    assert deployment["autoscaling_config"]["target_ongoing_requests"] <= settings.max_sessions
    for template in TEMPLATES[1:]:
        assert template["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]


def test_proxies_know_the_route_everywhere() -> None:
    """Law: each node's environment has what makes Ray's proxies tell and read the route; secrets come by reference."""
    text = (DEPLOY / "ray" / "serve.yaml").read_text("utf-8")
    for name, value in ENVIRONMENT.items():
        assert f"{name}={value}" in text
    for template in TEMPLATES:
        (container,) = template["containers"]
        env = {entry["name"]: entry for entry in container["env"]}
        assert ENVIRONMENT.items() <= {name: entry.get("value") for name, entry in env.items()}.items()
        assert {name for name in env if name.startswith("MEGACONTEXT_")} <= KNOWN_SETTINGS
        secret = {name for name, entry in env.items() if "valueFrom" in entry}
        assert secret == {"MEGACONTEXT_API_KEY", "MEGACONTEXT_STORE"}
        assert template["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_versions_are_one() -> None:
    """Law: the manifest names the Ray that the pins install, and the extra allows no other."""
    (pinned,) = re.findall(r"^ray==(\S+)$", Path(ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert CLUSTER["rayVersion"] == pinned
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["ray"]
    assert extra == [f"ray[serve]>={pinned.rpartition('.')[0]},<2.61"]
