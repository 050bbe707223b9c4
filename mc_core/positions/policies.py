"""Where an entry stands: position policies, from the base model's own ranks to uncertain absolute positions.

A policy says at which position, how surely, and at which level each visible unit (a token or a gist) is rotated,
and whether attention falls with distance. Nothing here knows a model's weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.decoder_config import DecoderConfig

Placement = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""(positions, sigma, turns) of n units, each float64 [n]; sigma and turns are all 0 where a policy has none."""

POLICIES = ("compact", "simple", "gaussian", "gaussian_alibi", "gaussian_lod2d", "gaussian_lod2d_alibi")


@dataclass(frozen=True)
class Policy:
    """One position policy for one base model; make it with ``make_policy``.

    absolute: positions are token indices (else ranks in the working context). gaussian: a gist's vectors are damped by
    sigma = sigma_scale * the tokens that each stands for (K^level / m). by_level: level channels turn by level.
    has_bias: attention to a key falls with its distance (``bias`` must be added to the scores).
    """

    name: str
    block_size: int
    num_heads: int
    sigma_scale: float
    absolute: bool
    gaussian: bool
    by_level: bool
    has_bias: bool

    def placement(
        self,
        levels: NDArray[np.int8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        ranks: NDArray[np.int64],
    ) -> Placement:
        """Place n units.

        levels [n]; starts, ends [n]: token range [start, end) of a unit, one token at level 0; ranks [n]: place among
        the *visible* units of the working context. A gist's vector stands at the centre of its tokens.
        """
        none = np.zeros(len(levels), np.float64)
        if not self.absolute:
            return ranks.astype(np.float64), none, none
        positions = 0.5 * (starts.astype(np.float64) + (ends.astype(np.float64) - 1.0))
        sigma = turns = none
        if self.gaussian:
            sigma = np.where(levels > 0, self.sigma_scale * (ends - starts), 0.0)
        if self.by_level:
            turns = levels.astype(np.float64)
        return positions, sigma, turns

    def slopes(self, device: torch.device | str = "cpu") -> Tensor:
        """ALiBi slopes m_h = 2^(-8 (h + 1) / H), [heads] float32 (Press et al. 2021, arXiv 2108.12409)."""
        heads = torch.arange(1, self.num_heads + 1, dtype=torch.float32, device=device)
        return torch.exp2(-8.0 * heads / self.num_heads)

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Score bias -m_h * |p_q - p_k|: query_positions [q], key_positions [k] -> [heads, q, k] float32."""
        # Subtracted before narrowing: float32 cannot tell neighbours apart past 16 million tokens.
        distance = (query_positions[:, None] - key_positions[None, :]).abs().float()
        return -self.slopes(distance.device)[:, None, None] * distance


def make_policy(name: str, config: DecoderConfig, block_size: int, sigma_scale: float = 0.25) -> Policy:
    """The policy ``name`` for a base model.

    sigma_scale: c in sigma = c * K^level, as fitted on validation. ConfigError: an unknown name, a negative scale, or
    a ``gaussian_lod2d*`` policy on a base that was not trained with level channels.
    """
    if name not in POLICIES:
        raise ConfigError(f"positions must be one of {POLICIES}, got {name!r}")
    if block_size < 2:
        raise ConfigError(f"block_size must be at least 2, got {block_size}")
    if not (math.isfinite(sigma_scale) and sigma_scale >= 0):
        raise ConfigError(f"sigma_scale must be finite and at least 0, got {sigma_scale}")
    by_level = "lod2d" in name
    if by_level and not config.level_channels:
        raise ConfigError(
            f"positions={name!r} needs a base trained with level channels, but this {config.family} base has "
            "level_channels = 0; use compact, simple, gaussian or gaussian_alibi"
        )
    return Policy(
        name=name,
        block_size=block_size,
        num_heads=config.num_heads,
        sigma_scale=float(sigma_scale),
        absolute=name != "compact",
        gaussian=name.startswith("gaussian"),
        by_level=by_level,
        has_bias=name.endswith("alibi"),
    )
