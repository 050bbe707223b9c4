"""The reply of a turn as it grows: text, token ids, and why it ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.requests import Delta, FinishReason, Sink, TokenLogprob
from mc_core.models.detokenize import Detokenizer, StopMatcher
from mc_core.models.sampler import SampledToken, SamplingParams
from mc_core.models.tokenizer import Tokenizer


class Reply:
    """Turns sampled tokens into text deltas for a sink, and decides when the reply is complete."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, sink: Sink) -> None:
        self._tokenizer, self._sampling, self._sink = tokenizer, sampling, sink
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(sampling.stop)
        self._ids: list[int] = []
        self._parts: list[str] = []
        self.reason: FinishReason = "length"
        self.ended_by_eos = False
        self.hit_stop_string = False

    @property
    def text(self) -> str:
        """All text sent so far."""
        return "".join(self._parts)

    @property
    def count(self) -> int:
        """Tokens sampled, the end token included."""
        return len(self._ids)

    def ids(self) -> NDArray[np.int32]:
        return np.array(self._ids, np.int32)

    def kept_ids(self) -> NDArray[np.int32]:
        """The reply as the history keeps it: without an end token, and cut before a stop string like its text."""
        if self.hit_stop_string:
            return self._tokenizer.encode(self.text)
        return np.array(self._ids[: -1 if self.ended_by_eos else None], np.int32)

    def take(self, sampled: SampledToken) -> bool:
        """Add a token; True when the reply is complete with it."""
        self._ids.append(sampled.id)
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._sampling.logprobs is not None:
            logprobs = (TokenLogprob(sampled.id, sampled.logprob, sampled.top),)
        if sampled.id in self._tokenizer.eos_ids and not self._sampling.ignore_eos:
            self.ended_by_eos, self.reason = True, "stop"
            self._send(self._flush(), (), ())
            return True
        text, self.hit_stop_string = self._stops.push(self._detokenizer.push(sampled.id))
        limit = self._sampling.max_tokens
        full = limit is not None and len(self._ids) >= limit
        if self.hit_stop_string:
            self.reason = "stop"
        elif full:
            text += self._flush()
            if self.hit_stop_string:
                self.reason = "stop"
        self._send(text, (sampled.id,), logprobs)
        return self.hit_stop_string or full

    def _flush(self) -> str:
        """What was held back: an unfinished character, or text that might have become a stop string."""
        text, self.hit_stop_string = self._stops.push(self._detokenizer.flush())
        return text if self.hit_stop_string else text + self._stops.flush()

    def _send(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        if text or ids:
            self._parts.append(text)
            self._sink(Delta(text, ids, logprobs))
