"""A model, a receiver of either protocol, and a server that sends its telemetry there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from otlp_receiver import Received, receiving
from support import write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _no_inherited_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["grpc", "http/protobuf"])
def received(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with receiving(request.param) as received:
        for name, value in received.environment.items():
            monkeypatch.setenv(name, value)
        yield received
