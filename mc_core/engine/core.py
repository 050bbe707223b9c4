"""What every job of the engine shares: the model runner, the store, the limits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from mc_core.bundle.bundle import Bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.kv_keeper import KVKeeper
from mc_core.engine.observer import Moment, Observer, SilentObserver
from mc_core.engine.runner import ModelRunner, make_runner
from mc_core.errors import ConfigError
from mc_core.focus.focus_config import FocusConfig
from mc_core.kv.kv_file import Shape
from mc_core.kv.kv_folder import KVFolder
from mc_core.kv.layout import Layout, layout_of
from mc_core.kv.repair import REPAIR_MODES, RepairMode
from mc_core.models.decoder_config import DecoderConfig
from mc_core.positions.policies import make_policy
from mc_core.session.session import Session
from mc_core.store import SessionStore

logger = logging.getLogger(__name__)
FRAME_SHARE, MOST_FRAMES = 8, 512
"""Frames take at most an eighth of the budget's tokens, and no more than 512, beside it."""

LOOKUP_TOKENS = 8
"""By default, where it is of use: more are seldom right to their end."""


@dataclass(frozen=True)
class EngineCore:
    """Built once by ``build_core``; the engine thread alone computes with it."""

    bundle: Bundle
    runner: ModelRunner
    sessions: SessionStore | None
    config: EngineConfig
    focus: FocusConfig
    observer: Observer
    frame_room: int
    keeper: KVKeeper | None = None

    @property
    def store(self) -> SessionStore:
        """The store; ConfigError for a core that was built without one."""
        if self.sessions is None:
            raise ConfigError("this needs a session store, and there is none")
        return self.sessions

    @cached_property
    def guesses(self) -> int:
        """Tokens of a reply that are guessed and read ahead at most (``lookup_tokens``)."""
        if self.config.deterministic or self.runner.pool.device.type != "cpu":
            return 0
        given = self.config.lookup_tokens
        return given if given is not None else LOOKUP_TOKENS if self.bundle.decoder.is_int8 else 0

    def room(self, session: Session) -> int:
        """Tokens that frames may take in a session: the share of its own budget."""
        return min(self.frame_room, session.wc.budget // FRAME_SHARE)

    def moved(self, session: Session, moment: Moment) -> None:
        """Tell the observer that a session's working context may be another one. Who only looks on spoils nothing."""
        try:
            self.observer.moved(session.id, moment, lambda: session.look(self.room(session)))
        except Exception:
            logger.exception("what session %s shows could not be told", session.id)

    def hides_gists(self, session: Session) -> bool:
        """Whether the model is shown none: no bundle's that has not passed, and no session's while some are missing."""
        return self.bundle.hidden_gists or not session.tree.whole

    def layout(self, session: Session) -> Layout:
        """What the model sees of a session's working context."""
        hidden = self.hides_gists(session)
        blocks = self.config.segment_blocks if self.runner.mode == "block" else None
        excerpt = session.excerpt(self.room(session))
        return layout_of(session.wc, hidden_gists=hidden, segment_blocks=blocks, excerpt=excerpt)


def build_core(
    bundle: Bundle,
    focus: FocusConfig,
    config: EngineConfig,
    store: SessionStore | None,
    *,
    repair: RepairMode | None = None,
    positions: str | None = None,
    observer: Observer | None = None,
) -> EngineCore:
    """Check that the settings fit the base model, and allocate the slabs.

    repair, positions: None takes the bundle's own. ConfigError names the setting and the limit.
    """
    decoder = bundle.decoder
    mode, policy_name = repair or bundle.repair, positions or bundle.positions
    if mode not in REPAIR_MODES:
        raise ConfigError(f"repair must be one of {REPAIR_MODES}, got {mode!r}")
    policy = make_policy(policy_name, decoder.config, focus.block_size, bundle.sigma_scale)
    framed = bundle.frames is not None
    if framed and (policy.absolute or mode == "block" or not bundle.hidden_gists):
        raise ConfigError("reading=framed needs positions=compact, repair=exact or incremental, and hidden gists")
    slots = slots_of(focus.budget, focus.block_size, framed)
    frame_room = slots - focus.budget - focus.block_size
    _check_window(decoder.config, slots, policy.absolute, focus.block_size, framed)
    rows, chunk = config.max_sessions, config.prefill_tokens
    runner = make_runner(
        decoder,
        policy,
        mode,
        rows=rows,
        slots=slots,
        chunk_tokens=chunk,
        recent_bytes=config.recent_kv_bytes,
        static=config.cuda_graphs and decoder.device.type == "cuda",
    )
    keeper = None
    if config.kv_folder is not None and config.kv_folder_bytes:
        folder = KVFolder(config.kv_folder, config.kv_folder_bytes, Shape.of(runner.pool), slots)
        keeper = KVKeeper(folder, bundle, runner.model, config)
    return EngineCore(bundle, runner, store, config, focus, observer or SilentObserver(), frame_room, keeper)


def slots_of(budget: int, block_size: int, framed: bool) -> int:
    """Slots of a session's slab: for its budget, the block that opens next, and frames."""
    return budget + block_size + (min(MOST_FRAMES, budget // FRAME_SHARE) if framed else 0)


def largest_budget(slots: int, block_size: int, framed: bool) -> int:
    """The largest budget in whole blocks whose slab takes ``slots`` at most, 0 if there is none."""
    room = slots - block_size
    budget = max(room - MOST_FRAMES, min(room, room * FRAME_SHARE // (FRAME_SHARE + 1) + 1)) if framed else room
    while slots_of(budget, block_size, framed) > slots:
        budget -= 1
    return max(0, budget // block_size * block_size)


def window_of(config: DecoderConfig) -> int:
    """Positions within which a base model was trained to attend."""
    return min(config.max_position_embeddings, config.sliding_window or config.max_position_embeddings)


def _check_window(config: DecoderConfig, slots: int, absolute: bool, block_size: int, framed: bool) -> None:
    """ConfigError if the base model was not trained on the distances that it would meet."""
    if absolute:
        if config.sliding_window is not None:
            raise ConfigError(
                f"the base model attends within {config.sliding_window} positions only; use positions=compact"
            )
        return
    window = window_of(config)
    if slots > window:
        raise ConfigError(
            f"the budget and what stands beside it take {slots} positions, which exceed the base model's window of "
            f"{window}; the budget can be at most {largest_budget(window, block_size, framed)}"
        )
