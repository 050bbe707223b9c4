"""How responses begin and end: the fields of the object besides its output."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from mc_core.engine.requests import Finished
from mc_core.models.sampling_params import SamplingParams
from server.apis.responses.protocol import ResponseRequest
from server.errors import CLIENT_CLOSED_REQUEST, ApiError
from server.protocol.common import context, now


class Clock:
    """When a response ended: the same for all who ask."""

    def __init__(self) -> None:
        self._ended: int | None = None

    def ended(self) -> int:
        if self._ended is None:
            self._ended = now()
        return self._ended


def head(body: ResponseRequest, id: str, sampling: SamplingParams, conversation: str | None) -> dict[str, Any]:
    """The object before anything of the reply is known."""
    return {
        "id": id,
        "object": "response",
        "created_at": now(),
        "completed_at": None,
        "status": "in_progress",
        "background": body.background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "conversation": None if conversation is None else {"id": conversation},
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": _told(body.text.format) if body.text and body.text.format else {"type": "text"}},
        "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else _told(body.tool_choice) or "auto",
        "tools": [{"parameters": None, "strict": False, **_told(tool)} for tool in body.tools or []],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation,
        "usage": None,
        "x_megacontext": None,
    }


def _told(asked: BaseModel | None) -> dict[str, Any]:
    """As it was asked for."""
    return {} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)


def ending(finished: Finished, session_id: str | None, clock: Clock) -> dict[str, Any]:
    """What a reply's end changes: whole, or cut by its limit."""
    whole, counts = finished.reason != "length", finished.usage
    read = counts.cached_tokens + counts.prompt_tokens
    return {
        "completed_at": clock.ended(),
        "status": "completed" if whole else "incomplete",
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": counts.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + counts.completion_tokens,
        },
        "x_megacontext": context(finished.context, session_id),
    }


def failure(error: ApiError, clock: Clock) -> dict[str, Any]:
    """What a failure changes, or a cancel."""
    if error.code == "cancelled" or error.status == CLIENT_CLOSED_REQUEST:
        return {"status": "cancelled", "completed_at": clock.ended()}
    limit = error.status == 429
    code = "rate_limit_exceeded" if limit else "server_error" if error.status >= 500 else "invalid_prompt"
    return {
        "status": "failed",
        "completed_at": clock.ended(),
        "error": {"code": code, "message": error.message},
    }
