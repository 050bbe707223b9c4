"""Telemetry is never in the way: without an endpoint it is not there, and a receiver that is gone holds nothing up."""

import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from mc_core.errors import ConfigError
from otlp_receiver import receiving
from server.telemetry import otlp
from server.telemetry.telemetry import Telemetry
from support import free_port, running, settings_for

BODY = {"model": "tiny", "max_tokens": 70, "ignore_eos": True, "messages": [{"role": "user", "content": "Hello"}]}


def chat(http):
    assert http.post("/v1/chat/completions", json=BODY, timeout=60).status_code == 200


@pytest.mark.parametrize("variable", [None, ("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_nothing_is_sent_unless_it_was_asked_for(model_dir, tmp_path, monkeypatch, variable):
    """No endpoint, or OTEL_SDK_DISABLED, or no exporter: no thread, no provider, no message at the default port."""
    with receiving("grpc") as received:
        if variable is not None:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
            monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
            monkeypatch.setenv(*variable)
        with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
            chat(http)
            threads = {thread.name for thread in threading.enumerate()}
        assert not received.raw
    assert not [name for name in threads if name.startswith(("Otel", "megacontext-spans", "megacontext-metrics"))]


def test_without_an_endpoint_the_sdk_is_not_even_imported():
    """A server that sends nothing does not load OpenTelemetry's SDK, gRPC or its instrumentation."""
    program = (
        "import sys; from server.app import build_app; from server.settings import Settings; build_app(Settings());"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'grpc', 'opentelemetry.instr'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("gone", ["refuses", "never answers"])
def test_a_receiver_that_is_gone_delays_nothing(model_dir, tmp_path, monkeypatch, protocol, gone):
    """Requests are served, and the server ends, while the exporter would wait for ten minutes."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        port = free_port() if gone == "refuses" else silent.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
        monkeypatch.setattr(otlp, "LAST_WORDS", 0.2)
        settings = settings_for(model_dir, tmp_path / "s.sqlite")
        with running(settings) as address, httpx.Client(base_url=address) as http:
            chat(http)
            if gone == "never answers":
                # An exporter has connected and waits: what is served now is served beside it.
                silent.settimeout(60)
                with silent.accept()[0]:
                    chat(http)
            chat(http)
            ending = time.monotonic()
        assert time.monotonic() - ending < 60


def test_it_heals_when_the_receiver_comes_back(model_dir, tmp_path, monkeypatch):
    """Spans of a time without a receiver are kept for a while and sent once it is there."""
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr(otlp, "LAST_WORDS", 0.2)
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        chat(http)
        time.sleep(0.3)
        with receiving("http/protobuf", port) as received:
            deadline = time.monotonic() + 20
            while not [s for s in received.spans() if s.name == "chat tiny"] and time.monotonic() < deadline:
                time.sleep(0.05)
            assert [span.name for span in received.spans()].count("chat tiny") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
    ],
)
def test_variables_that_do_not_fit_are_told(monkeypatch, name, value):
    """A value that cannot be honoured ends the start with a message that names the variable."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name[:19]):
        Telemetry.from_environment()
