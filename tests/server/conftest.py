"""One server for all tests that leave it as they found it; tests that need other settings start their own."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from mc_core.models.tokenizer import Tokenizer
from support import running, settings_for, write_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.load(model_dir)


@pytest.fixture(scope="session")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    with running(settings_for(model_dir, store)) as address:
        yield address


@pytest.fixture(scope="session")
def roomy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that shows tools in full, which are long for a tokenizer of few words."""
    store = tmp_path_factory.mktemp("roomy") / "s.sqlite"
    with running(settings_for(model_dir, store, budget=896)) as address:
        yield address


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def session(http: httpx.Client) -> Iterator[str]:
    """A fresh session's id."""
    created = http.post("/v1/sessions", json={})
    assert created.status_code == 201, created.text
    yield created.json()["id"]
    http.delete(f"/v1/sessions/{created.json()['id']}")
