"""A tiny bundle of random weights with a learned lens, text to plant in, and an engine's driver on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_lab import FOCUS, LENSES, Asking
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.lab.evaluation.engine_driver import EngineDriver
from mc_core.lab.evaluation.methods import BASELINES
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.plant import PlantPlan, plant
from server.commands.lab.eval_prompt import prompt_of
from server.stores.sqlite import SqliteStore
from support import add_lensnet, write_model


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = write_model(tmp_path_factory.mktemp("evaluation") / "tiny")
    add_lensnet(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(bundle_dir: Path) -> Bundle:
    return load_bundle(bundle_dir)


@pytest.fixture(scope="session")
def filler(bundle: Bundle) -> Filler:
    draw = np.random.default_rng(0)
    words = ["sea", "ship", "captain", "sailed", "home", "storm", "night", "and", "the"]
    texts = [" ".join(draw.choice(words, 300)) for _ in range(6)]
    return Filler(bundle.tokenizer.encode_batch(texts), bundle.tokenizer)


@pytest.fixture(scope="module")
def asking(bundle: Bundle, filler: Filler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """All methods, before one history with needles, several values and paraphrases in it."""
    plan = PlantPlan(6000, ("needle", "multivalue", "paraphrase", "absent"), trials=4)
    history = plant(np.random.default_rng(1), bundle.tokenizer, filler, plan)[0]
    store = SqliteStore(tmp_path_factory.mktemp("store") / "eval.sqlite")
    with EngineDriver(bundle, FOCUS, store, prompt_of(bundle), LENSES, BASELINES) as driver:
        driver.read(history)
        yield Asking(driver, history)
    store.close()
