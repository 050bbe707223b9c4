"""Low-rank updates of a base's layers (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685): a small file beside a
base that stays as it is. They are learned beside the layers, and added to their weights when a base is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.loading import WeightSource

MOST_RANK = 16
DOWN, UP = ".down", ".up"


class LowRank(nn.Module):
    """An update of ``rank`` of every linear layer in a decoder's layers, nothing at first. The decoder computes with
    them from now on, but for ``off``; its own weights and their names stay."""

    def __init__(self, decoder: Decoder, rank: int) -> None:
        """ConfigError for a rank that makes no small file."""
        super().__init__()
        if not 1 <= rank <= MOST_RANK:
            raise ConfigError(f"rank must lie in [1, {MOST_RANK}], got {rank}")
        layers = {name: part for name, part in decoder.named_modules() if _adapts(name, part)}
        self.names, self.active = tuple(layers), True
        device = decoder.device
        self.down = nn.ParameterList(
            torch.randn(rank, layer.in_features, device=device) * layer.in_features**-0.5 for layer in layers.values()
        )
        self.up = nn.ParameterList(torch.zeros(layer.out_features, rank, device=device) for layer in layers.values())
        for number, layer in enumerate(layers.values()):
            layer.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if not self.active:
                return output
            return output + inputs[0] @ self.down[number].T @ self.up[number].T

        return add

    @contextmanager
    def off(self) -> Iterator[None]:
        """The decoder as it was, for the time of the block."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    @torch.no_grad()
    def take(self, updates: Mapping[str, Tensor]) -> None:
        """Go on from ``updates`` of the same layers and rank."""
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            down.copy_(updates[name + DOWN])
            up.copy_(updates[name + UP])

    def updates(self) -> dict[str, Tensor]:
        """What a file keeps: of each layer "NAME.down" [rank, in] and "NAME.up" [out, rank]."""
        found: dict[str, Tensor] = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            found |= {name + DOWN: down.detach(), name + UP: up.detach()}
        return found


class Adapted:
    """A base model with low-rank updates added to its weights."""

    def __init__(self, source: WeightSource, updates: Mapping[str, Tensor]) -> None:
        """updates: as ``LowRank.updates`` names them."""
        self.path: Path = source.path
        self._source, self._updates = source, updates

    def config(self) -> DecoderConfig:
        return self._source.config()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """ConfigError if there are updates of what the base has not, or of another shape."""
        left = {name.removesuffix(DOWN) for name in self._updates if name.endswith(DOWN)}
        for full, tensor in self._source.tensors():
            name = full.removeprefix("model.").removesuffix(".weight")
            if name in left:
                left.discard(name)
                tensor = self._added(name, tensor)
            yield full, tensor
        if left:
            raise ConfigError(f"adapters change layers that {self.path} has not: {sorted(left)[:4]}")

    def _added(self, name: str, weight: Tensor) -> Tensor:
        down, up = self._updates[name + DOWN], self._updates.get(name + UP)
        if up is None or (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise ConfigError(f"adapters of {name} do not fit its weight {list(weight.shape)}")
        return weight.float() + up.float() @ down.float()


def _adapts(name: str, part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) and name.startswith("layers.")
