"""Networks of single tokens in training: fitted to a whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.lab.data.cache import Stream

FIT_BATCH = 2048
FIT_RATE = 2e-3


def token_counts(streams: Sequence[Stream], size: int) -> Tensor:
    """How often each id below ``size`` stands in the streams [size]."""
    return torch.from_numpy(np.sum([np.bincount(stream.ids, minlength=size) for stream in streams], axis=0))


def fit_vocabulary(
    learned: Iterable[nn.Parameter],
    often: Tensor,
    steps: int,
    generator: torch.Generator,
    loss_of: Callable[[Tensor], Tensor],
) -> None:
    """AdamW on ``loss_of`` tokens' ids [n], which are on the CPU: drawn by turns as ``often`` [V] says, and evenly of
    those for which it is above 0."""
    optimizer = torch.optim.AdamW(learned, FIT_RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = FIT_RATE * max(0.02, 1 - step / steps)
        drawn = (often > 0).float() if step % 2 else often
        loss = loss_of(torch.multinomial(drawn.cpu(), FIT_BATCH, replacement=True, generator=generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
