"""Bodies of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mc_core.engine.requests import Delta, Finished, TokenLogprob
from mc_core.models.sampler import SamplingParams
from mc_core.models.tokenizer import Tokenizer
from server.protocol.common import SamplingFields, context, usage


class CompletionRequest(SamplingFields):
    """``prompt`` is text, or token ids."""

    prompt: str | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=5)

    def params(self, default_max_tokens: int) -> SamplingParams:
        return self.sampling(default_max_tokens, self.logprobs)


class CompletionFormat:
    """Writes one text completion: as chunks, or whole."""

    def __init__(self, completion_id: str, created: int, model: str, tokenizer: Tokenizer) -> None:
        self.head = {"id": completion_id, "object": "text_completion", "created": created, "model": model}
        self._tokenizer = tokenizer
        self._offset = 0

    def opening(self) -> dict[str, Any] | None:
        return None

    def delta(self, delta: Delta) -> dict[str, Any]:
        logprobs = self._logprobs(delta.logprobs) if delta.logprobs else None
        return self._choice(delta.text, None, logprobs)

    def closing(self, finished: Finished, session_id: str | None) -> dict[str, Any]:
        chunk = self._choice("", finished.reason, None)
        chunk["x_megacontext"] = context(finished.context, session_id)
        return chunk

    def usage_chunk(self, finished: Finished) -> dict[str, Any]:
        return {**self.head, "choices": [], "usage": usage(finished)}

    def whole(
        self, text: str, logprobs: list[TokenLogprob], finished: Finished, session_id: str | None
    ) -> dict[str, Any]:
        body = self._choice(text, finished.reason, self._logprobs(tuple(logprobs)) if logprobs else None)
        body["usage"] = usage(finished)
        body["x_megacontext"] = context(finished.context, session_id)
        return body

    def _choice(self, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {**self.head, "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}]}

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        texts = [self._text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(token.logprob, -9999.0) for token in tokens],
            "top_logprobs": [{self._text(i): value for i, value in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")
