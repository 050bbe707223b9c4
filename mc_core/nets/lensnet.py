"""LensNet: scores every entry of a working context by what the tail asks for, and makes the look-ahead's vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.nets.layers import BidirectionalLayer, CrossLayer
from mc_core.nets.lens_keys import KeyNet, QueryNet, clean
from mc_core.nets.lens_words import WordNet

LensKind = Literal["cross", "transformer"]


@dataclass(frozen=True)
class LensNetConfig:
    """dim: of the base model's embeddings; width, heads, layers: of the lens; keys x key_dim: lens keys a block.

    key_width: width that a block is read at for its keys; key_reach: tokens on each side that a token is read with.
    queries: of a tail. words: size of word vectors, 0 = none; word_hidden: units between an embedding and its word
    vector. keys may be 0 where there are word vectors.
    """

    dim: int
    kind: LensKind = "cross"
    width: int = 128
    heads: int = 4
    layers: int = 2
    keys: int = 4
    key_dim: int = 64
    key_width: int = 96
    key_reach: int = 2
    queries: int = 8
    words: int = 0
    word_hidden: int = 512

    def __post_init__(self) -> None:
        if self.kind not in get_args(LensKind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(LensKind))}, got {self.kind!r}")
        for name in ("dim", "width", "heads", "layers", "key_dim", "key_width", "queries", "word_hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.keys, self.words) < 0 or not max(self.keys, self.words):
            raise ConfigError(f"keys and words must be at least 0, and one above, got {self.keys} and {self.words}")
        if self.key_reach < 0:
            raise ConfigError(f"key_reach must be at least 0, got {self.key_reach}")
        if self.width % self.heads:
            raise ConfigError(f"width must be a multiple of heads ({self.heads}), got {self.width}")


@dataclass(frozen=True, eq=False)
class LensInput:
    """B working contexts of n entries, each with its tail of t tokens; masks are bool, True = real, None = all real.

    entries [B, n, d], tail [B, t, d] (newest last): in the base model's embedding space. levels [B, n]; spans [B, n]
    tokens covered; distances [B, n] tokens from an entry's end to the cursor.
    """

    entries: Tensor
    levels: Tensor
    spans: Tensor
    distances: Tensor
    tail: Tensor
    entry_mask: Tensor | None = None
    tail_mask: Tensor | None = None

    def features(self) -> Tensor:
        """level, log span, log distance of each entry [B, n, 3]; zero where the mask hides it."""
        spans, distances = self.spans.float().clamp_min(1).log(), self.distances.float().clamp_min(0).log1p()
        features = torch.stack([self.levels.float(), spans, distances], dim=-1)
        return features if self.entry_mask is None else features.masked_fill(~self.entry_mask[..., None], 0.0)


@dataclass(frozen=True, eq=False)
class LensOutput:
    """gain of expanding, harm of collapsing [B, n]: unbounded, about nats of the tokens to come."""

    gain: Tensor
    harm: Tensor

    @property
    def score(self) -> Tensor:
        """Signed score within [-1, 1]: above 0 expand, below 0 collapse [B, n]."""
        return torch.tanh(self.gain - self.harm)


class _Cross(nn.Module):
    """Entries read the tail, and the tail reads the entries: O(n * t), with t bounded."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.to_entries = nn.ModuleList(CrossLayer(width, heads) for _ in range(layers))
        # What the tail learns in the last layer nobody would read.
        self.to_tail = nn.ModuleList(CrossLayer(width, heads) for _ in range(layers - 1))

    def forward(self, entries: Tensor, tail: Tensor, entry_mask: Tensor, tail_mask: Tensor) -> Tensor:
        for i, to_entries in enumerate(self.to_entries):
            entries = to_entries(entries, tail, tail_mask)
            if i < len(self.to_tail):
                tail = self.to_tail[i](tail, entries, entry_mask)
        return entries


class _Joint(nn.Module):
    """Entries and tail in one bidirectional sequence: O((n + t)^2)."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BidirectionalLayer(width, heads) for _ in range(layers))

    def forward(self, entries: Tensor, tail: Tensor, entry_mask: Tensor, tail_mask: Tensor) -> Tensor:
        x, mask = torch.cat([entries, tail], dim=1), torch.cat([entry_mask, tail_mask], dim=1)
        for layer in self.layers:
            x = layer(x, mask, None)
        return x[:, : entries.shape[1]]


class LensNet(nn.Module):
    """``forward`` scores entries. History is searched by lens keys (``key_net`` makes those of blocks, ``query_net``
    the queries of a tail), by word vectors (``word_net``), or by both; the networks of a way that it has not are None.
    """

    def __init__(self, config: LensNetConfig) -> None:
        super().__init__()
        self.config = config
        self.enter_entry = nn.Linear(config.dim, config.width)
        self.enter_tail = nn.Linear(config.dim, config.width)
        self.place_entry = nn.Linear(3, config.width)
        self.place_tail = nn.Linear(1, config.width)
        # Always there to be read, so that an empty tail is a tail too.
        self.rest = nn.Parameter(torch.zeros(config.width))
        mixer = _Cross if config.kind == "cross" else _Joint
        self.mix = mixer(config.width, config.heads, config.layers)
        self.leave = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 2))
        self.key_net: KeyNet | None = None
        self.query_net: QueryNet | None = None
        self.word_net: WordNet | None = None
        if config.keys:
            self.key_net = KeyNet(config.dim, config.keys, config.key_dim, config.key_width, config.key_reach)
            self.query_net = QueryNet(config.dim, config.width, config.heads, config.queries, config.key_dim)
        if config.words:
            self.word_net = WordNet(config.dim, config.word_hidden, config.words)

    def forward(self, view: LensInput) -> LensOutput:
        """Score all entries; what stands in masked rows changes nothing, and their own scores are 0."""
        batch = len(view.entries)
        entry_mask, tail_mask = _mask(view.entries, view.entry_mask), _mask(view.tail, view.tail_mask)
        entries = self.enter_entry(clean(view.entries, entry_mask)) + self.place_entry(view.features())
        tail = self._tail(view.tail, tail_mask)
        tail_mask = torch.cat([tail_mask.new_ones(batch, 1), tail_mask], dim=1)
        both = self.leave(self.mix(entries, tail, entry_mask, tail_mask))
        gain, harm = both.masked_fill(~entry_mask[..., None], 0.0).unbind(-1)
        return LensOutput(gain, harm)

    def _tail(self, tail: Tensor, mask: Tensor) -> Tensor:
        # Age counts real tokens only, so that padding on either side changes nothing.
        age = mask.flip(1).cumsum(1).flip(1).float().log1p()[..., None]
        x = self.enter_tail(clean(tail, mask)) + self.place_tail(age)
        return torch.cat([self.rest.expand(len(tail), 1, -1), x], dim=1)


def _mask(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
