"""The server's metrics for Prometheus, in a registry of their own, so that two apps in one process don't mix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from mc_core.engine.observer import RefocusTrace
from mc_core.engine.requests import Delta, Event, Failed, Finished, Warmth
from mc_core.errors import CancelledTurnError
from mc_core.focus.allocator_base import REJECTIONS
from mc_core.store import SessionStore
from server.errors import CLIENT_CLOSED_REQUEST, to_api_error
from server.telemetry import names
from server.telemetry.names import Definition

STORE_PERIOD = 5.0
"""Seconds between two tries of the store."""
LAG_PERIOD = 0.25
LEVEL = "entries.lod"
"""Prefix of a refocus report's keys: entries by level."""


class Metrics:
    """Counters, gauges and histograms; prometheus-client's own locks make it safe on the engine thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.http = self._counter(names.HTTP_REQUESTS)
        self.turns = self._counter(names.TURNS)
        self.first_token = self._histogram(names.TIME_TO_FIRST_TOKEN)
        self.inter_token = self._histogram(names.INTER_TOKEN)
        self.queue = self._histogram(names.QUEUE_TIME)
        self.prompt_tokens = self._counter(names.PROMPT_TOKENS)
        self.completion_tokens = self._counter(names.COMPLETION_TOKENS)
        self.guessed_tokens = self._counter(names.GUESSED_TOKENS)
        self.guessed_right_tokens = self._counter(names.GUESSED_RIGHT_TOKENS)
        self.ingested = self._counter(names.INGESTED_TOKENS)
        self.batch = self._histogram(names.DECODE_BATCH)
        self.step = self._histogram(names.DECODE_STEP)
        self.refocuses = self._counter(names.REFOCUSES)
        self.refocus_time = self._histogram(names.REFOCUS_TIME)
        self.swap_rate = self._histogram(names.SWAP_RATE)
        self.utilization = self._histogram(names.UTILIZATION)
        self.expands = self._counter(names.EXPANDS)
        self.collapses = self._counter(names.COLLAPSES)
        self.rejections = self._counter(names.REJECTIONS)
        for reason in REJECTIONS:
            # Known from the start, so that a rate of the first one can be asked for.
            self.rejections.labels(reason)
        self.residency = self._gauge(names.RESIDENCY)
        self.residency_p95 = self._gauge(names.RESIDENCY_P95)
        self.score = self._gauge(names.SCORE)
        self.entries = self._counter(names.CONTEXT_ENTRIES)
        self.gist_calls = self._counter(names.GIST_CALLS)
        self.hit = self._counter(names.SPANS_HIT)
        self.restored = self._counter(names.SPANS_RESTORED)
        self.missed = self._counter(names.SPANS_MISSED)
        self.evicted = self._counter(names.SPANS_EVICTED)
        self.kv_reused = self._counter(names.KV_REUSED)
        self.kv_recomputed = self._counter(names.KV_RECOMPUTED)
        self.kv_sought = self._counter(names.KV_SOUGHT)
        self.kv_restored = self._counter(names.KV_RESTORED)
        self.kv_loaded = self._counter(names.KV_LOADED)
        self.kv_shared = self._counter(names.KV_SHARED)
        self.wakes = self._counter(names.WAKES)
        for source, file in product(("woken", "restored"), ("used", "none")):
            self.wakes.labels(source, file)
        self.store = self._histogram(names.STORE_LATENCY)
        self.store_up = self._gauge(names.STORE_UP)
        self.store_backlog = self._gauge(names.STORE_BACKLOG)
        self.lag = self._histogram(names.EVENT_LOOP_LAG)

    def read(self, definition: Definition, value: Callable[[], float]) -> None:
        """Add a gauge that is read whenever somebody looks."""
        self._gauge(definition).set_function(value)

    def _counter(self, d: Definition) -> Counter:
        assert d.kind == "counter"
        return Counter(d.name, d.help, d.labels, unit=d.unit, registry=self.registry)

    def _gauge(self, d: Definition) -> Gauge:
        assert d.kind == "gauge"
        return Gauge(d.name, d.help, d.labels, unit=d.unit, registry=self.registry)

    def _histogram(self, d: Definition) -> Histogram:
        assert d.kind == "histogram"
        return Histogram(d.name, d.help, d.labels, unit=d.unit, buckets=d.buckets, registry=self.registry)

    # -- engine --------------------------------------------------------------------------------------------------

    def refocused(self, trace: RefocusTrace) -> None:
        self.refocuses.labels(trace.reason).inc()
        for name, part in trace.parts.items():
            self.refocus_time.labels(name).observe(part.seconds)
        report = trace.report
        self.swap_rate.observe(report["swap_rate"])
        self.utilization.observe(report["utilization"])
        self.expands.inc(report["expands"])
        self.collapses.inc(report["collapses"])
        for name, value in report.items():
            if name.startswith("rejections."):
                self.rejections.labels(name.removeprefix("rejections.")).inc(value)
            elif name.startswith("score_"):
                self.score.labels(name.removeprefix("score_")).set(value)
            elif name.startswith(LEVEL):
                self.entries.labels(name.removeprefix(LEVEL)).inc(value)
        self.residency.set(report["residency_mean"])
        self.residency_p95.set(report["residency_p95"])
        self.gist_calls.inc(trace.gist_calls)
        self.hit.inc(trace.spans_hit)
        self.restored.inc(trace.spans_fetched)
        self.missed.inc(trace.spans_missed)
        self.evicted.inc(trace.spans_evicted)
        self.kv_reused.inc(trace.kv_reused)
        self.kv_recomputed.inc(trace.kv_recomputed)
        self.kv_sought.inc(trace.kv_sought)
        self.kv_restored.inc(trace.kv_restored)
        self.kv_shared.inc(trace.kv_shared)

    def decoded(self, batch: int, seconds: float) -> None:
        if batch:
            self.batch.observe(batch)
            self.step.observe(seconds)

    def queued(self, seconds: float) -> None:
        self.queue.observe(seconds)

    def woke(self, source: Warmth, kv_loaded: int) -> None:
        self.kv_loaded.inc(kv_loaded)
        self.wakes.labels(source, "used" if kv_loaded else "none").inc()

    # -- turns ---------------------------------------------------------------------------------------------------

    def watch_turn(self) -> TurnWatch:
        """Measures one turn from now on."""
        return TurnWatch(self)

    async def watch_loop(self) -> None:
        """Measure how late the event loop wakes up, until cancelled."""
        while True:
            due = time.monotonic() + LAG_PERIOD
            await asyncio.sleep(LAG_PERIOD)
            self.lag.observe(max(0.0, time.monotonic() - due))

    async def watch_store(self, store: SessionStore) -> None:
        """Try the store again and again, until cancelled."""
        while True:
            health = await asyncio.wrap_future(store.healthy())
            self.store_up.set(health.ok)
            self.store_backlog.set(health.pending_bytes)
            await asyncio.sleep(STORE_PERIOD)


class TurnWatch:
    """Time to the first token, between tokens, and how the turn ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._last, self._tokens = metrics, time.monotonic(), 0

    def __call__(self, event: Event, when: float) -> None:
        match event:
            case Delta(_, ids, _) if ids:
                (self._metrics.inter_token if self._tokens else self._metrics.first_token).observe(when - self._last)
                self._last, self._tokens = when, self._tokens + len(ids)
            case Finished(reason, usage, context):
                self._metrics.turns.labels(reason).inc()
                self._metrics.prompt_tokens.inc(usage.prompt_tokens)
                self._metrics.completion_tokens.inc(usage.completion_tokens)
                self._metrics.guessed_tokens.inc(context.guessed)
                self._metrics.guessed_right_tokens.inc(context.guessed_right)
            case Failed(error):
                self._metrics.turns.labels(outcome_of(error)).inc()


def outcome_of(error: BaseException) -> str:
    """What a turn that failed counts as: its error's name where the server or its store is at fault; else "refused",
    for which nobody has to be called."""
    told = to_api_error(error)
    if told.status == CLIENT_CLOSED_REQUEST:
        return CancelledTurnError.__name__
    return type(error).__name__ if told.type == "server_error" else "refused"
