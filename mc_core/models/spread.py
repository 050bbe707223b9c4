"""A rotation of the residual stream, folded into the weights: outputs stay, and no channel is louder than the others.

In stock bases a few channels are a hundred times louder than the rest, and int8 activations would spend their range on
them. An RMS norm without a weight commutes with any rotation, so the norms' weights move into the layers that read
them, and the rotation into whatever reads or writes the stream (QuaRot, Ashkboos et al. 2024,
https://arxiv.org/abs/2404.00456). What is left to do at run time is to rotate the input embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mc_core.models.decoder import Decoder, Layer, RMSNorm


class Spread:
    """An orthogonal map of ``size`` channels: signs drawn at random, then the discrete Hartley transform.

    It exists for any size, takes n log n steps, and none of its entries exceeds sqrt(2 / size).
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        random = torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed))
        self.signs = random.float().mul_(2).sub_(1)

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., size] float32, turned."""
        return _hartley(x * self.signs)

    def back(self, x: Tensor) -> Tensor:
        """What ``x`` was before it was turned: the transform is its own inverse."""
        return _hartley(x) * self.signs


def _hartley(x: Tensor) -> Tensor:
    waves = torch.fft.fft(x, norm="ortho")
    return waves.real - waves.imag


def spread_layer(layer: Layer, spread: Spread) -> None:
    """Make a layer of float32 weights read and write the turned stream."""
    pairs = (layer.input_layernorm, layer.self_attn), (layer.post_attention_layernorm, layer.mlp)
    for norm, block in pairs:
        for name in block.READS:
            _turn_input(getattr(block, name), norm, spread)
        _turn_output(getattr(block, block.WRITES), spread)
        norm.weight = None


def spread_head(decoder: Decoder, spread: Spread) -> None:
    """The same for the last norm and a float32 ``lm_head`` that shares nothing with the embeddings."""
    _turn_input(decoder.lm_head, decoder.norm, spread)
    decoder.norm.weight = None


def _turn_input(linear: nn.Linear, norm: RMSNorm, spread: Spread) -> None:
    scale = 1.0 if norm.weight is None else norm.weight.detach()
    # In parts: a transform of all of a large vocabulary would take several times the head's memory.
    linear.weight = _frozen(torch.cat([spread(rows * scale) for rows in torch.split(linear.weight.detach(), 4096)]))


def _turn_output(linear: nn.Linear, spread: Spread) -> None:
    linear.weight = _frozen(spread(linear.weight.detach().T).T)
    if linear.bias is not None:
        linear.bias = _frozen(spread(linear.bias.detach()))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
