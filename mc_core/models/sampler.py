"""Batched sampling: every request with its own parameters and its own random stream, one copy to the host a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.adjust import TokenBias, TokenCounts, add_bias, penalise
from mc_core.models.constraint import Constraint, forbid
from mc_core.models.draw import draw_top_p, invert, keep_likely, keep_top_p
from mc_core.models.sampling_params import SamplingParams


@dataclass(eq=False)
class SamplerState:
    """What one request carries from token to token; made by ``Sampler.state``.

    counts: the reply's tokens so far, None without penalties. bias: None without a logit bias. constraint: what the
    reply may say, None for anything.
    """

    params: SamplingParams
    generator: np.random.Generator
    counts: TokenCounts | None = None
    bias: TokenBias | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True)
class SampledToken:
    """One sampled token. ``logprob`` (nats) is NaN and ``top`` is empty unless the request asked for them."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sampled:
    """A step's tokens on the host.

    ids [B]; logprobs [B], NaN where not asked for; top_ids, top_logprobs [B, n], best first; tops: how many of the n
    each row asked for. Log probabilities are the model's own, before bias, penalties, constraints,
    temperature and truncation.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float64]
    tops: tuple[int, ...]

    def rows(self) -> list[SampledToken]:
        """One object a row."""
        pairs = zip(self.top_ids.tolist(), self.top_logprobs.tolist(), strict=True)
        tops = [tuple(zip(i[:n], v[:n], strict=True)) for (i, v), n in zip(pairs, self.tops, strict=True)]
        columns = zip(self.ids.tolist(), self.logprobs.tolist(), tops, strict=True)
        return [SampledToken(*row) for row in columns]


class Sampler:
    """Draws the next tokens of a batch. Stateless itself: all that lasts is in the requests' states."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size, self.device = vocab_size, torch.device(device)

    def state(self, params: SamplingParams, constraint: Constraint | None = None) -> SamplerState:
        """The state of a new request; ConfigError if logit_bias names a token outside the vocabulary."""
        outside = [token for token in params.logit_bias if token >= self.vocab_size]
        if outside:
            raise ConfigError(f"logit_bias names token {outside[0]}, but the vocabulary has {self.vocab_size}")
        seed = None if params.seed is None else params.seed % 2**64
        return SamplerState(
            params,
            np.random.default_rng(seed),
            TokenCounts() if params.has_penalties else None,
            TokenBias(params.logit_bias) if params.logit_bias else None,
            constraint,
        )

    @torch.inference_mode()
    def sample(self, logits: Tensor, states: Sequence[SamplerState]) -> Sampled:
        """Next token of each row: logits [B, vocab] on the sampler's device, one state a row.

        A row's token depends on its own logits and state alone, not on the rest of the batch.
        """
        if logits.shape != (len(states), self.vocab_size):
            wanted = (len(states), self.vocab_size)
            raise ValueError(f"logits must have the shape {wanted}, got {tuple(logits.shape)}")
        raw = logits.float()
        sampled = _report(raw, self._choose(_adjusted(raw, states), states), states)
        for state, token in zip(states, sampled.ids.tolist(), strict=True):
            if state.counts is not None:
                state.counts.add(token)
            if state.constraint is not None:
                state.constraint.accept(token)
        return sampled

    def _choose(self, scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
        """Next ids [B]: greedy rows, rows with top_k and the others each go their own way."""
        ways: dict[str, list[int]] = {}
        for row, state in enumerate(states):
            few = 0 < state.params.top_k < self.vocab_size
            ways.setdefault("greedy" if state.params.greedy else "few" if few else "all", []).append(row)
        if len(ways) == 1:
            return self._go(next(iter(ways)), scores, states)
        ids = torch.empty(len(states), dtype=torch.int64, device=self.device)
        for way, rows in ways.items():
            at = torch.tensor(rows, device=self.device)
            ids[at] = self._go(way, scores[at], [states[row] for row in rows])
        return ids

    def _go(self, way: str, scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
        if way == "greedy":
            return scores.argmax(-1)
        if way == "all":
            return self._draw(scores, states)
        # What top_k leaves is small: everything after it happens there.
        top_k = torch.tensor([state.params.top_k for state in states], device=self.device)
        best, ids = scores.topk(max(state.params.top_k for state in states), dim=-1)
        beyond = torch.arange(best.shape[1], device=self.device) >= top_k[:, None]
        return ids.gather(-1, self._draw(best.masked_fill(beyond, -torch.inf), states)[:, None])[:, 0]

    def _draw(self, scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
        """One place in each row of scores [n, m], by temperature, min_p and top_p."""
        params = [state.params for state in states]
        knobs = np.array([(p.temperature, p.min_p, p.top_p) for p in params], np.float32)
        temperature, min_p, top_p = torch.from_numpy(knobs).to(self.device).unbind(1)
        p = (scores / temperature[:, None]).softmax(-1)
        if any(one.min_p for one in params):
            p = keep_likely(p, min_p)

        def uniforms(rows: Sequence[int]) -> Tensor:
            numbers = [states[row].generator.random() for row in rows]
            return torch.tensor(numbers, dtype=torch.float32, device=self.device)

        if all(one.top_p >= 1 for one in params):
            return invert(p, uniforms(range(len(states))))
        if self.device.type == "cpu":
            return draw_top_p(p, top_p, uniforms)
        # Accelerators sort fast, and waiting for them to say which rows were rejected would cost more.
        return invert(keep_top_p(p, top_p), uniforms(range(len(states))))


def _adjusted(raw: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Logits after bias, penalties and constraints; the same tensor when there is nothing to do."""
    if all(state.bias is None and state.counts is None and state.constraint is None for state in states):
        return raw
    scores = raw.clone()
    add_bias(scores, [state.bias for state in states])
    penalise(scores, [state.params for state in states], [state.counts for state in states])
    forbid(scores, [state.constraint for state in states])
    return scores


def _report(raw: Tensor, ids: Tensor, states: Sequence[SamplerState]) -> Sampled:
    """Everything the host needs in one copy; float64 holds token ids exactly."""
    asked = [state.params.logprobs for state in states]
    tops = tuple(n or 0 for n in asked)
    most = min(max(tops), raw.shape[-1])
    if all(n is None for n in asked):
        host = ids.cpu().numpy()
        empty = np.empty((len(host), 0))
        return Sampled(host, np.full(len(host), np.nan), empty.astype(np.int64), empty, tops)
    logprobs = raw.log_softmax(-1)
    values, indices = logprobs.topk(most, dim=-1)
    own = logprobs.gather(-1, ids[:, None])
    packed = torch.cat([part.double() for part in (ids[:, None], own, indices, values)], dim=1).cpu().numpy()
    own_host = np.where([n is not None for n in asked], packed[:, 1], np.nan)
    top_ids, top_values = packed[:, 2 : 2 + most].astype(np.int64), packed[:, 2 + most :]
    return Sampled(packed[:, 0].astype(np.int64), own_host, top_ids, top_values, tops)


__all__ = ["Sampled", "SampledToken", "Sampler", "SamplerState", "SamplingParams"]
