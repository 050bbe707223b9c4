"""docker-compose.yml: profiles, secrets, volumes, health, and what each service is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deploy_files import DEPLOY, KNOWN_SETTINGS, ROOT, compose, dockerfile, read_yaml
from server.cli import app

SERVICES: dict[str, Any] = compose()["services"]
SERVERS = ("megacontext-gpu", "megacontext-cpu")
SECRETS = ("MEGACONTEXT_API_KEY", "REDIS_PASSWORD", "GRAFANA_PASSWORD")
STANDARD = {
    "OTEL_SERVICE_NAME",
    "OTEL_METRICS_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
}


def _compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    return None


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_itself_takes_the_file(profile: str, tmp_path: Path) -> None:
    """Law: compose's own parser accepts the file, and each profile has one server and all that it needs."""
    command = _compose_command()
    if command is None:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    filled = {**os.environ, **dict.fromkeys(SECRETS, "secret")}
    nothing = tmp_path / "empty.env"
    nothing.touch()
    command += ["-f", str(ROOT / "docker-compose.yml"), "--env-file", str(nothing), "--profile", profile]
    done = _config(command, filled)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)["services"]
    active = {name for name, service in shown.items() if profile in service.get("profiles", [profile])}
    assert active == {name for name in SERVICES if name not in SERVERS} | {f"megacontext-{profile}"}
    for secret in SECRETS:
        without = {name: value for name, value in filled.items() if name != secret}
        assert secret in _config(command, without).stderr


def _config(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, "config"], env=env, capture_output=True, text=True, check=False)


def test_profiles() -> None:
    """Law: one profile, one server; only the GPU's reserves a device; what is beside them runs with both."""
    for name, service in SERVICES.items():
        kind = name.removeprefix("megacontext-")
        assert service["profiles"] == ([kind] if name in SERVERS else ["gpu", "cpu"])
        assert ("deploy" in service) == (name == "megacontext-gpu")
    (device,) = SERVICES["megacontext-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


@pytest.mark.parametrize("name", SERVERS)
def test_server_is_told_settings_that_exist(name: str) -> None:
    """Law: the command and its environment are real, the image's stage too, and the drain fits before the kill."""
    service = SERVICES[name]
    assert service["command"] == ["megacontext", "serve"]
    assert CliRunner().invoke(app, [*service["command"][1:], "--help"]).exit_code == 0
    assert set(service["environment"]) <= KNOWN_SETTINGS | STANDARD
    assert service["build"]["target"] in dockerfile()
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace >= service["environment"]["MEGACONTEXT_DRAIN_SECONDS"] + 5


@pytest.mark.parametrize("name", SERVERS)
def test_server_reaches_its_neighbours(name: str) -> None:
    """Law: the hosts in the server's URLs are services on a network that it shares, and it starts after its store."""
    service = SERVICES[name]
    for setting in ("MEGACONTEXT_STORE", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        url = re.sub(r"\$\{[^}]*\}", "x", service["environment"][setting])
        host = re.fullmatch(r"(?:redis://:x@|http://)([\w-]+):(\d+)(?:/0)?", url)
        assert host
        assert set(SERVICES[host[1]]["networks"]) & set(service["networks"])
    assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_secrets_come_from_the_environment() -> None:
    """Law: no secret stands in a file, none has a default, and each one that is needed is in the example to fill in."""
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    for secret in SECRETS:
        used = re.findall(rf"(?<!\$)\$\{{{secret}([^}}]*)\}}", text)
        assert used
        assert all(rest.startswith(":?") for rest in used)
    for line in re.findall(r"^\s+\w*(?:PASSWORD|KEY|SECRET|TOKEN)\w*: .*$", text, re.MULTILINE):
        assert re.search(r":\s+\$\{\w+:\?", line), line
    example = (DEPLOY / "compose.env.example").read_text("utf-8")
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == set(SECRETS)
    defaults = dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", text))
    assert dict(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE)) == defaults


def test_services_are_pinned_hardened_and_watched() -> None:
    """Law: full versions, no root file system to write, no capabilities, a way to tell whether each one works."""
    checked = {stage.name for stage in dockerfile().values() if stage.arguments("HEALTHCHECK")}
    jobs = {job["job_name"] for job in read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]}
    for name, service in SERVICES.items():
        if name not in SERVERS:
            assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"]), name
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        # One image has no shell to run a check with: Prometheus watches that service instead.
        assert "healthcheck" in service or (name in SERVERS and checked) or name in jobs
        for needed in service.get("depends_on", {}).values():
            assert needed == {"condition": "service_healthy"}
        for needed in service.get("depends_on", {}):
            assert "healthcheck" in SERVICES[needed]


def test_ports_are_open_to_this_machine_alone() -> None:
    """Law: nothing listens on an outside address until somebody decides so, and Redis on none."""
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "ports" not in SERVICES["redis"]
    assert SERVICES["redis"]["networks"] == ["store"]
    assert compose()["networks"]["store"]["internal"] is True


def test_data_outlives_containers() -> None:
    """Law: what is kept lies on named volumes, what is mounted from the project exists and is read-only."""
    volumes = set(compose()["volumes"])
    used = set()
    for service in SERVICES.values():
        for source, target, *mode in (volume.split(":") for volume in service.get("volumes", [])):
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert mode == ["ro"]
            else:
                used.add(source)
                assert target.startswith("/")
    assert used == volumes
    assert {"/data", "/prometheus", "/var/lib/grafana", "/var/tempo"} == {
        volume.split(":")[1] for service in SERVICES.values() for volume in service["volumes"] if "./" not in volume
    }


def test_collector_pipelines_are_whole() -> None:
    """Law: each part that a pipeline names is defined, each that is defined is used, and what it sends to listens."""
    config = read_yaml(DEPLOY / "otel-collector.yml")
    pipelines = config["service"]["pipelines"]
    for part in ("receivers", "processors", "exporters"):
        assert set(config[part]) == {name for pipeline in pipelines.values() for name in pipeline[part]}
    host, _, port = config["exporters"]["otlp/tempo"]["endpoint"].partition(":")
    listens = read_yaml(DEPLOY / "tempo.yml")["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert (host in SERVICES, listens) == (True, f"0.0.0.0:{port}")
    own = config["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]["port"]
    offered = config["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    scraped = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    (targets,) = [job["static_configs"][0]["targets"] for job in scraped if job["job_name"] == "otel-collector"]
    assert targets == [f"otel-collector:{own}", f"otel-collector:{offered}"]
    for name in SERVERS:
        port = SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2]
        assert config["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == f"0.0.0.0:{port}"


def test_scrapes_and_sources_name_services() -> None:
    """Law: Prometheus' targets and Grafana's sources are services of the file, reached on one network."""
    names = set(SERVICES) | {"megacontext", "localhost"}
    config = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")
    for job in config["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            assert target.partition(":")[0] in names
    for server in SERVERS:
        assert SERVICES[server]["networks"]["telemetry"]["aliases"] == ["megacontext"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    sources = read_yaml(provisioning / "datasources" / "datasources.yml")["datasources"]
    for source in sources:
        assert re.fullmatch(r"http://([\w-]+):\d+", source["url"])[1] in SERVICES  # type: ignore[index]
    dashboard = (DEPLOY / "grafana" / "dashboards" / "megacontext.json").read_text("utf-8")
    assert set(re.findall(r'"uid": "(\w+)"', dashboard)) - {"megacontext"} <= {source["uid"] for source in sources}
    (provider,) = read_yaml(provisioning / "dashboards" / "dashboards.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / "dashboards" / Path(home).name).exists()
