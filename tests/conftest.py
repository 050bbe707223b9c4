"""What all tests share: the real model, fetched once for those that name it."""

from __future__ import annotations

import gc
import os
import ssl
from functools import cache
from pathlib import Path

import httpx
import httpx._transports.default
import pytest

from server.fetch import SMOLLM2, FetchError, fetch, model_cache

# Tests hold replies to one another and to other implementations; what is of int8 asks for it by itself.
os.environ.setdefault("MEGACONTEXT_WEIGHTS", "float32")


# Modules stay for good, half a million objects and more. Each full collection would look through all of them again, and
# while tests are collected there is nothing else to find.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@cache
def _certificates(*_: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _shared_certificates(verify: object = True, cert: object = None, trust_env: bool = True) -> ssl.SSLContext:
    if verify is not True or cert is not None or not trust_env:
        return httpx.create_ssl_context(verify, cert, trust_env)  # type: ignore[arg-type]
    return _certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


# Each client, and so each httpx.get, reads all certificates of the system: 0.06 s, thousands of times, for plain HTTP.
httpx._transports.default.create_ssl_context = _shared_certificates


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2's GGUF file from the user's cache; tests that need it are skipped where it can't be fetched."""
    try:
        return fetch(SMOLLM2, model_cache())
    except (FetchError, OSError) as error:
        pytest.skip(f"needs {SMOLLM2.about}: {error}")
