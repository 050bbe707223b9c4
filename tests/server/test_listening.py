"""Where a server listens, and how it is reached there: sockets, HTTPS, paths of proxies."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError
from typer.testing import CliRunner

from mc_core.errors import ConfigError
from server.app import build_app
from server.cli import app as command
from server.doctor import _access
from server.serve import DrainingServer, check_tls, uvicorn_config
from server.settings import Settings
from support import free_port, running, settings_for, wait_until


@contextmanager
def listening(settings: Settings) -> Iterator[None]:
    """The real server, listening as its settings say."""
    app = build_app(settings)
    server = DrainingServer(uvicorn_config(app, settings), app, settings.drain_seconds)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of this machine, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*made, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_a_unix_socket(model_dir: Path, tmp_path: Path) -> None:
    """With --unix-socket the API answers there, and on no port."""
    path, port = tmp_path / "mc.sock", free_port()
    with listening(settings_for(model_dir, tmp_path / "s.sqlite", unix_socket=path, port=port)):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http:
            assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def test_https(model_dir: Path, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """With --tls-cert and --tls-key a client that trusts the certificate is answered, and plain HTTP is not."""
    cert, key = certificate
    port = free_port()
    with listening(settings_for(model_dir, tmp_path / "s.sqlite", tls_cert=cert, tls_key=key, port=port)):
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"https://127.0.0.1:{port}/v1/models", verify=trusting).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/v1/models")


def test_tls_files_that_cannot_be_used(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """A missing file, a key of another certificate or a key alone ends the start with words that name the flag."""
    cert, key = certificate
    check_tls(Settings(tls_cert=cert, tls_key=key))
    (tmp_path / "other.pem").write_text("nothing")
    for wrong in (
        {"tls_cert": cert},
        {"tls_cert": tmp_path / "none"},
        {"tls_cert": cert, "tls_key": tmp_path / "other.pem"},
    ):
        with pytest.raises(ConfigError, match="tls_cert"):
            check_tls(Settings(**wrong))
    with pytest.raises(ValidationError, match="tls_key needs tls_cert"):
        Settings(tls_key=key)


def test_below_a_path(model_dir: Path, tmp_path: Path) -> None:
    """Behind a proxy that shows the server below a path, stripped or not, all is there, and keys are asked for."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", root_path="/llm/", api_key="K")
    with running(settings) as address, httpx.Client(base_url=address) as http:
        key = {"authorization": "Bearer K"}
        for path in ("/llm/v1/models", "//llm//v1/models/", "/v1/models"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers=key).status_code == 200
        assert http.get("/llm/health").status_code == 200
        assert http.get("/llm").json()["openapi"] == "/llm/openapi.json"
        assert http.get("/llmv1/models", headers=key).status_code == 404
        assert http.get("/llm/llm/v1/models", headers=key).status_code == 404
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]
    with pytest.raises(ValidationError, match="root path"):
        Settings(root_path="llm?x")


@contextmanager
def mounted(settings: Settings, *, life: bool) -> Iterator[TestClient]:
    """The server below /llm in another app, which runs its life span or not."""
    llm = build_app(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with llm.router.lifespan_context(llm) if life else nullcontext():
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/llm", llm)
    with TestClient(outer, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def test_in_another_app(model_dir: Path, tmp_path: Path) -> None:
    """In another app that runs its life span all is there, keys are asked for, and addresses are told whole."""
    with mounted(settings_for(model_dir, tmp_path / "s.sqlite", api_key="K"), life=True) as http:
        key = {"authorization": "Bearer K"}
        for path in ("/llm/v1/models", "/llm//v1//models/"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers=key).status_code == 200
        assert http.get("/llm/health").status_code == 200
        assert http.get("/llm/").json()["openapi"] == "/llm/openapi.json"
        assert http.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
        assert 'href="/llm/page/' in http.get("/llm/", headers={"accept": "text/html"}).text
        assert "did you mean /llm/v1/models?" in http.get("/llm/models").json()["error"]["message"]
        assert http.post("/llm/health").headers["allow"] == "GET, HEAD"
        assert http.post("/llm/v1/messages", headers=key, json={}).json()["type"] == "error"
        session = http.post("/llm/v1/sessions", headers=key, json={}).json()["id"]
        asked = {"prompt": "a", "max_tokens": 2, "session_id": session, "model": http.get("/llm/").json()["model"]}
        assert http.post("/llm/v1/completions", headers=key, json=asked).status_code == 200
        routes = [line for line in http.get("/llm/metrics").text.splitlines() if "megacontext_http_requests" in line]
        assert any('route="other"' in line for line in routes)
        assert not any('route="/llm' in line for line in routes)


def test_in_another_app_that_does_not_run_its_life_span(model_dir: Path, tmp_path: Path) -> None:
    """A server that was mounted and never started says so, and how it is started."""
    with mounted(settings_for(model_dir, tmp_path / "s.sqlite"), life=False) as http:
        answer = http.get("/llm/v1/models")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "not_started")
    assert "lifespan_context" in error["message"]


def test_options_needs_no_key(model_dir: Path, tmp_path: Path) -> None:
    """OPTIONS is answered with the methods of an address, key or not; everything else still needs one."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key="K", cors_origin="https://app.example")
    with running(settings) as address, httpx.Client(base_url=address) as http:
        plain = http.options("/v1/chat/completions")
        assert plain.status_code == 405
        assert plain.headers["allow"] == "POST"
        ask = {"origin": "https://app.example", "access-control-request-method": "PATCH"}
        assert "PATCH" in http.options("/v1/sessions/x", headers=ask).headers["access-control-allow-methods"]
        told = http.get("/v1/models", headers={"origin": "https://app.example"})
        assert told.status_code == 401
        assert "x-ratelimit-remaining-tokens" in told.headers["access-control-expose-headers"]


def test_help_is_in_groups() -> None:
    """serve --help shows its options under the headings of the settings' groups."""
    told = CliRunner().invoke(command, ["serve", "--help"], terminal_width=120).output
    places = [told.index(f" {name} ─") for name in Settings.GROUPS.values()]
    assert places == sorted(places)


def open_to_all(**settings: Any) -> bool:
    return _access(Settings(**settings)).status == "warning"


def test_doctor_tells_of_a_server_for_everybody(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """doctor warns where no key keeps out who reaches the address, and only there."""
    assert open_to_all(host="0.0.0.0")
    assert not open_to_all()
    assert not open_to_all(host="0.0.0.0", api_key="K")
    assert not open_to_all(host="0.0.0.0", unix_socket=tmp_path / "s")
    assert "HTTPS" in _access(Settings(tls_cert=certificate[0], tls_key=certificate[1])).detail
