"""Writes chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mc_core.engine.requests import Finished, TokenLogprob
from mc_core.models.tokenizer import Tokenizer
from server.protocol.chunks import ChunkFormat
from server.protocol.common import context
from server.streaming.frames import Frame
from server.streaming.pieces import Piece, TextPiece
from server.streaming.reply import Reply


class ChatFormat(ChunkFormat):
    """Writes one chat completion: as chunks, or whole."""

    def __init__(
        self, completion_id: str, created: int, model: str, tokenizer: Tokenizer, *, include_usage: bool = False
    ) -> None:
        head = {"id": completion_id, "created": created, "model": model}
        super().__init__(head, {"object": "chat.completion.chunk"}, include_usage=include_usage)
        self._tokenizer = tokenizer

    def opening(self) -> Sequence[Frame]:
        """The first chunk: the role."""
        return (Frame(self._chunk({"role": "assistant", "content": ""}, None)),)

    def piece(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Sequence[Frame]:
        assert isinstance(piece, TextPiece)
        told = self._logprobs(logprobs) if logprobs else None
        return (Frame(self._chunk({"content": piece.text}, None, told)),)

    def closing(self, finished: Finished, session_id: str | None) -> Sequence[Frame]:
        """The chunk with the finish reason and the truth about the context."""
        chunk = self._chunk({}, finished.reason)
        chunk["x_megacontext"] = context(finished.context, session_id)
        return (Frame(chunk),)

    def whole(self, reply: Reply, finished: Finished, session_id: str | None) -> dict[str, Any]:
        """The body without its usage."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text, "refusal": None},
            "logprobs": self._logprobs(tuple(reply.logprobs)) if reply.logprobs else None,
            "finish_reason": finished.reason,
        }
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [choice],
            "x_megacontext": context(finished.context, session_id),
        }

    def _chunk(
        self, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._chunk_head, "choices": [choice]}

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._token(token.token_id, token.logprob),
                    "top_logprobs": [self._token(i, value) for i, value in token.top],
                }
                for token in tokens
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": max(logprob, -9999.0)}
