"""An engine on a tiny model of random weights, with a real SQLite store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine_lab import FOCUS, Lab, MakeLab
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import Observer
from mc_core.focus.focus_config import FocusConfig
from server.stores.sqlite import SqliteStore
from support import write_model


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def make_lab(bundle: Bundle, tmp_path: Path) -> MakeLab:
    @contextmanager
    def make(
        config: EngineConfig | None = None,
        focus: FocusConfig = FOCUS,
        repair: str = "block",
        observer: Observer | None = None,
    ) -> Iterator[Lab]:
        store = SqliteStore(tmp_path / "lab.sqlite")
        lab = Lab(bundle, store, config or EngineConfig(max_sessions=3, max_queue=2), focus, repair, observer)
        try:
            yield lab
        finally:
            lab.engine.stop()
            store.close()

    return make


@pytest.fixture
def lab(make_lab: MakeLab) -> Iterator[Lab]:
    with make_lab() as lab:
        yield lab
