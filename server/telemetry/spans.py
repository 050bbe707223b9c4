"""Spans of turns, refocuses and ingests. They hold numbers and names of ours, never text or token ids."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, Status, StatusCode, Tracer, set_span_in_context, use_span

from mc_core.engine.observer import RefocusTrace
from mc_core.engine.requests import Failed, Finished
from mc_core.models.sampling_params import SamplingParams
from server.errors import ApiError, to_api_error
from server.telemetry import names
from server.telemetry.attributes import finished_attributes, part_attributes, refocus_attributes, request_attributes

logger = logging.getLogger(__name__)
MAX_BEHIND = 4096
"""Refocuses and waits that wait for their spans; more are dropped, for memory is bounded."""


class Spans:
    """Makes spans by one tracer; what the engine tells is only queued there, and made to spans on another thread."""

    def __init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer or NoOpTracer()
        self._turns: dict[str, Context] = {}
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._build, name="megacontext-spans", daemon=True)
        if tracer is not None:
            self._thread.start()

    # -- event loop ----------------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, operation: str, model: str, request_id: str, sampling: SamplingParams) -> Iterator[Span]:
        """The span of a turn ("chat" or "text_completion"), a child of the current one."""
        attributes = request_attributes(operation, model, request_id, sampling)
        with self._current(f"{operation} {model}", attributes) as span:
            if span.is_recording():
                self._turns[request_id] = set_span_in_context(span)
            try:
                yield span
            finally:
                self._turns.pop(request_id, None)

    @contextmanager
    def ingest(self) -> Iterator[Span]:
        """The span of an ingest, a child of the current one."""
        with self._current(names.INGEST_SPAN, {}) as span:
            yield span

    @contextmanager
    def _current(self, name: str, attributes: dict[str, Any]) -> Iterator[Span]:
        # The library's own recording of exceptions would write down their words, which may quote a user.
        span = self._tracer.start_span(name, attributes=attributes)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        except BaseException as error:
            fail(span, error)
            raise
        finally:
            span.end()

    # -- engine thread -------------------------------------------------------------------------------------------

    def refocused(self, trace: RefocusTrace) -> None:
        """Queue the spans of a refocus, unless nobody records its turn."""
        parent = self._turns.get(trace.request_id)
        if parent is not None:
            self._hand_over(lambda: self._refocus(parent, trace))

    def queued(self, request_id: str, seconds: float) -> None:
        """The span of a wait that has just ended."""
        parent = self._turns.get(request_id)
        if parent is not None:
            now = time.time()
            self._hand_over(lambda: self._record(names.QUEUE_SPAN, parent, now - seconds, now, {}))

    def _hand_over(self, build: Callable[[], object]) -> None:
        if self._inbox.qsize() < MAX_BEHIND:
            self._inbox.put(build)

    # -- builder thread ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Make what is queued, then end the thread."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    def _build(self) -> None:
        while (build := self._inbox.get()) is not None:
            try:
                build()
            except Exception:
                logger.exception("a span could not be made")

    def _refocus(self, parent: Context, trace: RefocusTrace) -> None:
        began = trace.started
        span = self._record(names.REFOCUS_SPAN, parent, began, began + trace.seconds, refocus_attributes(trace))
        inside = set_span_in_context(span)
        for name, span_name in names.PART_SPANS.items():
            part = trace.parts.get(name)
            if part is None:  # only a turn's refocus follows anything
                continue
            start = began + part.start
            self._record(span_name, inside, start, start + part.seconds, part_attributes(name, trace))

    def _record(self, name: str, parent: Context, start: float, end: float, attributes: dict[str, Any]) -> Span:
        """A span of the past; times are seconds since the epoch."""
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=_nanoseconds(start))
        span.end(_nanoseconds(end))
        return span


def end_turn(span: Span, event: Finished | Failed, session_id: str | None, first_delta: float | None) -> None:
    """Write down how a turn ended; ``first_delta``: seconds from its start to the first delta, if one came."""
    if not span.is_recording():
        return
    if session_id is not None:
        span.set_attribute("gen_ai.conversation.id", session_id)
    if first_delta is not None:
        span.set_attribute("gen_ai.response.time_to_first_chunk", first_delta)
    if isinstance(event, Failed):
        fail(span, event.error)
    else:
        span.set_attributes(finished_attributes(event))


def fail(span: Span, error: BaseException) -> None:
    """Mark a span as failed, by the code that clients get, or the kind of what has none or is a fault of the server:
    the error's words may quote a user."""
    kind = "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__
    # An error of ours may travel as the cause of one that passes where only such do.
    code = to_api_error(error.__cause__ if isinstance(error.__cause__, ApiError) else error).code
    if code is not None and (code != "internal_error" or isinstance(error, ApiError)):
        kind = code
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
