"""Constraints in the sampler: what may not come never comes, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mc_core.errors import ConfigError
from mc_core.models.sampler import Sampler, SamplingParams

V = 100


class Allowed:
    """Lets a set of tokens come, and notes what came."""

    complete = False
    end_ids = frozenset[int]()

    def __init__(self, allowed: list[int]) -> None:
        self.allowed = np.isin(np.arange(-(-V // 32) * 32), allowed)
        self.came: list[int] = []

    def fill(self, mask: NDArray[np.int32]) -> None:
        if not self.allowed.any():
            raise ConfigError("nothing may come")
        mask[:] = np.packbits(self.allowed, bitorder="little").view(np.int32)

    def accept(self, token: int) -> None:
        self.came.append(token)


WAYS = [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {"logit_bias": {7: 100}}]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_only_what_is_allowed_comes(way: dict[str, object]) -> None:
    """However tokens are drawn, a constrained row keeps to its mask, the last token of the vocabulary included."""
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0)) * 3
    for allowed in ([3, 31, 32, 99], [99], [50, 64]):
        constraint = Allowed(allowed)
        state = Sampler(V).state(SamplingParams(seed=1, **way), constraint)  # type: ignore[arg-type]
        drawn = [int(Sampler(V).sample(logits, [state]).ids[0]) for _ in range(40)]
        assert set(drawn) <= set(allowed)
        assert constraint.came == drawn


def test_other_rows_and_log_probabilities_stay() -> None:
    """A row without a constraint draws what it draws alone, and logprobs are the model's own."""
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0)) * 3
    sampler = Sampler(V)

    def states() -> list[object]:
        return [sampler.state(SamplingParams(seed=row, logprobs=2)) for row in range(3)]

    free = sampler.sample(logits, states())  # type: ignore[arg-type]
    mixed = states()
    mixed[1] = sampler.state(SamplingParams(seed=1, logprobs=2), Allowed([8]))
    kept = sampler.sample(logits, mixed)  # type: ignore[arg-type]
    assert kept.ids.tolist() == [free.ids[0], 8, free.ids[2]]
    assert np.array_equal(kept.top_logprobs, free.top_logprobs)
    assert kept.logprobs[1] == pytest.approx(float(logits[1].log_softmax(-1)[8]), abs=1e-5)


def test_a_constraint_that_fails_moves_nothing() -> None:
    """The error comes before a token is drawn."""
    sampler = Sampler(V)
    state, other = sampler.state(SamplingParams(seed=1), Allowed([])), Allowed([4])
    with pytest.raises(ConfigError, match="nothing may come"):
        sampler.sample(torch.zeros(2, V), [sampler.state(SamplingParams(seed=1), other), state])
    assert other.came == []
