"""The reply of a turn as it grows: text, token ids, and why it ends."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from mc_core.engine.requests import Delta, FinishReason, Sink, TokenLogprob
from mc_core.models.constraint import Constraint
from mc_core.models.detokenize import Detokenizer, StopMatcher
from mc_core.models.sampler import SampledToken, SamplingParams
from mc_core.models.tokenizer import Tokenizer


class Reply:
    """Turns sampled tokens into text deltas for a sink, and decides when the reply is complete."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        sink: Sink,
        constraint: Constraint | None = None,
        spoken_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer, self._sampling, self._sink = tokenizer, sampling, sink
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else tokenizer.eos_ids)
        self._constraint = constraint
        if constraint is not None:  # it lets them come where the reply is whole, and nowhere else
            self._ends |= constraint.end_ids
        self._hidden = tokenizer.special_ids - spoken_ids
        self._detokenizer = Detokenizer(tokenizer, spoken_ids)
        self._stops = StopMatcher(sampling.stop)
        self._ids: list[int] = []
        self._parts: list[str] = []
        self._whole = [(0, 0, 0)]  # of each place between characters: tokens, text that stop strings see, text to show
        self._shown = 0
        self.reason: FinishReason = "length"
        self.ended_by_token = False

    @property
    def text(self) -> str:
        """All text sent so far."""
        return "".join(self._parts)

    @property
    def count(self) -> int:
        """Tokens sampled, the end token included."""
        return len(self._ids)

    @property
    def stop_string(self) -> str | None:
        """The one that ended the reply."""
        return self._stops.met

    @property
    def hit_stop_string(self) -> bool:
        return self._stops.cut is not None

    def ids(self) -> NDArray[np.int32]:
        return np.array(self._ids, np.int32)

    def kept_ids(self) -> NDArray[np.int32]:
        """The reply as the history keeps it: without an end token, and cut before a stop string like its text.

        Only what is left of the token in which the stop string began is encoded anew.
        """
        if self._stops.cut is None:
            return np.array(self._ids[: -1 if self.ended_by_token else None], np.int32)
        at = bisect.bisect_right(self._whole, self._stops.cut, key=lambda place: place[1]) - 1
        tokens, _, shown = self._whole[at]
        rest = self._tokenizer.encode_more(self.text[shown:])
        return np.concatenate([np.array(self._ids[:tokens], np.int32), rest])

    def take(self, sampled: SampledToken) -> bool:
        """Add a token; True when the reply is complete with it."""
        self._ids.append(sampled.id)
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._sampling.logprobs is not None:
            logprobs = (TokenLogprob(sampled.id, sampled.logprob, sampled.top),)
        if sampled.id in self._ends:
            self.ended_by_token, self.reason = True, "stop"
            text = self._see(self._detokenizer.flush()) + self._see(self._name(sampled.id), hidden=True)
            self._send(text + self._stops.flush(), (), ())
            return True
        text = self._read(sampled.id)
        limit = self._sampling.max_tokens
        whole = self._constraint is not None and self._constraint.complete
        over = whole or (limit is not None and len(self._ids) >= limit)
        if over:
            text += self._see(self._detokenizer.flush()) + self._stops.flush()
        if whole or self.hit_stop_string:
            self.reason = "stop"
        self._send(text, (sampled.id,), logprobs)
        return self.hit_stop_string or over

    def _read(self, token: int) -> str:
        """What can be shown with a token: not an unfinished character, nor text that might become a stop string."""
        if token in self._hidden:
            text = self._see(self._name(token), hidden=True)
        else:
            text = self._see(self._detokenizer.push(token))
        if self._sampling.stop and not self._detokenizer.open:
            self._whole.append((len(self._ids), self._stops.length, self._shown))
        return text

    def _see(self, text: str, hidden: bool = False) -> str:
        self._shown += 0 if hidden else len(text)
        return self._stops.push(text, hidden)[0]

    def _name(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def _send(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        if text or ids:
            self._parts.append(text)
            self._sink(Delta(text, ids, logprobs))
