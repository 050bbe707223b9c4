"""Sessions that a store gives back, whatever their length, the lens, or the networks that are there now."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine_lab import FOCUS, Lab, random_ids
from lens_bundles import lens_bundle
from mc_core.bundle.bundle import Bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import LENSES
from redis_server import shared_redis
from server.stores import open_store

LENGTHS = (0, 1, 31, 32, 33, 1023, 1024, 1025)
"""No block, one, 32 and so a first LOD2 node; just before, at and after each border."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By lens: the same base with the LensNet that the lens needs."""
    folder = tmp_path_factory.mktemp("bundles")
    cross, joint = (lens_bundle(folder / kind, kind) for kind in ("cross", "transformer"))
    return {lens: joint if lens == "transformer" else cross for lens in LENSES}


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sessions.sqlite'}"
        return
    yield f"{shared_redis().url}?namespace=restore-{secrets.token_hex(6)}:"


@pytest.mark.parametrize("lens", LENSES)
def test_a_session_of_any_length_goes_on_as_if_it_had_stayed(url: str, bundles: dict[str, Bundle], lens: str) -> None:
    """Whatever is of size zero (no block, no level, no open tail), a stored session goes on like a live one."""
    store = open_store(url)
    lab = Lab(bundles[lens], store, EngineConfig(max_sessions=2), replace(FOCUS, lens=lens), "block")
    try:
        for tokens in LENGTHS:
            live, other = (lab.session(f"{name}-{tokens}", tokens, seed=tokens) for name in ("live", "other"))
            lab.engine.release(other).result()
            restored = lab.reopen(other.id)
            assert (restored.tokens, restored.committed_tokens) == (tokens, tokens)
            assert restored.wc.snapshot() == live.wc.snapshot()
            prompt = random_ids(40, 1)
            assert lab.ask(restored, prompt, 3).ids == lab.ask(live, prompt, 3).ids
            assert restored.focus() == live.focus()
            assert lab.reopen(other.id).tokens == live.tokens
    finally:
        lab.engine.stop()
        store.close()
