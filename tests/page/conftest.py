"""A browser, and servers whose page is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.browser import NoBrowserError, launch
from support import running, settings_for, write_model

NEEDED = "needs playwright and Chromium: make test-page installs them"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of one file alone: while it is open, playwright keeps this thread's event loop to itself."""
    api = pytest.importorskip("playwright.sync_api", reason=NEEDED)
    with api.sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except NoBrowserError as error:
            pytest.skip(str(error))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Any, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Replies of 48 tokens at most."""
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    with running(settings_for(model_dir, store, max_tokens=48)) as address:
        yield address


@pytest.fixture(scope="module")
def patient_server(browser: Any, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Replies as long as anybody waits for."""
    store = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    with running(settings_for(model_dir, store, max_tokens=100_000)) as address:
        yield address
