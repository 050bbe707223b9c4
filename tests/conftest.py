"""What all tests share: the real model, fetched once for those that name it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.fetch import SMOLLM2, FetchError, fetch, model_cache

# Tests hold replies to one another and to other implementations; what is of int8 asks for it by itself.
os.environ.setdefault("MEGACONTEXT_WEIGHTS", "float32")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2's GGUF file from the user's cache; tests that need it are skipped where it can't be fetched."""
    try:
        return fetch(SMOLLM2, model_cache())
    except (FetchError, OSError) as error:
        pytest.skip(f"needs {SMOLLM2.about}: {error}")
