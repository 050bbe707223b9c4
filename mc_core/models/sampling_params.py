"""How a request wants its tokens drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mc_core.errors import ConfigError

MAX_LOGPROBS = 20
GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would overflow float32."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


@dataclass(frozen=True)
class SamplingParams:
    """Names and ranges are OpenAI's; top_k, min_p, repetition_penalty, stop_token_ids and ignore_eos are vLLM's.

    Order: logit_bias and penalties, temperature, min_p, top_k, top_p (of what top_k left). temperature 0 is greedy,
    top_k 0 is off, top_p 0 is the most likely token alone. Penalties count the tokens of the reply, not the prompt.
    stop and stop_token_ids end a reply and are no part of it; stop strings see special tokens by their names.
    ignore_eos: only they do, the model's own end tokens do not. logprobs: None = off, else how many of the likeliest
    tokens to report beside the sampled one. seed: None = fresh randomness. max_tokens: None = until an end token.
    ConfigError names the field and its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must lie in [{low:g}, {high:g}], got {getattr(self, name)}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError(f"repetition_penalty must be finite and above 0, got {self.repetition_penalty}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0 (0 = off), got {self.top_k}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"logprobs must lie in [0, {MAX_LOGPROBS}], got {self.logprobs}")
        if any(token < 0 for token in self.stop_token_ids):
            raise ConfigError(f"stop_token_ids must be at least 0, got {min(self.stop_token_ids)}")
        if not all(self.stop):
            raise ConfigError("stop must not contain an empty string")
        for token, value in self.logit_bias.items():
            if token < 0 or not -100 <= value <= 100:
                raise ConfigError(f"logit_bias maps token ids to values in [-100, 100], got {token}: {value}")

    @property
    def greedy(self) -> bool:
        """The most likely token always."""
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        """Earlier tokens of the reply change the scores."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1
