"""What schemathesis has to know of the server: short replies, and the rules that no schema can say."""

from __future__ import annotations

import re
from typing import Any

import schemathesis
from schemathesis import Case, HookContext, Response

RULES = [
    "If-Match and X-If-Busy need a session",
    "If-Match must be",
    "Last-Event-ID needs the Idempotency-Key",
    "(an Idempotency-Key|background) needs a request that is kept",
    "after must be a cursor from an earlier page",
    "after names no item of this list",
    "background needs store to be true",
    "budget can be at most the server's",
    "budget must be at least",
    "conversation and session_id name different sessions",
    "give max_tokens or max_completion_tokens, not both",
    "give previous_response_id or",
    "logit_bias names token",
    "metadata is larger than",
    "only the last item of a conversation can be deleted",
    "only a response in the background can be cancelled",
    "position .* lies beyond the history's",
    "previous response .*",
    "prompt holds token .*, but the vocabulary has",
    "prompt holds .* prompts, but this server takes",
    "session_id and X-Session-ID name different sessions",
    "stop_token_ids names token",
    "starting_after .* lies beyond the last event",
    "starting_after is only allowed when stream is true",
    "store false keeps nothing, but",
    "'seed': Input should be",
    "stream_options is only allowed when stream is true",
    "streams are not padded",
    "the last (message|item) must not be the assistant's",
    "top_logprobs needs logprobs to be true",
    "a message needs content, or calls",
    "messages of the role tool have a tool_call_id, and no others",
    "only messages of the assistant hold tool_calls",
    "only messages of the role .* hold blocks of the type",
    "'messages': nothing is said in them",
    "the schema cannot be enforced",
    "tool_choice names .*, which is none of the tools",
    "tool_choice asks for a call, but there are no tools",
    "two tools are called",
    "a session is continued by one prompt",
    "a text cannot be stored",
    "a fork takes a position or a message_id, not both",
    "a rewind needs a position or a message_id, one of them",
    "an ingest in parts takes text/plain",
    "an offset needs partial=true",
    "a title must not be blank",
    "a title is one line",
    "with application/json, title and kind are fields",
    "a range is .* with start below end",
    "end must lie above start",
    "the export (is damaged|has token|is of|is in blocks)",
    "more tokens cannot be pinned",
    "reaches beyond the history's",
    "the first .* tokens or of the system message, which always stay",
]
"""Of the model, of a session, or between two fields; and a bound of 2**63, since numbers of a schema are doubles."""


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """A reply of a billion tokens is a valid wish, but not a test; nor is a stream that never ends."""
    if case.path.endswith("/focus/stream"):
        case.query = {**(case.query or {})}
        if type(case.query.get("limit", 1)) in (int, float):
            case.query["limit"] = min(case.query.get("limit", 1), 1)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(case.body, dict) and type(case.body.get(name)) in (int, float):
            case.body[name] = min(case.body[name], 4)


@schemathesis.hook
def filter_failure(context: HookContext, failure: Any, case: Case, response: Response) -> bool:
    """A request that its schema allows may be refused, but only by one of the rules; and that a session is there does
    not mean that it has the message, or the item, which a request names."""
    if response is not None and response.status_code == 412:
        return False  # no schema can say at which number a session is
    if response is not None and response.status_code == 404:
        return response.json()["error"]["code"] not in ("message_not_found", "item_not_found")
    if type(failure).__name__ != "RejectedPositiveData" or response.status_code != 400:
        return True
    message = response.json()["error"]["message"]
    return not any(re.search(rule, message) for rule in RULES)
