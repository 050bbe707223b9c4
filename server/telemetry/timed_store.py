"""A store whose calls are timed, from the call to its acknowledgement."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

from prometheus_client import Histogram

from mc_core.store import SessionStore

TIMED = (
    "create",
    "open",
    "commit",
    "fork",
    "reshape",
    "expire",
    "write_spans",
    "write_gists",
    "read_spans",
    "read_span_range",
    "read_gist_range",
    "find_prefix",
    "note",
    "notes",
    "find_note",
    "delete_note",
)


def timed_store(store: SessionStore, seconds: Histogram) -> SessionStore:
    """The same store; ``seconds`` gets the time of each call, by the operation's name."""
    return cast(SessionStore, _TimedStore(store, seconds))


class _TimedStore:
    def __init__(self, store: SessionStore, seconds: Histogram) -> None:
        self._store = store
        for name in TIMED:
            setattr(self, name, _timed(getattr(store, name), seconds.labels(name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _timed(call: Callable[..., Future[Any]], seconds: Histogram) -> Callable[..., Future[Any]]:
    def timed(*args: Any, **kwargs: Any) -> Future[Any]:
        began = time.monotonic()
        future = call(*args, **kwargs)
        future.add_done_callback(lambda _: seconds.observe(time.monotonic() - began))
        return future

    return timed
