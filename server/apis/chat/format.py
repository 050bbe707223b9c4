"""Writes chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mc_core.engine.requests import Finished, TokenLogprob
from mc_core.models.tokenizer import Tokenizer
from server.protocol.chunks import ChunkFormat
from server.protocol.common import context
from server.streaming.frames import Frame
from server.streaming.pieces import CallArguments, CallEnd, CallStart, Piece, TextPiece
from server.streaming.reply import Reply


class ChatFormat(ChunkFormat):
    """Writes one chat completion: as chunks, or whole.

    may_call: tools are offered, so that there may be no text at all, which is told as null.
    """

    def __init__(
        self,
        completion_id: str,
        created: int,
        model: str,
        tokenizer: Tokenizer,
        *,
        include_usage: bool = False,
        may_call: bool = False,
    ) -> None:
        head = {"id": completion_id, "created": created, "model": model}
        super().__init__(head, {"object": "chat.completion.chunk"}, include_usage=include_usage)
        self._tokenizer, self._may_call = tokenizer, may_call
        self._called = False

    def opening(self) -> Sequence[Frame]:
        """The first chunk: the role."""
        return (Frame(self._chunk({"role": "assistant", "content": None if self._may_call else ""}, None)),)

    def piece(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Sequence[Frame]:
        told = self._logprobs(logprobs) if logprobs else None
        match piece:
            case TextPiece(text):
                delta: dict[str, Any] = {"content": text}
            case CallStart(index, call_id, name):
                self._called = True
                function = {"name": name, "arguments": ""}
                delta = {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
            case CallArguments(index, fragment):
                delta = {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
            case CallEnd():
                if told is None:
                    return ()
                delta = {}
        return (Frame(self._chunk(delta, None, told)),)

    def closing(self, finished: Finished, session_id: str | None) -> Sequence[Frame]:
        """The chunk with the finish reason and the truth about the context."""
        chunk = self._chunk({}, _reason(finished, self._called))
        chunk["x_megacontext"] = context(finished.context, session_id)
        return (Frame(chunk),)

    def whole(self, reply: Reply, finished: Finished, session_id: str | None) -> dict[str, Any]:
        """The body without its usage."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.calls:
            message["content"] = reply.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(tuple(reply.logprobs)) if reply.logprobs else None,
            "finish_reason": _reason(finished, bool(reply.calls)),
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


def _reason(finished: Finished, called: bool) -> str:
    return "tool_calls" if called and finished.reason == "stop" else finished.reason
