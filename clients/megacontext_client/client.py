# Written by python -m clients.sync_from_async from async_client.py: change that file.
"""The client of one server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from . import calls
from .assembly import broken
from .stream import ChatStream
from .calls import Call, Messages, TextKind
from .errors import APIError, ClientError
from .retries import Retries
from .transport import CONNECTIONS, RETRIES, TIMEOUT, connection_settings, raise_for_error, read_answer
from .types import ChatResult, Focus, Ingested, Model, Session, SessionMessage, SessionPage
from .upload import Source, Progress, pieces, rereadable

T = TypeVar("T")
Content = Callable[[], Iterator[bytes]]
"""Begins a body."""


class MegaContext:
    """One server. ``timeout`` is the longest silence in seconds; streams are kept alive by the server's comments.

    What fails is sent again, ``retries`` times at most, with growing pauses. A turn never counts twice: turns and
    ingests have an Idempotency-Key, by which the server knows them again, and a stream that breaks off goes on behind
    the last event that came. What else the server may have begun is never repeated. ``retries`` 0: nothing is, and
    there are no keys. ``connections``: how many at a time; None: any number.
    Every method raises APIError when the server refuses and APIConnectionError when it can't be reached or breaks off.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float | None = TIMEOUT,
        *,
        retries: int = RETRIES,
        connections: int | None = CONNECTIONS,
    ) -> None:
        self._http = httpx.Client(**connection_settings(base_url, api_key, timeout, connections))
        self._retries = Retries(retries)
        self._model: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create_session(
        self,
        metadata: Mapping[str, Any] | None = None,
        system: str | None = None,
        budget: int | None = None,
        *,
        keep: bool | None = None,
        ttl: float | None = None,
    ) -> Session:
        """A new, empty session; ``system`` is pinned at its start, ``budget`` is its W in tokens. ``keep``, ``ttl``: as
        of ``update``."""
        return self._send(calls.create_session(metadata, system, budget, keep, ttl))

    def sessions(self, page_size: int = 100, implicit: bool | None = None) -> Iterator[Session]:
        """All sessions of this key, fetched page by page while you iterate.

        implicit: only those that requests without a session id made, or only the others.
        """
        after: str | None = None
        while True:
            page = self.session_page(page_size, after, implicit)
            for session in page.data:
                yield session
            if page.next is None:
                return
            after = page.next

    def session_page(
        self,
        limit: int = 100,
        after: str | None = None,
        implicit: bool | None = None,
    ) -> SessionPage:
        """One page of the list, newest first; ``after``: the page before's ``next``."""
        return self._send(calls.list_sessions(limit, after, implicit))

    def session(self, session_id: str) -> Session:
        return self._send(calls.get_session(session_id))

    def delete(self, session_id: str) -> None:
        self._send(calls.delete_session(session_id))

    def ingest(
        self,
        session_id: str,
        source: Source,
        progress: Progress | None = None,
        *,
        title: str | None = None,
        kind: TextKind | None = None,
        idempotency_key: str | None = None,
    ) -> Ingested:
        """Append a text of any size; ``progress`` is told the bytes sent so far. A ``str`` is text, not a path.

        Text and paths are sent again if they break off, other sources are used up by then.
        title, kind: what the text is, which the model is told where it is shown a part of it.
        """
        call = calls.ingest(session_id, title, kind, self._key(idempotency_key))
        return self._send(call, lambda: pieces(source, progress), not rereadable(source))

    def focus(self, session_id: str) -> Focus:
        """What the model has in view."""
        return self._send(calls.focus(session_id))

    def messages(
        self,
        session_id: str,
        page_size: int = 100,
        newest_first: bool = False,
    ) -> Iterator[SessionMessage]:
        """All messages of a session, and the texts ingested between them, fetched page by page while you iterate."""
        after: str | None = None
        while True:
            page = self._send(calls.messages(session_id, page_size, after, newest_first))
            for message in page.data:
                yield message
            if page.next is None:
                return
            after = page.next

    def rewind(self, session_id: str, position: int | None = None, *, message_id: str | None = None) -> int:
        """Forget everything from token ``position`` on, or behind a message; returns the tokens that are left."""
        return self._send(calls.rewind(session_id, position, message_id))

    def undo(self, session_id: str) -> int:
        """Take the last message of the user back, and all behind it; returns the tokens that are left."""
        return self._send(calls.undo(session_id))

    def fork(
        self,
        session_id: str,
        position: int | None = None,
        *,
        message_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Session:
        """A new session that begins as this one: all of it, its first ``position`` tokens, or up to a message."""
        return self._send(calls.fork(session_id, position, message_id, metadata))

    def cancel(self, session_id: str) -> bool:
        """Stop the turn or ingest that runs in a session; whether there was one."""
        return self._send(calls.cancel(session_id))

    def update(
        self,
        session_id: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        keep: bool | None = None,
        ttl: float | None = None,
    ) -> Session:
        """Put other metadata in the place of a session's, and say how long it lives: for good (``keep``), or ``ttl``
        seconds without use; 0: as long as the server keeps such sessions. What is None stays."""
        return self._send(calls.update(session_id, metadata, keep, ttl))

    def export(self, session_id: str) -> Iterator[bytes]:
        """All of a session as one file, in pieces; its last line has the SHA-256 of what comes before."""
        response = self._open(calls.export(session_id))
        try:
            for piece in response.iter_bytes():
                yield piece
        except httpx.HTTPError as error:
            raise broken(error) from error
        finally:
            response.close()

    def import_session(
        self,
        source: Source,
        progress: Progress | None = None,
        *,
        keep_id: bool = False,
    ) -> Session:
        """A session of an exported file; ``keep_id``: under the id that it had, else a new one."""
        return self._send(calls.import_session(keep_id), lambda: pieces(source, progress), True)

    def models(self) -> list[Model]:
        return self._send(calls.models())

    @overload
    def chat(
        self,
        session_id: str | None,
        messages: Messages,
        *,
        stream: Literal[False] = ...,
        model: str | None = ...,
        idempotency_key: str | None = ...,
        **options: Any,
    ) -> ChatResult: ...
    @overload
    def chat(
        self,
        session_id: str | None,
        messages: Messages,
        *,
        stream: Literal[True],
        model: str | None = ...,
        idempotency_key: str | None = ...,
        **options: Any,
    ) -> ChatStream: ...
    def chat(
        self,
        session_id: str | None,
        messages: Messages,
        *,
        stream: bool = False,
        model: str | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> ChatResult | ChatStream:
        """One turn. With a session, ``messages`` are the new ones only; ``options`` as OpenAI's (max_tokens, ...).

        idempotency_key: yours, to ask again for the answer of a turn later, with the same arguments.
        """
        key = self._key(idempotency_key)
        call = calls.chat(session_id, messages, model or self._default_model(), stream, options, key)
        if not stream:
            return self._send(call)
        response = self._open(call)
        session_id = response.headers.get("X-Session-ID") or session_id
        if call.key is None:
            return ChatStream(response, session_id, self._retries)
        return ChatStream(
            response,
            session_id,
            self._retries,
            lambda event_id: self._open(call.behind(event_id), retries=self._retries.of_a_restart()),
            partial(self._leave, call.key, session_id),
        )

    def _default_model(self) -> str:
        if self._model is None:
            models = self.models()
            self._model = models[0].id
        return self._model

    def _key(self, given: str | None) -> str | None:
        return str(uuid.uuid4()) if given is None and self._retries.limit else given

    def _leave(self, key: str, session_id: str | None) -> None:
        """Stop a turn that nobody waits for any more. If that fails, the server stops it after a while."""
        with suppress(ClientError, httpx.HTTPError):
            self._attempt(calls.cancel_request(key, session_id), None, True)

    def _send(self, call: Call[T], content: Content | None = None, once: bool = False) -> T:
        return call.parse(read_answer(self._open(call, content, once, whole=True)))

    def _open(
        self,
        call: Call[Any],
        content: Content | None = None,
        once: bool = False,
        *,
        whole: bool = False,
        retries: Retries | None = None,
    ) -> httpx.Response:
        """once: the content can be sent once alone. whole: the answer is read. retries: instead of the client's."""
        attempt, retries = 0, retries or self._retries
        while True:
            try:
                return self._attempt(call, content, whole)
            except (httpx.HTTPError, APIError) as error:
                pause = retries.pause(attempt, call.repeatable, once, error)
                if pause is None:
                    if isinstance(error, APIError):
                        raise
                    raise broken(error) from error
            time.sleep(pause)
            attempt += 1

    def _attempt(self, call: Call[Any], content: Content | None, whole: bool) -> httpx.Response:
        body = None if content is None else content()
        request = self._http.build_request(
            call.method, call.path, params=call.params, json=call.json, headers=call.headers, content=body
        )
        response = self._http.send(request, stream=True)
        try:
            if whole or not response.is_success:
                response.read()
            raise_for_error(response)
        except BaseException:
            response.close()
            raise
        return response
