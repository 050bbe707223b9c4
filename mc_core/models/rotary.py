"""Rotary positions for single entries: a position may be fractional, uncertain, or carry a level.

RoPE: Su et al. 2021, https://arxiv.org/abs/2104.09864, half-split layout of the Llama family. The damping by
``exp(-(sigma * omega)^2 / 2)`` is the mean rotation of a position that is known to within a normal ``sigma``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mc_core.models.decoder_config import DecoderConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]
"""(cos, sin), each [..., T, head_dim / 2] in float32."""


def inverse_frequencies(config: DecoderConfig) -> Tensor:
    """Angular frequency of each rotary channel pair in radians a position, [head_dim / 2] float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return _scaled(1.0 / (config.rope_theta**exponents), config.rope_scaling)


def _scaled(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "default":
        return inv_freq
    if scaling.kind == "linear":
        return inv_freq / scaling.factor
    if scaling.kind == "factors":
        return inv_freq / torch.tensor(scaling.factors)
    # llama3: long wavelengths are divided by the factor, short ones stay, the band between is blended.
    wavelength = 2 * math.pi / inv_freq
    original = scaling.original_max_position_embeddings
    low, high = original / scaling.low_freq_factor, original / scaling.high_freq_factor
    blend = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - blend) * inv_freq / scaling.factor + blend * inv_freq
    slowed = torch.where(wavelength > low, inv_freq / scaling.factor, inv_freq)
    return torch.where((wavelength <= low) & (wavelength >= high), blended, slowed)


class Rotary:
    """Makes and applies rotations for one base model."""

    def __init__(self, config: DecoderConfig, device: torch.device | str = "cpu") -> None:
        self.inv_freq = inverse_frequencies(config).to(device)
        self.direction = config.rope_direction
        self.level_channels = config.level_channels

    def table(self, positions: Tensor, sigma: Tensor | None = None, levels: Tensor | None = None) -> Rotation:
        """Rotation of each entry.

        positions [..., T] (any real dtype); sigma [..., T] standard deviation in tokens, 0 or None = exact;
        levels [..., T], used by the last ``level_channels`` channel pairs of a base trained so.
        Angles are computed in float64: at ten million tokens float32 angles are off by about half a radian.
        """
        angles = positions.to(torch.float64)[..., None] * self.inv_freq.to(torch.float64)
        scale = None
        if sigma is not None:
            scale = torch.exp(-0.5 * (sigma.to(torch.float64)[..., None] * self.inv_freq.to(torch.float64)) ** 2)
        if self.level_channels:
            first = angles.shape[-1] - self.level_channels
            turn = torch.zeros_like(positions) if levels is None else levels
            # One radian a level on the first such channel, halved on each next: levels stay apart at any depth.
            rates = 0.5 ** torch.arange(self.level_channels, dtype=torch.float64, device=angles.device)
            by_level = turn.to(torch.float64)[..., None] * rates
            angles = torch.cat([angles[..., :first], by_level], dim=-1)
            if scale is not None:
                scale = torch.cat([scale[..., :first], torch.ones_like(by_level)], dim=-1)
        cos, sin = angles.cos(), angles.sin() * self.direction
        if scale is not None:
            cos, sin = cos * scale, sin * scale
        return cos.float(), sin.float()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn x [..., T, heads, head_dim] by (cos, sin) [..., T, head_dim / 2], broadcast over heads."""
    return turn(x, (rotation[0].unsqueeze(-2), rotation[1].unsqueeze(-2)))


def turn(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn x [..., head_dim] by (cos, sin) that broadcast against [..., head_dim / 2]."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def widen(rotation: Rotation, dtype: torch.dtype) -> Rotation:
    """(cos, sin) [..., T, head_dim / 2] -> [..., T, 1, head_dim], for ``rotate_wide``; one serves all layers."""
    cos, sin = (part.to(dtype).unsqueeze(-2) for part in rotation)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate_wide(x: Tensor, wide: Rotation) -> Tensor:
    """What ``rotate`` does to x [..., T, heads, head_dim], in fewer steps."""
    return torch.addcmul(x * wide[0], x.roll(x.shape[-1] // 2, -1), wide[1])
