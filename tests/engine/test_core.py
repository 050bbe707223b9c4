"""Settings that do not fit the base model are refused when the engine is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine_lab import FOCUS
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.core import build_core
from mc_core.engine.engine_config import EngineConfig
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from support import write_model

CONFIG = EngineConfig(max_sessions=1)


def with_config(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with another description of its decoder."""
    decoder = bundle.decoder.__class__(dataclasses.replace(bundle.decoder.config, **changes))  # type: ignore[arg-type]
    return dataclasses.replace(bundle, decoder=decoder)


def test_a_base_may_be_served_with_a_mask_that_it_was_not_trained_with(tmp_path: Path) -> None:
    """repair=block works on a stock base, at a price in nats; its own choice stays another mode."""
    stock = load_bundle(write_model(tmp_path / "stock", block_mask=False))
    assert build_core(stock, FOCUS, CONFIG, None, repair="block").runner.mode == "block"
    assert build_core(stock, FOCUS, CONFIG, None).runner.mode != "block"


def test_the_budget_must_fit_the_window(bundle: Bundle) -> None:
    """W + K positions beyond what the base was trained on are refused, and the largest budget is named."""
    with pytest.raises(ConfigError, match="at most 992"):
        build_core(bundle, FocusConfig(budget=1024), CONFIG, None)
    narrow = with_config(bundle, sliding_window=200)
    with pytest.raises(ConfigError, match="window of 200"):
        build_core(narrow, FOCUS, CONFIG, None)
    with pytest.raises(ConfigError, match="compact"):
        build_core(narrow, FOCUS, CONFIG, None, positions="simple")


def test_turning_by_level_needs_a_base_trained_so(bundle: Bundle) -> None:
    """gaussian_lod2d on a stock base is a clear error at load."""
    with pytest.raises(ConfigError, match="level"):
        build_core(bundle, FOCUS, CONFIG, None, positions="gaussian_lod2d")
