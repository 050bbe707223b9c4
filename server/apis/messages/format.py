"""Writes messages as Anthropic's clients read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from mc_core.engine.requests import Finished, TokenLogprob
from server.errors import ApiError
from server.protocol.common import context
from server.streaming.frames import Frame
from server.streaming.pieces import CallArguments, CallEnd, CallStart, Piece, TextPiece
from server.streaming.reply import Call, Reply

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: ApiError) -> Mapping[str, Any]:
    """Anthropic's error object, and the field and the code that OpenAI's has."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    told = {"type": kind, "message": error.message, "param": error.param, "code": error.code}
    return {"type": "error", "error": told}


class MessageFormat:
    """Writes one reply: as events, or whole. Blocks follow one another, each of one kind."""

    keep_alive = Frame({"type": "ping"}, event="ping").encode()

    def __init__(self, message_id: str, model: str) -> None:
        self._head = {"id": message_id, "type": "message", "role": "assistant", "model": model}
        self._blocks = 0
        self._open: str | None = None
        self._called = False

    def opening(self) -> Sequence[Frame]:
        """How much is read is not known yet; the end tells it."""
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(()),
        }
        return (_event("message_start", message=message),)

    def piece(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Sequence[Frame]:
        match piece:
            case TextPiece(text) if text:
                begun = () if self._open == "text" else self._begin({"type": "text", "text": ""})
                return (*begun, self._delta({"type": "text_delta", "text": text}))
            case CallStart(_, call_id, name):
                self._called = True
                return self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})
            case CallArguments(_, fragment):
                return (self._delta({"type": "input_json_delta", "partial_json": fragment}),)
            case CallEnd():
                return self._end()
        return ()

    def closing(self, finished: Finished, session_id: str | None) -> Sequence[Frame]:
        delta = {"stop_reason": stop_reason(finished, self._called), "stop_sequence": finished.stop}
        told = context(finished.context, session_id)
        last = _event("message_delta", delta=delta, usage=usage((finished,)), x_megacontext=told)
        return (*self._end(), last, _event("message_stop"))

    def failed(self, error: ApiError) -> Sequence[Frame]:
        return (Frame(error_body(error), event="error"),)

    def ending(self, finished: Sequence[Finished]) -> Sequence[Frame]:
        return ()

    def whole(self, reply: Reply, finished: Finished, session_id: str | None) -> dict[str, Any]:
        calls = [block for call in reply.calls if (block := _call(call)) is not None]
        return {
            **self._head,
            "content": [*([{"type": "text", "text": reply.text}] if reply.text else []), *calls],
            "stop_reason": stop_reason(finished, bool(reply.calls)),
            "stop_sequence": finished.stop,
            "usage": usage((finished,)),
            "x_megacontext": context(finished.context, session_id),
        }

    def together(self, bodies: Sequence[dict[str, Any]], finished: Sequence[Finished]) -> dict[str, Any]:
        return bodies[0]

    def _begin(self, block: dict[str, Any]) -> Sequence[Frame]:
        ended = self._end()
        self._open = block["type"]
        return (*ended, _event("content_block_start", index=self._blocks, content_block=block))

    def _delta(self, delta: dict[str, Any]) -> Frame:
        return _event("content_block_delta", index=self._blocks, delta=delta)

    def _end(self) -> Sequence[Frame]:
        if self._open is None:
            return ()
        self._open = None
        self._blocks += 1
        return (_event("content_block_stop", index=self._blocks - 1),)


def stop_reason(finished: Finished, called: bool) -> str:
    if finished.reason == "length":
        return "max_tokens"
    if finished.stop is not None:
        return "stop_sequence"
    return "tool_use" if called else "end_turn"


def usage(finished: Iterable[Finished]) -> dict[str, int]:
    """Of all turns; what the session held already counts as read from a cache."""
    counts = [one.usage for one in finished]
    return {
        "input_tokens": sum(one.prompt_tokens for one in counts),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": sum(one.cached_tokens for one in counts),
        "output_tokens": sum(one.completion_tokens for one in counts),
    }


def _event(kind: str, **more: Any) -> Frame:
    return Frame({"type": kind, **more}, event=kind)


def _call(call: Call) -> dict[str, Any] | None:
    """None for one whose arguments were cut: nobody shall run half of a call."""
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}
