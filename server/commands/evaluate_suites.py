"""``megacontext eval SUITE..``: does it remember, against baselines at the same budget, in one run?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer as RawTokenizer

from mc_core.evaluation.answers import Row, Told, ask_all, histories_for
from mc_core.evaluation.driver import Driver
from mc_core.evaluation.engine_driver import EngineDriver
from mc_core.evaluation.filler import Filler
from mc_core.evaluation.gate import gate, write_gates
from mc_core.evaluation.history import Ids
from mc_core.evaluation.machine import machine
from mc_core.evaluation.methods import BASELINES, default_lenses
from mc_core.evaluation.nll import Loss, NllPlan, nll_suite
from mc_core.evaluation.plant import PlantPlan
from mc_core.evaluation.results import Results
from mc_core.evaluation.seat import Prompt
from mc_core.evaluation.stability import Stability, StabilityPlan, stability_suite
from mc_core.evaluation.suites import MEASURES
from mc_core.focus.config import FocusConfig
from mc_core.models.bundle import Bundle, load_bundle
from mc_core.models.tokenizer import Tokenizer
from mc_core.training.cache import Stream, held_out_streams
from server.chat_template import ChatTemplate, Message
from server.commands.common import plain_errors
from server.commands.eval_config import HELP, SuitesConfig
from server.commands.eval_http import METHOD, HttpDriver
from server.commands.eval_show import save, show
from server.commands.options import with_options
from server.stores.sqlite import SqliteStore


def suites_command() -> Callable[..., None]:
    """The typer command."""
    return with_options(SuitesConfig, suites, HELP)


def suites(config: SuitesConfig) -> None:
    """Run suites: facts planted in a long history and asked for, loss after a working context, how the focus moves."""
    with plain_errors():
        with _progress() as told:
            results = run(config, told)
        gates = gate(results)
        show(Console(width=200), results)
        if config.out is not None:
            save(config.out, results, gates, config.depths)
        for name, verdict in gates.items():
            if verdict["measured"]:
                failed = "; ".join(verdict["failed"])
                typer.echo(f"{name}: {'passed' if verdict['passed'] else f'not passed: {failed}'}")
        if config.write:
            typer.echo(f"written to bundle.json: {', '.join(write_gates(config.bundle, gates, results))}")


@dataclass
class _Found:
    """What a run has found so far."""

    rows: list[Row] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    stability: Stability | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run(config: SuitesConfig, told: Told) -> Results:
    """Run everything that was asked for. ConfigError names what cannot be."""
    streams = _streams(config)
    found = _Found()
    if config.http is not None:
        name, shown = _over_http(config, streams, found, told)
    else:
        bundle = load_bundle(config.bundle, config.device)
        bundle = replace(bundle, hidden_gists=bundle.hidden_gists and not config.show_gists)
        _in_process(config, bundle, streams, found, told)
        name, shown = bundle.name, not bundle.hidden_gists
    return Results(
        bundle=name,
        seed=config.seed,
        settings=_settings(config),
        machine=machine(),
        gists_shown=shown,
        rows=tuple(found.rows),
        losses=tuple(found.losses),
        stability=found.stability,
        skipped=found.skipped,
        notes=tuple(found.notes),
    )


def _in_process(config: SuitesConfig, bundle: Bundle, streams: list[Stream], found: _Found, told: Told) -> None:
    lenses = config.lenses or default_lenses(bundle)
    baselines = tuple(name for name in config.baselines if name != "none")
    asked = {} if config.budget is None else {"budget": config.budget}
    chosen: dict[str, Any] = {**bundle.manifest.focus, **asked, "seed": config.seed}
    focus = FocusConfig(**{**chosen, "block_size": bundle.block_size, "lens": "lexical"})
    if config.questions:
        with tempfile.TemporaryDirectory() as folder:
            store = SqliteStore(Path(folder) / "eval.sqlite")
            try:
                with EngineDriver(bundle, focus, store, prompt_of(bundle), lenses, baselines) as driver:
                    limits = dict.fromkeys(BASELINES, config.baseline_trials)
                    _ask(config, driver, driver.methods, limits, bundle.tokenizer, streams, found, told)
            finally:
                store.close()
    measures = config.chosen(MEASURES)
    if "nll" in measures:
        plan = NllPlan(config.nll_lengths, config.samples, seed=config.seed)
        found.losses += nll_suite(bundle, streams, plan, lenses[0], focus.recent_tokens, told)
    if "stability" in measures:
        moving = StabilityPlan(config.refocuses, config.history_tokens)
        found.stability = stability_suite(bundle, streams, replace(focus, lens=lenses[0]), moving, told)


def _over_http(config: SuitesConfig, streams: list[Stream], found: _Found, told: Told) -> tuple[str, bool]:
    """Ask a server -> its model's name, and whether that sees gists."""
    tokenizer = Tokenizer.load(config.bundle)
    decode = partial(_decode, tokenizer)
    with HttpDriver(config.http or "", config.api_key, config.budget, decode) as driver:
        _ask(config, driver, (METHOD,), {}, tokenizer, streams, found, told)
        about = driver.model.get("x_megacontext", {})
        found.notes.append(f"asked over HTTP: lens {about.get('lens')}, allocator {about.get('allocator')}")
        return str(driver.model["id"]), not about.get("hidden_gists", True)


def _ask(
    config: SuitesConfig,
    driver: Driver,
    methods: tuple[str, ...],
    limits: dict[str, int],
    tokenizer: Tokenizer,
    streams: list[Stream],
    found: _Found,
    told: Told,
) -> None:
    """Questions at each length; lengths are done one after the other, so that a long one does not hold all of them."""
    if config.text is not None:
        filler = Filler.of_text(config.text, tokenizer)
    else:
        filler = Filler.of_streams(streams, tokenizer)
    for length in config.lengths:
        plan = PlantPlan(length, config.questions, config.trials, config.depths, config.histories)
        histories = histories_for([plan], tokenizer, filler, config.seed)
        rows, skipped = ask_all(driver, histories, methods, limits, config.max_answer_tokens, told)
        found.rows += rows
        found.skipped |= {f"{method} at {length:,} tokens": reason for method, reason in skipped.items()}
        if length > filler.tokens:
            found.notes.append(
                f"text: {filler.tokens:,} tokens, repeated {length / filler.tokens:.1f} times in {length:,}"
            )
        for suite in config.questions:
            asked = sum(question.suite == suite for history in histories for question in history.questions)
            if asked < config.trials:
                found.notes.append(f"{suite}: {asked} of {config.trials} trials at {length:,} tokens; see --histories")


def _streams(config: SuitesConfig) -> list[Stream]:
    if config.data is None:
        return []
    return held_out_streams(config.data, RawTokenizer.from_file(str(config.bundle / "tokenizer.json")))


def prompt_of(bundle: Bundle) -> Prompt:
    """Questions as the server puts them to the model."""
    tokenizer = bundle.tokenizer
    if tokenizer.chat_template is None:
        return lambda text: (tokenizer.encode(f"\n{text}\n"), np.empty(0, np.int32))
    template = ChatTemplate(tokenizer, tokenizer.special_tokens)
    return lambda text: (template.ids([Message("user", text)], first=False, reply=True), template.suffix_ids)


def _decode(tokenizer: Tokenizer, ids: Ids) -> str:
    return tokenizer.decode(ids)


def _settings(config: SuitesConfig) -> dict[str, Any]:
    """As JSON; keys and this machine's folders are left out."""
    kept = {name: value for name, value in asdict(config).items() if name not in ("api_key", "bundle", "out", "http")}
    return {
        name: Path(value).name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in kept.items()
    }


@contextmanager
def _progress() -> Iterator[Told]:
    """Bars on stderr, one for each thing that is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int) -> None:
            if what and what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            if what:
                bars.update(tasks[what], completed=done, total=total)

        yield told
