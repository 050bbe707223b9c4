from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from clients.megacontext_client import MegaContext
from wire_server import KEY, Wire, serving


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def url(wire: Wire) -> Iterator[str]:
    with serving(wire.app) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[MegaContext]:
    """Without retries, so that a test sees each refusal at once."""
    with MegaContext(url, KEY, timeout=10, retries=0) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
