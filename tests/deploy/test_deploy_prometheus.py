"""A real Prometheus with the project's configuration scrapes a real server, and answers what the dashboard asks."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy_files import DEPLOY, asked_of, dashboard_queries, rules
from support import free_port, running, settings_for, wait_until

PROMETHEUS = shutil.which("prometheus")
PATIENCE = 150
"""Seconds: scrapes are 15 s apart, a rate needs two of them."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus isn't installed (apt-get install prometheus)"),
]


@contextmanager
def prometheus(server: str, folder: Path) -> Iterator[str]:
    """Prometheus with deploy/prometheus/ as it is, but for the server's address -> its own address."""
    assert PROMETHEUS
    shutil.copytree(DEPLOY / "prometheus", folder / "etc")
    config = folder / "etc" / "prometheus.yml"
    text = config.read_text()
    assert "megacontext:8000" in text
    config.write_text(text.replace("megacontext:8000", server.removeprefix("http://")))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROMETHEUS, *flags], stdout=log, stderr=log)
        try:
            wait_until(lambda: _get(f"http://{address}/-/ready") is not None)
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)


def test_every_panel_has_data(model: Path, tmp_path: Path) -> None:
    """Law: on a server in use every query of the dashboard gives numbers, and the alert rules are loaded and well."""
    with (
        running(settings_for(model, tmp_path / "store.sqlite")) as server,
        prometheus(server, tmp_path) as address,
    ):
        lacking = dict.fromkeys(dashboard_queries())

        def all_answered() -> bool:
            _use(server)
            for panel, query in list(lacking):
                if _numbers(address, query):
                    del lacking[panel, query]
            return not lacking

        try:
            wait_until(all_answered, PATIENCE)
        except AssertionError:
            pytest.fail(f"no numbers for {list(lacking)}")
        assert _numbers(address, 'up{job="megacontext"}') == [1.0]
        scraped = {name for _, query in dashboard_queries() for name, _ in asked_of(query)}
        assert scraped <= set(httpx.get(f"{address}/api/v1/label/__name__/values").json()["data"])
        (group,) = httpx.get(f"{address}/api/v1/rules").json()["data"]["groups"]
        assert {rule["name"] for rule in group["rules"]} == {rule["alert"] for rule in rules()}
        states = {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]}
        # Of the compose file's other services none runs here.
        assert states.pop("TargetDown") == ("ok", "pending")
        assert set(states.values()) <= {("ok", "inactive"), ("unknown", "inactive")}


def _use(server: str) -> None:
    """A turn long enough to refocus while it decodes, a document, and a question that is refused."""
    turn: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 48}
    httpx.post(f"{server}/v1/chat/completions", json=turn | {"ignore_eos": True}, timeout=60).raise_for_status()
    session = httpx.post(f"{server}/v1/sessions", json={}).raise_for_status().json()["id"]
    httpx.post(f"{server}/v1/sessions/{session}/ingest", json={"text": "It was the best of times. " * 40}, timeout=60)
    assert httpx.get(f"{server}/v1/sessions/nobody").status_code == 404


def _numbers(address: str, query: str) -> list[float]:
    answer = httpx.get(f"{address}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    values = [float(series["value"][1]) for series in answer["data"]["result"]]
    return [value for value in values if not math.isnan(value)]


def _get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url).raise_for_status()
    except httpx.HTTPError:
        return None
