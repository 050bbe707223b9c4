"""What a job asks the engine for. A job is a generator: it yields one of these and is sent the answer.

So a turn reads from top to bottom as one function, while the engine runs many of them, batches what can be batched
and lets none of them hold up the others.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mc_core.kv.repair import Chunk
from mc_core.kv.session_kv import SessionKV
from mc_core.models.sampler import SamplerState


@dataclass(frozen=True)
class Decode:
    """Read a token, and guesses of what comes behind it -> hidden states [T, d]. ``index``: where the first one stands
    in the history."""

    kv: SessionKV
    tokens: tuple[int, ...]
    index: int


@dataclass(frozen=True)
class Sample:
    """Sample from a hidden state [d], or from the logits [vocab] behind it -> ``SampledToken``."""

    hidden: Tensor
    state: SamplerState
    logits: Tensor | None = None


@dataclass(frozen=True)
class Forward:
    """Compute one chunk of a repair from its embeddings [T, d] -> hidden states [T, d]."""

    kv: SessionKV
    chunk: Chunk
    embeddings: Tensor


@dataclass(frozen=True)
class Wait:
    """Wait for a future -> True when it is done, False when ``deadline`` (monotonic seconds) has passed."""

    future: Future[Any]
    deadline: float | None = None


@dataclass(frozen=True)
class Pause:
    """Let others run after ``tokens`` of host work -> None."""

    tokens: int


@dataclass(frozen=True)
class AcquireKV:
    """Wait for a slab -> ``SessionKV``; jobs are served in the order they came."""


Work = Decode | Sample | Forward | Wait | Pause | AcquireKV
Job = Generator[Work, Any, None]
