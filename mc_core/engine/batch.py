"""What the engine computes for several turns at once: one token read for each, one token drawn for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mc_core.engine.work import Decode, Sample
from mc_core.kv.session_kv import decode_step
from mc_core.models.decoder import Decoder
from mc_core.models.sampler import SampledToken, Sampler


def read_tokens(requests: Sequence[Decode]) -> Tensor:
    """Hidden states [B, d] of one token each; if it fails, no slab has changed."""
    model = requests[0].kv.model
    ids = torch.tensor([request.token for request in requests], device=model.pool.device)
    return decode_step(model, [request.kv for request in requests], [request.index for request in requests], ids)


def draw_tokens(decoder: Decoder, sampler: Sampler, requests: Sequence[Sample]) -> list[SampledToken]:
    """The next token of each; if it fails, no random stream has moved on."""
    states = [request.state for request in requests]
    before = [state.generator.bit_generator.state for state in states]
    try:
        logits = decoder.logits(torch.stack([request.hidden for request in requests]))
        return sampler.sample(logits, states).rows()
    except Exception:
        for state, was in zip(states, before, strict=True):
            state.generator.bit_generator.state = was
        raise
