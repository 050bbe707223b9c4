"""The base's forward pass in training: one batch under the full causal mask or the block mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.lab.training.base.batches import Batch
from mc_core.lab.training.sample import BLOCK
from mc_core.models.attention import Attention, BlockMaskAttention, FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.rotary import Rotary


@dataclass(frozen=True)
class BaseShape:
    """Shape of a base: a Qwen3-like decoder with tied embeddings."""

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 704
    max_positions: int = 2048
    rope_theta: float = 10_000.0

    def config(self, vocab_size: int) -> DecoderConfig:
        """As a decoder's configuration."""
        return DecoderConfig(
            family="qwen3",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_positions,
            rope_theta=self.rope_theta,
            tie_word_embeddings=True,
            qk_norm="weighted",
            block_mask=True,
        )


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Normal weights, scaled by fan-in; what is added to the residual stream starts small, embeddings at 0.02."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim != 2:
            parameter.fill_(1.0)
            continue
        deviation = 0.02 if "embed" in name or "lm_head" in name else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= (2 * decoder.config.num_layers) ** 0.5
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))


class BaseModel(nn.Module):
    """A decoder with the attention that a layout asks for; positions are ranks from 0, as when serving."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.rotary = Rotary(decoder.config, decoder.device)

    def attention(self, length: int, tail_start: int, segment: int, block_mask: bool) -> Attention:
        """Attention over [first block | history | tail] of ``length`` tokens, or causal over all of them."""
        if length > self.decoder.config.max_position_embeddings:
            raise ConfigError(f"length {length} is above max_positions {self.decoder.config.max_position_embeddings}")
        cos, sin = self.rotary.table(torch.arange(max(length, BLOCK + segment), device=self.decoder.device))
        place = (cos[None, :length], sin[None, :length])
        if not block_mask:
            return FullAttention(place)
        local = (cos[: BLOCK + segment], sin[: BLOCK + segment])
        return BlockMaskAttention(local, place, BLOCK, segment, tail_start)

    def forward(self, ids: Tensor, attention: Attention) -> Tensor:
        """ids [B, T] -> hidden states [B, T, hidden_size]."""
        return self.decoder(self.decoder.embed(ids), attention)

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each target [B, T] in nats, and whether it was the likeliest token [B, T].

        0 and False where the batch's weight is 0: the head, a third of a small base's work, is left out there.
        """
        length = batch.ids.shape[1]
        attention = self.attention(length, batch.tail_start, batch.segment, batch.block_mask)
        counted = batch.weights > 0
        logits = self.decoder.logits(self(batch.ids, attention)[counted])
        targets = batch.targets[counted]
        losses = torch.zeros(counted.shape, device=logits.device)
        losses = losses.masked_scatter(counted, F.cross_entropy(logits, targets, reduction="none"))
        with torch.no_grad():
            right = counted.masked_scatter(counted, logits.argmax(-1) == targets)
        return losses, right
