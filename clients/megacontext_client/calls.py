"""Each route as data: what to send and how to read the answer; both clients send these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from .types import JSON, ChatResult, Focus, Ingested, MessagePage, Model, Session, SessionPage

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]
"""Messages as OpenAI writes them; a plain string is one user message."""
TextKind = Literal["document", "chat"]
"""What an ingested text is: a document, or the transcript of a conversation."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reader of its JSON answer."""

    method: str
    path: str
    parse: Callable[[Any], T]
    json: JSON | None = None
    params: dict[str, str | int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str | None:
        """By which the server knows this request when it comes again."""
        return self.headers.get("Idempotency-Key")

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again though the server may have begun it."""
        return self.method == "GET" or self.key is not None

    def behind(self, event_id: str | None) -> Call[T]:
        """The same request, for what its stream tells behind an event."""
        return self if event_id is None else replace(self, headers={**self.headers, "Last-Event-ID": event_id})


def _keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def create_session(
    metadata: Mapping[str, Any] | None, system: str | None, budget: int | None, keep: bool | None, ttl: float | None
) -> Call[Session]:
    given = {"metadata": _plain(metadata), "system": system, "budget": budget, "keep": keep, "ttl": ttl}
    return Call("POST", "/v1/sessions", Session.parse, json=_given(given))


def list_sessions(limit: int, after: str | None, implicit: bool | None) -> Call[SessionPage]:
    params: dict[str, str | int] = {"limit": limit}
    if implicit is not None:
        params["implicit"] = "true" if implicit else "false"
    if after is not None:
        params["after"] = after
    return Call("GET", "/v1/sessions", SessionPage.parse, params=params)


def get_session(session_id: str) -> Call[Session]:
    return Call("GET", _session(session_id), Session.parse)


def delete_session(session_id: str) -> Call[None]:
    return Call("DELETE", _session(session_id), lambda body: None)


def ingest(session_id: str, title: str | None, kind: TextKind | None, key: str | None) -> Call[Ingested]:
    """The body is sent beside this, streamed."""
    headers = {"Content-Type": "text/plain; charset=utf-8", **_keyed(key)}
    given: dict[str, str | None] = {"title": title, "kind": kind}
    params: dict[str, str | int] = {name: value for name, value in given.items() if value is not None}
    return Call("POST", f"{_session(session_id)}/ingest", Ingested.parse, params=params, headers=headers)


def focus(session_id: str) -> Call[Focus]:
    return Call("GET", f"{_session(session_id)}/focus", Focus.parse)


def rewind(session_id: str, position: int | None, message_id: str | None) -> Call[int]:
    return Call("POST", f"{_session(session_id)}/rewind", _tokens, json=_place(position, message_id))


def undo(session_id: str) -> Call[int]:
    return Call("POST", f"{_session(session_id)}/undo", _tokens)


def fork(
    session_id: str, position: int | None, message_id: str | None, metadata: Mapping[str, Any] | None
) -> Call[Session]:
    body = _place(position, message_id) | ({} if metadata is None else {"metadata": dict(metadata)})
    return Call("POST", f"{_session(session_id)}/fork", Session.parse, json=body)


def cancel(session_id: str) -> Call[bool]:
    return Call("POST", f"{_session(session_id)}/cancel", lambda body: bool(body["cancelled"]))


def update(session_id: str, metadata: Mapping[str, Any] | None, keep: bool | None, ttl: float | None) -> Call[Session]:
    given = _given({"metadata": _plain(metadata), "keep": keep, "ttl": ttl})
    return Call("PATCH", _session(session_id), Session.parse, json=given)


def messages(session_id: str, limit: int, after: str | None, newest_first: bool) -> Call[MessagePage]:
    params: dict[str, str | int] = {"limit": limit, "order": "desc" if newest_first else "asc"}
    if after is not None:
        params["after"] = after
    return Call("GET", f"{_session(session_id)}/messages", MessagePage.parse, params=params)


def export(session_id: str) -> Call[None]:
    """The file comes streamed."""
    return Call("GET", f"{_session(session_id)}/export", lambda body: None)


def import_session(keep_id: bool) -> Call[Session]:
    """The file is sent beside this, streamed."""
    headers = {"Content-Type": "application/x-ndjson"}
    params: dict[str, str | int] = {"keep_id": "true"} if keep_id else {}
    return Call("POST", "/v1/sessions/import", Session.parse, params=params, headers=headers)


def models() -> Call[list[Model]]:
    return Call("GET", "/v1/models", lambda body: [Model.parse(row) for row in body["data"]])


def chat(
    session_id: str | None, messages: Messages, model: str, stream: bool, options: Mapping[str, Any], key: str | None
) -> Call[ChatResult]:
    """What is not stored is known by no key."""
    body: JSON = {
        **options,
        "model": model,
        "messages": [{"role": "user", "content": messages}] if isinstance(messages, str) else [*map(dict, messages)],
    }
    if session_id is not None:
        body["session_id"] = session_id
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = _keyed(None if options.get("store") is False else key)
    return Call("POST", "/v1/chat/completions", lambda answer: ChatResult.parse(answer, session_id), body, {}, headers)


def cancel_request(key: str, session_id: str | None) -> Call[None]:
    """session_id: where the request went, by which a proxy finds the server that has it."""
    headers = {} if session_id is None else {"X-Session-ID": session_id}
    return Call("POST", "/v1/requests/cancel", lambda body: None, {"idempotency_key": key}, {}, headers)


def _tokens(body: Any) -> int:
    return int(body["tokens"])


def _place(position: int | None, message_id: str | None) -> JSON:
    given = {"position": position, "message_id": message_id}
    return {name: value for name, value in given.items() if value is not None}


def _plain(metadata: Mapping[str, Any] | None) -> JSON | None:
    return None if metadata is None else dict(metadata)


def _given(fields: JSON) -> JSON:
    """What is not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _session(session_id: str) -> str:
    return f"/v1/sessions/{quote(session_id, safe='')}"
