"""From float weights, as they come from a file, to a decoder of int8 linear layers; one layer is float at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mc_core.models.decoder import Decoder, GatedMLP, Layer, SelfAttention, SquaredReluMLP
from mc_core.models.linear import Int8Linear, Int8Weight
from mc_core.models.spread import Spread, spread_head, spread_layer


class Quantiser:
    """Call ``take`` after each weight and ``finish`` after the last."""

    def __init__(self, decoder: Decoder) -> None:
        """decoder: without weights, on the device "meta"."""
        self._decoder = decoder
        self._spread = Spread(decoder.config.hidden_size)
        self._missing = {f"layers.{i}.": len(layer.state_dict()) for i, layer in enumerate(decoder.layers)}

    def take(self, name: str, weights: dict[str, Tensor]) -> None:
        """``weights`` now holds ``name`` too. If that completes a layer, its weights go into the decoder, as int8."""
        prefix = ".".join(name.split(".")[:2]) + "."
        if prefix not in self._missing:
            return
        self._missing[prefix] -= 1
        if not self._missing[prefix]:
            layer = self._decoder.layers[int(name.split(".")[1])]
            assert isinstance(layer, Layer)
            own = [key for key in weights if key.startswith(prefix)]
            layer.load_state_dict({key.removeprefix(prefix): weights.pop(key) for key in own}, assign=True)
            spread_layer(layer, self._spread)
            for block in (layer.self_attn, layer.mlp):
                quantise_block(block)

    def finish(self) -> None:
        """What is not of a layer is in the decoder by now; the embeddings stay as they are."""
        decoder = self._decoder
        spread_head(decoder, self._spread)
        decoder.lm_head = _int8([decoder.lm_head])  # type: ignore[assignment]
        decoder.spread = self._spread


def quantise_block(block: SelfAttention | GatedMLP | SquaredReluMLP) -> None:
    """Put ``Int8Linear`` in the place of the linear layers of a block; those that it reads with become one."""
    if not isinstance(block, SquaredReluMLP):
        block.joined = _int8(getattr(block, name) for name in block.READS)
        for name in block.READS:
            delattr(block, name)
    for name, child in list(block.named_children()):
        if isinstance(child, nn.Linear):
            setattr(block, name, _int8([child]))


def _int8(layers: Iterable[nn.Linear]) -> Int8Linear:
    layers = list(layers)
    with torch.no_grad():
        return Int8Linear([Int8Weight.of(layer.weight) for layer in layers], [layer.bias for layer in layers])
