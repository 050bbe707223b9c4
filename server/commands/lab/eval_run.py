"""Runs what ``megacontext eval SUITE..`` was asked for, part by part."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.context.reading_format import ReadingFormat
from mc_core.focus.focus_config import FocusConfig
from mc_core.lab.data.cache import held_out_streams
from mc_core.lab.data.corpus import held_out_documents
from mc_core.lab.data.model_tokenizer import model_tokenizer, raw_tokenizer
from mc_core.lab.evaluation.answers import Row, ask_all, histories_for
from mc_core.lab.evaluation.chats import CHAT, TOKENS, chat_histories
from mc_core.lab.evaluation.driver import Driver
from mc_core.lab.evaluation.engine_driver import EngineDriver
from mc_core.lab.evaluation.machine import machine
from mc_core.lab.evaluation.methods import BASELINES, check_methods, default_lenses
from mc_core.lab.evaluation.nll import NllPlan, nll_suite
from mc_core.lab.evaluation.results import Results
from mc_core.lab.evaluation.stability import StabilityPlan, stability_suite
from mc_core.lab.evaluation.suites import MEASURES, Told
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History
from mc_core.lab.tasks.plant import PlantPlan
from mc_core.models.decoder import Decoder
from mc_core.models.linear import check_weights
from mc_core.models.threads import aside
from mc_core.models.tokenizer import Tokenizer
from server.commands.lab.eval_config import SuitesConfig
from server.commands.lab.eval_http import METHOD, HttpDriver
from server.commands.lab.eval_prompt import prompt_of
from server.stores.sqlite import SqliteStore
from server.templates.chat_template import ChatTemplate
from server.templates.reading import reading_format

Keep = Callable[[Results], None]


def run(config: SuitesConfig, told: Told, keep: Keep) -> Results:
    """Everything that was asked for; ``keep`` gets what there is after each part. ConfigError names what cannot be."""
    if config.http is not None:
        return _over_http(config, config.http, told, keep)
    return _in_process(config, told, keep)


def _in_process(config: SuitesConfig, told: Told, keep: Keep) -> Results:
    weights = getattr(torch, config.weights)
    check_weights(weights, config.device)
    bundle = aside(lambda: load_bundle(config.bundle, config.device, weights, gists=config.show_gists or None))
    bundle = replace(bundle, frames=_frames(config, bundle))
    lenses = config.lenses or default_lenses(bundle)
    baselines = tuple(name for name in config.baselines if name != "none")
    check_methods(bundle, lenses, baselines)
    focus = _focus(config, bundle)
    # Loss and stability belong to the lens that serves, unless another is named.
    serving = replace(focus, lens=config.lenses[0] if config.lenses else bundle.lens)
    settings = {**_settings(config), "lenses": list(lenses), "focus": asdict(serving)}
    results = Results(bundle.name, config.seed, settings, machine(), not bundle.hidden_gists)
    measures = config.chosen(MEASURES)
    streams = held_out_streams(config.data, raw_tokenizer(config.bundle)) if config.data and measures else []
    if "nll" in measures:
        plan = NllPlan(config.nll_lengths, config.samples, seed=config.seed)
        stock = _stock(config, bundle)
        losses = nll_suite(bundle, streams, plan, serving.lens, focus.recent_tokens, told, stock)
        results = replace(results, losses=tuple(losses))
        keep(results)
    if "stability" in measures:
        moving = StabilityPlan(config.refocuses, config.history_tokens)
        results = replace(results, stability=stability_suite(bundle, streams, serving, moving, told))
        keep(results)
    if not (config.questions or config.chats):
        return results
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "eval.sqlite")
        try:
            methods, kept = (lenses, baselines), config.one_chat
            with EngineDriver(bundle, focus, store, prompt_of(bundle), *methods, one_chat=kept) as driver:
                filler = _filler(config, bundle.tokenizer)
                results = _ask(config, driver, driver.methods, bundle.tokenizer, filler, results, told, keep)
                return _ask_chats(config, driver, filler, results, told, keep) if config.chats else results
        finally:
            store.close()


def _stock(config: SuitesConfig, bundle: Bundle) -> Decoder | None:
    """The base without what it reads gists with, where it has that."""
    if bundle.hidden_gists or bundle.manifest.adapters is None:
        return None
    return load_bundle(config.bundle, config.device, getattr(torch, config.weights), gists=False).decoder


def _frames(config: SuitesConfig, bundle: Bundle) -> ReadingFormat | None:
    """As a server would have them."""
    tokenizer = bundle.tokenizer
    wanted = bundle.takes_frames if config.reading == "auto" else config.reading == "framed"
    if not wanted or tokenizer.chat_template is None:
        return None
    return reading_format(ChatTemplate(tokenizer, tokenizer.special_tokens), tokenizer)


def _over_http(config: SuitesConfig, url: str, told: Told, keep: Keep) -> Results:
    tokenizer = model_tokenizer(config.bundle)
    with HttpDriver(url, config.api_key, config.budget, tokenizer.decode) as driver:
        about = driver.model.get("x_megacontext", {})
        note = f"asked over HTTP: lens {about.get('lens')}, allocator {about.get('allocator')}"
        shown = not about.get("hidden_gists", True)
        results = Results(str(driver.model["id"]), config.seed, _settings(config), machine(), shown, notes=(note,))
        filler = _filler(config, tokenizer)
        return _ask(config, driver, (METHOD,), tokenizer, filler, results, told, keep)


def _ask(
    config: SuitesConfig,
    driver: Driver,
    methods: Sequence[str],
    tokenizer: Tokenizer,
    filler: Filler,
    results: Results,
    told: Told,
    keep: Keep,
) -> Results:
    """Questions length by length, so that a long history does not wait in memory for the others."""
    for length in config.lengths if config.questions else ():
        plan = PlantPlan(length, config.questions, config.trials, config.depths, config.histories)
        histories = histories_for([plan], tokenizer, filler, config.seed)
        results, rows = _asked(config, driver, methods, histories, results, told)
        results = replace(results, notes=(*results.notes, *_notes(config, rows, filler, length)))
        keep(results)
    return results


def _ask_chats(
    config: SuitesConfig, driver: EngineDriver, filler: Filler, results: Results, told: Told, keep: Keep
) -> Results:
    """Questions about the first turns of long chats."""
    rng = np.random.default_rng([config.seed, TOKENS])
    histories = chat_histories(rng, driver.bundle.tokenizer, filler, driver.prompt, config.trials)
    results, _ = _asked(config, driver, driver.methods, histories, results, told)
    count = sum(len(history.questions) for history in histories)
    if count < config.trials:
        results = replace(
            results, notes=(*results.notes, f"{CHAT}: {count} of {config.trials} trials; there are no more")
        )
    keep(results)
    return results


def _asked(
    config: SuitesConfig,
    driver: Driver,
    methods: Sequence[str],
    histories: Sequence[History],
    results: Results,
    told: Told,
) -> tuple[Results, list[Row]]:
    """The results with what was asked of some histories, and the rows of these."""
    limits = dict.fromkeys(BASELINES, config.baseline_trials)
    rows, skipped = ask_all(driver, histories, methods, limits, config.max_answer_tokens, told)
    length = histories[0].length
    left_out = {f"{method} at {length:,} tokens": reason for method, reason in skipped.items()}
    return replace(results, rows=(*results.rows, *rows), skipped={**results.skipped, **left_out}), rows


def _notes(config: SuitesConfig, rows: Sequence[Row], filler: Filler, length: int) -> list[str]:
    """What is not as it was asked for."""
    notes = []
    if length > filler.tokens:
        times = length / filler.tokens
        notes.append(f"text: {filler.tokens:,} tokens, repeated {times:.1f} times in {length:,}")
    for suite in config.questions:
        asked = Counter(row.method for row in rows if row.suite == suite)
        most = max(asked.values(), default=0)
        if most < (min(config.trials, config.baseline_trials) if set(asked) <= set(BASELINES) else config.trials):
            notes.append(f"{suite}: {most} of {config.trials} trials at {length:,} tokens; see --histories")
    return notes


def _filler(config: SuitesConfig, tokenizer: Tokenizer) -> Filler:
    if config.data is not None:
        return Filler.of_documents(held_out_documents(config.data), tokenizer)
    assert config.text is not None
    return Filler.of_text(config.text, tokenizer)


def _focus(config: SuitesConfig, bundle: Bundle) -> FocusConfig:
    """The bundle's own settings, and what was asked for."""
    asked = {} if config.budget is None else {"budget": config.budget}
    chosen: dict[str, Any] = {**bundle.focus, **asked, "seed": config.seed}
    return FocusConfig(**{**chosen, "block_size": bundle.block_size, "lens": "lexical"})


def _settings(config: SuitesConfig) -> dict[str, Any]:
    """As JSON; keys and this machine's folders are left out."""
    kept = {name: value for name, value in asdict(config).items() if name not in ("api_key", "bundle", "out", "http")}
    return {
        name: Path(value).name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in kept.items()
    }
