"""What goes into the engine and what comes out: turns, and the events a turn sends to its sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from mc_core.models.constraint import Constraint
from mc_core.models.sampler import SamplingParams

if TYPE_CHECKING:
    from mc_core.engine.provenance import Provenance
    from mc_core.session.session import Session

FinishReason = Literal["stop", "length"]
Warmth = Literal["warm", "woken", "restored"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log probability (nats) of one sampled token, and of the most likely alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a turn: ``prompt`` new ones read, of a history whose ``cached`` older tokens were not read again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass
class ContextReport:
    """The truth about a turn's context (``x_megacontext``): what the model saw of the history, as measured.

    ``raw``, ``gisted`` and ``hidden`` count tokens of the history by how the model saw them at the turn's end;
    ``unavailable`` counts tokens whose span the focus asked for and the store could not give, and ``framed`` those of
    frames, which are no part of the history. ``kv_loaded``: units that the session's KV file brought into a new slab;
    ``kv_shared``: those that came out of the slab of another session, which begins alike.
    ``guessed``, ``guessed_right``: tokens of the reply that were read ahead, and those of them that came.
    ``provenance``: what the reply stood on, if the turn asked for it.
    """

    tokens: int = 0
    raw: int = 0
    gisted: int = 0
    hidden: int = 0
    framed: int = 0
    unavailable: int = 0
    budget: int = 0
    cost: int = 0
    source: Warmth = "warm"
    spans_fetched: int = 0
    kv_loaded: int = 0
    kv_shared: int = 0
    kv_reused: int = 0
    kv_recomputed: int = 0
    guessed: int = 0
    guessed_right: int = 0
    refocuses: int = 0
    swap_rate: float = 0.0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    provenance: Provenance | None = None
    sequence: int | None = None


@dataclass(frozen=True)
class Delta:
    """New text of the reply; empty text while a character or a possible stop string is still open."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The turn is complete and the store has acknowledged it. stop: the stop string that ended it, if one did."""

    reason: FinishReason
    usage: Usage
    context: ContextReport
    stop: str | None = None


@dataclass(frozen=True)
class Failed:
    """The turn failed and left no trace: the session is back at its last acknowledged token."""

    error: Exception


Event = Delta | Finished | Failed
Sink = Callable[[Event], None]


@dataclass
class Turn:
    """One turn of a session: read ``prompt_ids``, generate a reply, close it with ``suffix_ids``, store all of it.

    ``sink`` is called on the engine thread (after the store's acknowledgement on one of the store's) and must
    not block; the last event is Finished or Failed, exactly once. ``commit_state`` is called with the reply's
    text, and what the sink is told once it is stored, when that is about to happen; it may update the session's
    metadata, prefixes and chat. ``cut``: where
    the committed history ends for this turn, None to go on at its end; ``pins``: token ranges that stay raw for good.
    ``held_ids``: the end of the history that is a part of what the turn asks, as where a reply is generated anew.
    ``sources``: tell what the reply stood on.
    ``constraint``: what the reply may say. ``spoken_ids``: special tokens that are shown in its text by their names,
    such as one that opens a tool call.
    """

    session: Session
    prompt_ids: np.ndarray
    sampling: SamplingParams
    sink: Sink
    suffix_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    request_id: str = ""
    source: Warmth = "warm"
    commit_state: Callable[[str, Finished], None] | None = None
    cut: int | None = None
    pins: tuple[tuple[int, int], ...] = ()
    held_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    sources: bool = False
    constraint: Constraint | None = None
    spoken_ids: frozenset[int] = frozenset()
