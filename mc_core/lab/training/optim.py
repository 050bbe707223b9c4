"""Muon for the matrices of the layers, AdamW for embeddings and norms; state that safetensors can hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Named = Mapping[str, nn.Parameter]

ADAM_BETAS, ADAM_EPS = (0.9, 0.95), 1e-8
MUON_MOMENTUM, NEWTON_SCHULZ = 0.95, (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def split_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """What is trained: (matrices inside the layers, all else), by name; a tied weight appears once."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in named.items() if p.ndim == 2 and name.startswith("layers.")}
    return matrices, {name: p for name, p in named.items() if name not in matrices}


def decoder_optimizers(decoder: nn.Module, weight_decay: float, dtype: torch.dtype) -> tuple[Muon, AdamW]:
    """For what is trained of a decoder: Muon for its matrices, AdamW for all else."""
    matrices, rest = split_parameters(decoder)
    return Muon(matrices, weight_decay, dtype), AdamW(rest)


class Muon:
    """Momentum whose update is made orthogonal by Newton-Schulz steps (Jordan et al. 2024, kellerjordan.github.io).

    Written out rather than taken from torch: torch has it since 2.9 only, and there it multiplies in bfloat16 alone
    (slow on CPUs without bfloat16 units) and one matrix at a time. Here matrices of one shape are stacked, so that a
    step is a few batched products in the precision that is asked for, and the state is plain tensors.
    """

    def __init__(self, parameters: Named, weight_decay: float, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the Newton-Schulz products, float32 or bfloat16."""
        self.parameters, self.weight_decay, self.dtype = dict(parameters), weight_decay, dtype
        self.momentum = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._groups: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            self._groups[parameter.shape].append(name)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the parameters' gradients; every parameter must have one."""
        for shape, names in self._groups.items():
            updates = []
            for name in names:
                grad, momentum = self.parameters[name].grad, self.momentum[name]
                assert grad is not None
                momentum.lerp_(grad, 1 - MUON_MOMENTUM)
                updates.append(torch.lerp(grad, momentum, MUON_MOMENTUM))
            whole = orthogonalised(torch.stack(updates), self.dtype) * max(1.0, shape[0] / shape[1]) ** 0.5
            for name, update in zip(names, whole, strict=True):
                self.parameters[name].mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """Tensors by name; the live ones, not copies."""
        return {f"muon.{name}": tensor for name, tensor in self.momentum.items()}


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) without weight decay on what it is used for here."""

    def __init__(self, parameters: Named) -> None:
        self.parameters = dict(parameters)
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float, number: int) -> None:
        """One update; ``number`` counts steps from 1."""
        slow, fast = 1 - ADAM_BETAS[0] ** number, 1 - ADAM_BETAS[1] ** number
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None
            self.first[name].lerp_(parameter.grad, 1 - ADAM_BETAS[0])
            self.second[name].mul_(ADAM_BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - ADAM_BETAS[1])
            spread = (self.second[name] / fast).sqrt_().add_(ADAM_EPS)
            parameter.addcdiv_(self.first[name], spread, value=-rate / slow)

    def state(self) -> dict[str, Tensor]:
        """Tensors by name; the live ones, not copies."""
        first = {f"adam.first.{name}": tensor for name, tensor in self.first.items()}
        return first | {f"adam.second.{name}": tensor for name, tensor in self.second.items()}


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """matrices [n, rows, columns] -> each with its singular values pushed to about 1, float32."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).float()
