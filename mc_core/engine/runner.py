"""The model runner: one base model on one device, its slabs, what is computed in them and drawn from that.

The engine and the research facade ask for nothing of the device but through here. A CPU and a GPU run the same code;
what one of them wants otherwise (static shapes, graphs) has its place behind these methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.engine.work import Decode, Forward, Sample
from mc_core.kv.recent import RecentKV, Shelf
from mc_core.kv.repair import RepairMode
from mc_core.kv.session_kv import KVModel, SessionKV, decode_step
from mc_core.kv.slab import SlabPool
from mc_core.kv.static_decode import StaticDecodes
from mc_core.models.constraint import Constraint
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import Rotary
from mc_core.models.sampler import SampledToken, Sampler, SamplerState
from mc_core.models.sampling_params import SamplingParams
from mc_core.positions.policies import Policy
from mc_core.session.session import Session


@dataclass(frozen=True)
class ModelRunner:
    """Built by ``make_runner``; one thread alone may use it."""

    model: KVModel
    sampler: Sampler
    recent: RecentKV | None = None
    seated: WeakValueDictionary[int, Session] = field(default_factory=WeakValueDictionary)
    """By row, the session that was given that slab last; it may have none any more."""

    @property
    def mode(self) -> RepairMode:
        """How keys and values are repaired."""
        return self.model.mode

    @property
    def policy(self) -> Policy:
        """Where a unit stands for the model."""
        return self.model.policy

    @property
    def pool(self) -> SlabPool:
        """The memory of keys and values."""
        return self.model.pool

    def acquire(self, shelf: Shelf | None = None) -> SessionKV | None:
        """A slab, or None when all are taken; ``SessionKV.release`` gives it back."""
        row = self.pool.acquire()
        return None if row is None else SessionKV(self.model, row, shelf)

    def seat(self, session: Session) -> None:
        """Give a session a slab, if one is free; what its last one held may be at hand yet."""
        if session.shelf is None and self.recent is not None:
            session.shelf = Shelf(self.recent)
        session.kv = self.acquire(session.shelf)
        if session.kv is not None:
            self.seated[session.kv.row] = session

    def embed(self, ids: NDArray[np.int64]) -> Tensor:
        """Token ids [T] -> input embeddings [T, d] on the device."""
        return self.model.decoder.embed(torch.from_numpy(ids).to(self.pool.device))

    def prefill(self, request: Forward) -> Tensor:
        """One chunk of a repair -> hidden states [T, d]."""
        return request.kv.run(request.chunk, request.embeddings)

    def decode(self, requests: Sequence[Decode]) -> list[Tensor]:
        """The tokens of each of B sessions -> hidden states [T, d] of each; if it fails, no slab has changed."""
        try:
            one = [request for request in requests if len(request.tokens) == 1]
            more = [request for request in requests if len(request.tokens) > 1]
            hidden = dict(zip(map(id, one), self._decode(one), strict=True)) if one else {}
            hidden |= {id(each): self._read_ahead(each) for each in more}
            return [hidden[id(request)] for request in requests]
        except Exception:
            for request in requests:
                request.kv.rewind(request.index)
            raise

    def _decode(self, requests: Sequence[Decode]) -> Tensor:
        """One token of each of B sessions -> [B, 1, d]."""
        ids = torch.tensor([request.tokens[0] for request in requests], device=self.pool.device)
        sessions, indices = [request.kv for request in requests], [request.index for request in requests]
        return decode_step(self.model, sessions, indices, ids)[:, None]

    def _read_ahead(self, request: Decode) -> Tensor:
        return request.kv.read_on(request.index, self.embed(np.array(request.tokens, np.int64)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., d] -> logits [..., vocab] in float32."""
        return self.model.decoder.logits(hidden)

    def sampling(self, params: SamplingParams, constraint: Constraint | None = None) -> SamplerState:
        """The state of a reply that is to be drawn so; ConfigError if the parameters do not fit the vocabulary."""
        return self.sampler.state(params, constraint)

    def draw(self, requests: Sequence[Sample]) -> list[SampledToken]:
        """The next token of each; if it fails, no random stream has moved on."""
        states = [request.state for request in requests]
        before = [state.generator.bit_generator.state for state in states]
        try:
            unknown = [request.hidden for request in requests if request.logits is None]
            computed = iter(self.logits(torch.stack(unknown)) if unknown else ())
            rows = [next(computed) if request.logits is None else request.logits for request in requests]
            return self.sampler.sample(torch.stack(rows), states).rows()
        except Exception:
            for state, was in zip(states, before, strict=True):
                state.generator.bit_generator.state = was
            raise


def make_runner(
    decoder: Decoder,
    policy: Policy,
    mode: RepairMode,
    *,
    rows: int,
    slots: int,
    chunk_tokens: int,
    recent_bytes: int = 0,
    static: bool = False,
) -> ModelRunner:
    """Allocate ``rows`` slabs of ``slots`` each, where the decoder is; a repair runs in chunks of ``chunk_tokens``.

    recent_bytes: host memory for what left the slabs lately. With ``block`` alone: in the other modes keys and values
    depend on all that stood before them, and are of no use where something else does.
    static: decode steps have fixed shapes, and a GPU records them.
    """
    moves = not policy.absolute and mode != "exact"
    config, device = decoder.config, decoder.device
    pool = SlabPool(config, rows, slots, device=device, dtype=decoder.dtype, keep_unrotated=moves, spare=static)
    steps = StaticDecodes(decoder, pool) if static else None
    model = KVModel(decoder, Rotary(config, device), policy, pool, mode, chunk_tokens, steps)
    recent = RecentKV(recent_bytes) if mode == "block" and recent_bytes else None
    return ModelRunner(model, Sampler(config.vocab_size, device), recent)
