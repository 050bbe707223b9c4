"""Puts the questions of a suite to a running server, over its public routes alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from mc_core.errors import MegaContextError
from mc_core.lab.data.arrays import Ids, Range
from mc_core.lab.evaluation.driver import Answer
from mc_core.lab.tasks.history import History, Question

METHOD = "server"
"""Over HTTP there is one method of focusing: the server's own."""


class HttpDriver:
    """A session at a server. Each piece of a history is ingested alone, so that the answer tells where it stands.

    A rewind keeps what the last question opened, as it does for any client; so the first refocus of a question begins
    with the context that the one before it left. Close it, or use it as a context manager.
    """

    def __init__(self, url: str, api_key: str | None, budget: int | None, decode: Callable[[Ids], str]) -> None:
        """budget: None takes the server's; decode: token ids -> the text that is sent."""
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=600)
        self._budget, self._decode = budget, decode
        self._session: str | None = None
        self._tokens = 0
        self._spans: dict[int, Range] = {}
        self.model: Mapping[str, Any] = self._call("GET", "/v1/models")["data"][0]

    def __enter__(self) -> HttpDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the session and the connection."""
        self._forget()
        self._http.close()

    def read(self, history: History) -> dict[str, str]:
        self._forget()
        self._session = self._call("POST", "/v1/sessions", {"budget": self._budget})["id"]
        self._spans, self._tokens = {}, 0
        for start, end, statement in history.pieces():
            before, self._tokens = self._tokens, self._ingest(self._decode(history.ids[start:end]))
            if statement is not None:
                self._spans[statement] = (before, self._tokens)
        return {}

    def ask(self, method: str, question: Question, max_tokens: int) -> Answer:
        gold = [self._spans[i] for i in question.gold]
        is_open: bool | None = None
        if gold:
            # One token: the first refocus of the turn, and nothing after it.
            self._chat(question.asked.question, 1)
            is_open = self._all_open(gold)
            self._rewind()
        started = time.perf_counter()
        text = self._chat(question.asked.question, max_tokens)
        seconds = time.perf_counter() - started
        self._rewind()
        return Answer(text, is_open, seconds)

    def _chat(self, question: str, max_tokens: int) -> str:
        body = {
            "model": self.model["id"],
            "session_id": self._session,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        return str(self._call("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"])

    def _all_open(self, spans: list[Range]) -> bool:
        entries = self._call("GET", f"/v1/sessions/{self._session}/focus")["entries"]
        hidden = [(entry["start"], entry["end"]) for entry in entries if entry["level"] > 0]
        return not any(first < end and start < last for start, end in spans for first, last in hidden)

    def _ingest(self, text: str) -> int:
        headers = {"content-type": "text/plain; charset=utf-8"}
        return int(self._call("POST", f"/v1/sessions/{self._session}/ingest", text, headers)["tokens"])

    def _rewind(self) -> None:
        self._call("POST", f"/v1/sessions/{self._session}/rewind", {"position": self._tokens})

    def _forget(self) -> None:
        if self._session is not None:
            self._call("DELETE", f"/v1/sessions/{self._session}")
            self._session = None

    def _call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The answer's JSON; MegaContextError says which call failed, and why."""
        sent: dict[str, Any] = {"content": body.encode()} if isinstance(body, str) else {"json": body}
        try:
            response = self._http.request(method, path, headers=headers, **(sent if body is not None else {}))
        except httpx.HTTPError as error:
            raise MegaContextError(f"{method} {self._http.base_url}{path.lstrip('/')}: {error}") from error
        if response.is_error:
            raise MegaContextError(f"{method} {path} answered {response.status_code}: {response.text[:300]}")
        return response.json()
