"""Puts the server together: model, store, engine, sessions."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mc_core.bundle.bundle import Bundle, load_bundle, networks_for
from mc_core.context.reading_format import ReadingFormat
from mc_core.engine.core import build_core
from mc_core.engine.engine import Engine
from mc_core.engine.engine_config import EngineConfig
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.models.cpu_speed import choose_threads, choose_weights
from mc_core.models.linear import check_weights
from mc_core.session.factory import SessionFactory
from mc_core.session.trail import SEED
from mc_core.store import SessionStore
from server.auth import Keys
from server.budget import chosen_budget
from server.embedder import Embedder
from server.grammar.shaper import Shaper
from server.live.followers import Followers
from server.live.observer import Observed
from server.once.book import Book
from server.quotas import Quotas
from server.served_model import ServedModel, find_model
from server.sessions.host import SessionHost
from server.sessions.owner import name_of
from server.settings import BUNDLED_MODEL, Settings
from server.state import ServerState
from server.stores import discard, open_store, sqlite_file
from server.telemetry import names
from server.telemetry.telemetry import Telemetry
from server.telemetry.timed_store import timed_store
from server.templates.chat_template import ChatTemplate
from server.templates.reading import reading_format
from server.turns.service import TurnService

logger = logging.getLogger(__name__)
LOOKED_AT = 100_000
"""Sessions at most, at the start: 30 ms of a SQLite file, half a second of Redis in steps of 5 ms."""
FOCUS_FIELDS = (
    "recent_tokens",
    "expand_threshold",
    "collapse_threshold",
    "edits_per_iteration",
    "iterations",
    "cooldown",
    "refocus_interval",
    "lens_interval",
    "look_ahead",
    "hops",
    "allocator",
    "seed",
)
"""Settings that are fields of FocusConfig by the same name."""


def build_state(settings: Settings, telemetry: Telemetry | None = None) -> ServerState:
    """Open the store, load the model, allocate the slabs. ConfigError and StoreError say what does not fit.

    telemetry: closed with the state; None measures for /metrics alone.
    """
    telemetry = telemetry or Telemetry()
    # First: what is wrong with it shows at once, and a model may take minutes to be fetched and loaded.
    store = open_store(settings.store, lease_seconds=settings.lease_seconds, max_pending=settings.store_buffer_bytes)
    try:
        state = _load(settings, telemetry, timed_store(store, telemetry.metrics.store))
    except BaseException:
        discard(store)
        raise
    _watch(state)
    _tell_unproved(state)
    _tell_foreign(state)
    return state


def _load(settings: Settings, telemetry: Telemetry, store: SessionStore) -> ServerState:
    """Find and load the model, and put all together."""
    served = find_model(settings)
    if served.notice is not None:
        logger.warning(served.notice)
    device, weights = placement(settings)
    if device == "cpu":
        torch.set_num_threads(settings.threads or choose_threads(weights, torch.get_num_threads()))
    bundle = bundle_of(settings, served)
    _give_back()
    name, threads = str(weights).removeprefix("torch."), torch.get_num_threads()
    logger.info("%s: weights %s on %s, %d CPU threads", bundle.name, name, device, threads)
    return _assemble(settings, served, bundle, telemetry, store)


async def close_state(state: ServerState) -> None:
    """Let running turns end, then stop the engine and close the store."""
    await asyncio.to_thread(state.engine.drain, state.settings.drain_seconds)
    await state.turns.join()
    await state.runs.join()
    await state.book.join()
    await state.host.close()
    await asyncio.to_thread(state.engine.stop)
    if state.embedder is not None:
        await asyncio.to_thread(state.embedder.close)
    await asyncio.to_thread(state.store.close)
    await asyncio.to_thread(state.telemetry.close)


def bundle_of(settings: Settings, served: ServedModel) -> Bundle:
    """The model, and the networks that come with it."""
    networks = shipped_networks(served.path)
    return load_bundle(served.path, *placement(settings), block_size=settings.block_size, networks=networks)


def shipped_networks(model: Path) -> Path | None:
    """The folder of networks that come with the project for a model file, if there is one."""
    shipped = BUNDLED_MODEL.parent
    return networks_for(model, sorted(shipped.iterdir()) if shipped.is_dir() else [])


def _assemble(
    settings: Settings, served: ServedModel, bundle: Bundle, telemetry: Telemetry, store: SessionStore
) -> ServerState:
    name = settings.model_name or served.name or bundle.name
    template = template_of(bundle, name, settings.chat_template)
    bundle = replace(bundle, frames=frames_of(settings, bundle, template))
    focus, why = focus_of(settings, bundle)
    logger.info("%s: budget W = %s tokens: %s", name, f"{focus.budget:,}", why)
    # Before the folder of keys and values is made: one that can't be used leaves none.
    embedder = Embedder.of(settings, placement(settings)[0], (name, *settings.alias))
    followers = Followers()
    core = build_core(
        bundle,
        focus,
        engine_config(settings),
        store,
        repair=None if settings.repair == "auto" else settings.repair,
        positions=None if settings.positions == "auto" else settings.positions,
        observer=Observed(telemetry, followers),
    )
    engine = Engine(core)
    host = SessionHost(
        SessionFactory(bundle, focus, SEED if core.keeper is None else core.keeper.folder.seed),
        engine,
        store,
        model=name,
        max_resident=settings.max_resident_sessions,
        max_resident_tokens=settings.max_resident_tokens,
        idle_seconds=settings.idle_seconds,
        max_implicit=settings.max_implicit_sessions,
        implicit_ttl=settings.implicit_ttl,
        session_ttl=settings.session_ttl,
        followers=followers,
        name=name_of(settings),
    )
    quotas = Quotas(settings.requests_per_minute, settings.tokens_per_minute)
    return ServerState(
        settings=settings,
        model_name=name,
        notice=served.notice,
        created=int(time.time()),
        bundle=bundle,
        engine=engine,
        store=store,
        host=host,
        turns=TurnService(host, engine, template, telemetry.spans, quotas.spend, telemetry.metrics.watch_turn),
        template=template,
        shaper=Shaper(bundle.tokenizer, template),
        keys=Keys(settings.api_key),
        quotas=quotas,
        telemetry=telemetry,
        followers=followers,
        book=Book(store, settings.idempotency_keys, settings.idempotency_seconds),
        embedder=embedder,
    )


def template_of(bundle: Bundle, name: str, file: Path | None) -> ChatTemplate | None:
    """The chat template of ``file``, else the model's; None if it has none. One that cannot be used fails chat alone.

    ConfigError if the file cannot be read.
    """
    if file is not None:
        try:
            bundle.tokenizer.chat_template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: {file} cannot be read: {error}") from error
    if bundle.tokenizer.chat_template is None:
        return None
    template = ChatTemplate(bundle.tokenizer, bundle.tokenizer.special_tokens)
    if template.problem is not None:
        logger.warning("%s: chat is refused: %s", name, template.problem)
    bundle.tokenizer.also_end_with(template.end_ids)
    return template


def frames_of(settings: Settings, bundle: Bundle, template: ChatTemplate | None) -> ReadingFormat | None:
    """What ``reading`` asks for -> ConfigError if it can't be done."""
    wanted = settings.reading
    if wanted == "auto":
        able = settings.positions in ("auto", "compact") and settings.repair != "block" and bundle.takes_frames
        wanted = "framed" if able else "plain"
    frames = reading_format(template, bundle.tokenizer) if template is not None and wanted == "framed" else None
    if frames is None and settings.reading == "framed":
        raise ConfigError("reading=framed needs a chat template that opens and closes messages with control tokens")
    return frames


def placement(settings: Settings) -> tuple[str, torch.dtype]:
    """Device and dtype of the weights, with "auto" decided. ConfigError if one does not go with the other."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.weights == "auto":
        return device, choose_weights() if torch.device(device).type == "cpu" else torch.bfloat16
    weights: torch.dtype = getattr(torch, settings.weights)
    check_weights(weights, device)
    return device, weights


def focus_of(settings: Settings, bundle: Bundle) -> tuple[FocusConfig, str]:
    """What was asked for, else what the bundle was made with, else the default -> and why the budget is as it is.

    bundle: with the frames that it is served with.
    """
    choice = chosen_budget(settings, bundle)
    defaults = {name: getattr(settings, name) for name in FOCUS_FIELDS}
    asked = {name: value for name, value in defaults.items() if name in settings.model_fields_set}
    lens = bundle.lens if settings.lens == "auto" else settings.lens
    fixed = {"block_size": bundle.block_size, "lens": lens, "budget": choice.budget}
    chosen: dict[str, Any] = {**defaults, **bundle.focus, **asked, **fixed}
    try:
        return FocusConfig(**chosen), choice.reason
    except TypeError as error:
        raise ConfigError(f"focus in bundle.json has settings that there are not: {error}") from error


def engine_config(settings: Settings) -> EngineConfig:
    """The engine's part of the settings."""
    return EngineConfig(
        max_sessions=settings.max_sessions,
        max_queue=settings.max_queue,
        prefill_tokens=settings.prefill_tokens,
        hot_tokens=settings.hot_tokens,
        restore_deadline=settings.restore_deadline,
        segment_blocks=settings.segment_blocks,
        recent_kv_bytes=settings.recent_kv_bytes,
        kv_folder=kv_folder_of(settings),
        kv_folder_bytes=settings.kv_folder_bytes,
        lookup_tokens=settings.lookup_tokens,
        cuda_graphs=settings.cuda_graphs,
        deterministic=settings.deterministic,
    )


def kv_folder_of(settings: Settings) -> Path | None:
    """Where keys and values of idle sessions are kept as files, with "auto" decided; None: nowhere."""
    if settings.kv_folder == "off":
        return None
    if settings.kv_folder != "auto":
        return Path(settings.kv_folder)
    file = sqlite_file(settings.store)
    return None if file is None else file.with_name(file.name + "-kv")


def _give_back() -> None:
    """What loading took and freed goes back to the system, where the C library can do that (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _tell_unproved(state: ServerState) -> None:
    """Say at the start which networks have not passed their evaluation, and what that means for the focus."""
    unproved = [
        f"{name} {standing}" for name, standing in state.bundle.manifest.networks().items() if standing != "passed"
    ]
    if unproved:
        gists = "hidden" if state.bundle.hidden_gists else "shown"
        lens = state.engine.core.focus.lens
        logger.log(
            logging.WARNING if state.bundle.manifest.unproved else logging.INFO,
            "%s: networks without a passed evaluation (%s): gists are %s, lens %s",
            state.model_name,
            ", ".join(unproved),
            gists,
            lens,
        )


def _tell_foreign(state: ServerState) -> None:
    """Say soon after the start which sessions this server refuses; it waits for nothing."""

    def tell(count: Future[int]) -> None:
        if (error := count.exception()) is not None:
            logger.info("%s: sessions of another tokenizer could not be counted: %s", state.model_name, error)
        elif count.result():
            logger.warning(
                "%s: the store has %s sessions of another tokenizer, which this server refuses:"
                " `megacontext sessions migrate` writes them anew",
                state.model_name,
                f"{count.result():,}",
            )

    state.store.foreign(state.bundle.tokenizer.fingerprint, LOOKED_AT).add_done_callback(tell)


def _watch(state: ServerState) -> None:
    """Gauges that are read when they are scraped."""
    read = state.metrics.read
    read(names.SESSIONS_RESIDENT, lambda: len(state.host.residents))
    read(names.RESIDENT_TOKENS, lambda: state.host.residents.tokens)
    read(names.BLOCKS_WITHOUT_VECTORS, lambda: state.host.residents.blocks_without_vectors)
    read(names.SLABS, lambda: state.engine.stats().slabs)
    read(names.SLABS_FREE, lambda: state.engine.stats().free_slabs)
    read(names.SLAB_BYTES, lambda: state.engine.stats().slab_bytes)
    read(names.KV_RECENT_BYTES, lambda: state.engine.stats().kv_recent_bytes)
    read(names.TURNS_RUNNING, lambda: state.engine.stats().running)
    read(names.TURNS_WAITING, lambda: state.engine.stats().waiting)
