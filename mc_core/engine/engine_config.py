"""Limits of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mc_core.errors import ConfigError
from mc_core.kv.layout import SEGMENT_BLOCKS


@dataclass(frozen=True)
class EngineConfig:
    """Everything is counted in tokens or sessions; times are in seconds.

    max_sessions: KV slabs, so turns that decode together. max_queue: turns waiting for a slab; one more is refused.
    prefill_tokens: prefill and repair work a step, beside the decode batch. ingest_tokens: history read a step.
    hot_tokens: token ids a session keeps in memory; older ones live in the store (None keeps all).
    restore_deadline: how long a refocus waits for evicted spans before it goes on without them.
    refresh_every: what repair keeps of an older view is computed anew after this many refocuses of a session:
    everything with ``incremental``, the tail with ``block`` (nothing, if the base was trained with that mask).
    segment_blocks: neighbouring raw blocks, aligned, that see each other under the block mask. More of them join what
    straddles a border, and make a repair recompute more.
    recent_kv_bytes: host memory, shared by all sessions, for keys and values of places that left working contexts
    lately under the block mask (0 keeps none): to go back to one then computes nothing.
    kv_folder, kv_folder_bytes: where slabs of idle sessions are kept as files, and how many bytes of them at most
    (None, or 0, keeps none): a session whose slab was given away, or that comes back from the store, goes on with it.
    share_kv: a session that gets a slab takes over what another one's has of its beginning (``engine/kv_sharing.py``).
    lookup_tokens: of a reply that is decoded alone on a CPU, tokens that are guessed and read ahead at most
    (``engine/prompt_lookup.py``; 0: none, None: 8 with int8 weights, and none with others, of which a few at once cost
    as much as one by one).
    cuda_graphs: a GPU records decode steps and replays them (``kv/static_decode.py``).
    deterministic: turns are decoded one by one and share nothing, so that a reply doesn't depend on which others run
    beside it.
    """

    max_sessions: int = 16
    max_queue: int = 64
    prefill_tokens: int = 256
    ingest_tokens: int = 32_768
    hot_tokens: int | None = None
    restore_deadline: float = 0.5
    refresh_every: int = 32
    segment_blocks: int = SEGMENT_BLOCKS
    recent_kv_bytes: int = 256 << 20
    kv_folder: Path | None = None
    kv_folder_bytes: int = 4 << 30
    share_kv: bool = True
    lookup_tokens: int | None = None
    cuda_graphs: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("max_sessions", "prefill_tokens", "ingest_tokens", "refresh_every", "segment_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_queue", "recent_kv_bytes", "kv_folder_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("hot_tokens", "lookup_tokens"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.restore_deadline <= 0:
            raise ConfigError(f"restore_deadline must be positive, got {self.restore_deadline}")
