"""One model for all tests of deployment."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights."""
    return write_model(tmp_path_factory.mktemp("deploy") / "tiny")
