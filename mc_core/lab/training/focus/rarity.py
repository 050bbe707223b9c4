"""Where an encoder's scores start: by how rare a token is, so that a vector begins as nearly the rarest token's own,
which the base can read, and not as a mean, which it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mc_core.lab.data.cache import Stream
from mc_core.models.decoder import Decoder
from mc_core.nets.encoder_gistnet import EncoderGistNet

COUNTED, BLOCKS, RIDGE = 400_000, 256, 10.0
"""Tokens of each stream that are counted, blocks that are read, and the penalty of the least squares."""


@torch.no_grad()
def score_by_rarity(gistnet: EncoderGistNet, decoder: Decoder, streams: Sequence[Stream], seed: int) -> None:
    """Fit the scores to the tokens' rarity, log of 1 / frequency, as far as what is read of them tells it."""
    rng, size = np.random.default_rng(seed), gistnet.block_size
    some = [stream.ids[:COUNTED] for stream in streams if len(stream) > size]
    counts = sum(np.bincount(ids, minlength=decoder.config.vocab_size) for ids in some)
    rarity = torch.from_numpy(np.log(np.sum(counts) / (counts + 1.0))).float().to(decoder.device)
    texts = [some[int(rng.integers(len(some)))] for _ in range(BLOCKS)]
    blocks = [ids[at : at + size] for ids in texts for at in [int(rng.integers(len(ids) - size))]]
    ids = torch.from_numpy(np.stack(blocks).astype(np.int64)).to(decoder.device)
    read = gistnet.norm(gistnet.read(decoder.embed(ids).float(), None)).flatten(0, 1)
    wanted = rarity[ids].flatten()
    ridge = RIDGE * torch.eye(gistnet.dim, device=read.device)
    weight = torch.linalg.solve(read.T @ read + ridge, read.T @ (wanted - wanted.mean()))
    gistnet.score.weight.copy_(weight[None])
