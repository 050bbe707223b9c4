"""The precision of a decoder's linear layers: what a weight becomes while it is loaded, and what computes with it.

Weights are of a floating type, or ``torch.int8``: then every linear layer is an ``Int8Linear``, and all else (the
embeddings, norms, activations, keys and values) is float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError

_MOST = 127
"""Of a quantised weight or activation, at either side of 0."""


def compute_dtype(weights: torch.dtype) -> torch.dtype:
    """Of what is not a linear layer: of activations, keys and values."""
    return torch.float32 if weights == torch.int8 else weights


@dataclass(frozen=True)
class Int8Weight:
    """A weight [N, K] with one scale a row: ``rows`` int8, ``scales`` [N] float32."""

    rows: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight:
        """The nearest to a weight [N, K] of any floating type; a row's greatest becomes 127.

        Where kernels add pairs of products in 16 bits (``adds_pairs``) a row's greatest pair becomes that: then no sum
        overflows, whatever the activations are. Steps become some 1.3 times as wide; half as many steps of activations,
        the other way out, lost twice as much (docs/benchmarks.md).
        """
        wide = weight.float()
        greatest = _greatest_pairs(wide) if adds_pairs() else wide.abs().amax(dim=1)
        scales = greatest.clamp_min_(torch.finfo(torch.float32).tiny) / _MOST
        return cls((wide / scales[:, None]).round_().to(torch.int8), scales)

    def __len__(self) -> int:
        return len(self.rows)


class Int8Linear(nn.Module):
    """``x W^T + b`` with int8 weights, one scale an output, and activations that are quantised row by row.

    The kernel (FBGEMM's) takes one scale for all activations. So each row is brought to [-1, 1] first and its outputs
    are scaled back: an outlier costs its own row alone, and no row's result depends on what else is in the batch.
    Several weights of the same input make one product; ``sizes`` are the outputs of each.
    """

    def __init__(self, weights: Sequence[Int8Weight], biases: Sequence[Tensor | None] = ()) -> None:
        """biases: one for each weight, or none at all."""
        super().__init__()
        self.sizes = [len(weight) for weight in weights]
        rows = torch.cat([weight.rows for weight in weights]) if len(weights) > 1 else weights[0].rows
        self.out_features, self.in_features = rows.shape
        self._packed = _pack(rows, torch.cat([weight.scales for weight in weights]))
        present = [bias for bias in biases if bias is not None]
        self.bias = nn.Parameter(torch.cat(present).float(), requires_grad=False) if present else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], float32."""
        if x.dim() == 1:
            return self.forward(x[None])[0]  # the kernel knows no single vectors
        greatest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-30)
        out = _product(x / greatest, self._packed).mul_(greatest)
        return out if self.bias is None else out.add_(self.bias)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., in_features] -> the outputs of each weight, [..., sizes[i]]."""
        return torch.split(self.forward(x), self.sizes, dim=-1)

    def packed(self) -> dict[str, Tensor]:
        """The weight as it was packed: rows [N, K] int8, and scales [N]; a copy."""
        weight, _ = torch.ops.quantized.linear_unpack(self._packed)
        return {"rows": weight.int_repr(), "scales": weight.q_per_channel_scales()}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def check_weights(weights: torch.dtype, device: torch.device | str) -> None:
    """ConfigError if weights of this type cannot be computed with on ``device``."""
    if weights != torch.int8:
        return
    if torch.device(device).type != "cpu":
        raise ConfigError(f"weights=int8 is for the CPU, not for {device}; use bfloat16")
    engines = torch.backends.quantized.supported_engines
    if "fbgemm" not in engines:
        raise ConfigError(f"weights=int8 needs torch's FBGEMM kernels (x86 CPUs); this one has {', '.join(engines)}")


@cache
def adds_pairs() -> bool:
    """Whether the kernels add pairs of products in 16 bits, as those of x86 CPUs without VNNI do.

    Found by trial: the greatest weights times the greatest activations overflow there.
    """
    size = 64
    packed = _pack(torch.full((size, size), _MOST, dtype=torch.int8), torch.full((size,), 1 / _MOST))
    return any(not _near(_product(ones, packed).abs(), size) for ones in (torch.ones(1, size), -torch.ones(1, size)))


def _near(x: Tensor, expected: float) -> bool:
    return bool(((x - expected).abs() < 0.01).all())


def _greatest_pairs(weight: Tensor) -> Tensor:
    """[N, K] -> [N]: of the neighbours 2i and 2i + 1, the greatest sum of those with one sign."""
    pairs = F.pad(weight, (0, weight.shape[1] % 2)).view(len(weight), -1, 2)
    sums = torch.stack([pairs.clamp_min(0).sum(-1), pairs.clamp_max(0).sum(-1).neg_()])
    return sums.amax(dim=(0, 2))


def _pack(rows: Tensor, scales: Tensor) -> Any:
    """Int8 weights [N, K] and scales [N] as the kernel wants them."""
    torch.backends.quantized.engine = "fbgemm"
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        # Quantised tensors are to leave torch one day; the kernel takes its weights in no other form.
        warnings.filterwarnings("ignore", message=".*torch.quantize_per_tensor.*", category=UserWarning)
        quantised = torch._make_per_channel_quantized_tensor(rows, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(quantised, None)


def _product(x: Tensor, packed: Any) -> Tensor:
    """x [..., K] float32 in [-1, 1] times packed weights -> [..., N] float32."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1 / _MOST, _MOST + 1, packed)
