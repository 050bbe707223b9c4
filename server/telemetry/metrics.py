"""The server's metrics for Prometheus, in a registry of their own, so that two apps in one process don't mix."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from mc_core.engine.observer import RefocusTrace
from mc_core.engine.requests import Delta, Event, Failed, Finished
from server.telemetry import names

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0)
LAG_PERIOD = 0.25
LEVEL = "entries.lod"
"""Prefix of a refocus report's keys: entries by level."""


class Metrics:
    """Also the engine's observer; prometheus-client's own locks make it safe on the engine thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        r = self.registry
        self.http = Counter(names.HTTP_REQUESTS, "HTTP requests", ["route", "method", "status"], registry=r)
        self.turns = Counter(names.TURNS, "Turns by how they ended", ["outcome"], registry=r)
        self.first_token = Histogram(names.TIME_TO_FIRST_TOKEN, "Request to first token", buckets=SECONDS, registry=r)
        self.inter_token = Histogram(names.INTER_TOKEN, "Between two tokens of a reply", buckets=SECONDS, registry=r)
        self.queue = Histogram(names.QUEUE_TIME, "Waiting for a slab", buckets=SECONDS, registry=r)
        self.prompt_tokens = Counter(names.PROMPT_TOKENS, "Prompt tokens read", registry=r)
        self.completion_tokens = Counter(names.COMPLETION_TOKENS, "Tokens generated", registry=r)
        self.ingested = Counter(names.INGESTED_TOKENS, "Tokens ingested", registry=r)
        self.batch = Histogram(names.DECODE_BATCH, "Turns in a decode step", buckets=(1, 2, 4, 8, 16, 32), registry=r)
        self.step = Histogram(names.DECODE_STEP, "One batched decode step", buckets=SECONDS, registry=r)
        self.refocuses = Counter(names.REFOCUSES, "Refocuses", ["reason"], registry=r)
        self.refocus_time = Histogram(names.REFOCUS_TIME, "Parts of a refocus", ["part"], buckets=SECONDS, registry=r)
        self.swap_rate = Histogram(names.SWAP_RATE, "Blocks changed / eligible", buckets=SHARES, registry=r)
        self.utilization = Histogram(names.UTILIZATION, "Working context cost / budget", buckets=SHARES, registry=r)
        self.residency = Gauge(names.RESIDENCY, "Mean refocuses since an entry changed level", registry=r)
        self.entries = Counter(names.CONTEXT_ENTRIES, "Entries by level, summed over refocuses", ["level"], registry=r)
        self.restored = Counter(names.SPANS_RESTORED, "Spans fetched from the store", registry=r)
        self.missed = Counter(names.SPANS_MISSED, "Spans asked for and not had", registry=r)
        self.evicted = Counter(names.SPANS_EVICTED, "Spans evicted to the store", registry=r)
        self.kv_reused = Counter(names.KV_REUSED, "KV units kept by repairs", registry=r)
        self.kv_recomputed = Counter(names.KV_RECOMPUTED, "KV units computed by repairs", registry=r)
        self.store = Histogram(names.STORE_LATENCY, "Store operations", ["operation"], buckets=SECONDS, registry=r)
        self.lag = Histogram(names.EVENT_LOOP_LAG, "Event loop lag", buckets=SECONDS, registry=r)

    # -- Observer ------------------------------------------------------------------------------------------------

    def refocused(self, trace: RefocusTrace) -> None:
        self.refocuses.labels(trace.reason).inc()
        for part, seconds in trace.seconds.items():
            self.refocus_time.labels(part).observe(seconds)
        self.swap_rate.observe(trace.report["swap_rate"])
        self.utilization.observe(trace.report["utilization"])
        self.residency.set(trace.report["residency_mean"])
        for name, number in trace.report.items():
            if name.startswith(LEVEL):
                self.entries.labels(name.removeprefix(LEVEL)).inc(number)
        self.restored.inc(trace.spans_fetched)
        self.missed.inc(trace.spans_missed)
        self.evicted.inc(trace.spans_evicted)
        self.kv_reused.inc(trace.kv_reused)
        self.kv_recomputed.inc(trace.kv_recomputed)

    def decoded(self, batch: int, seconds: float) -> None:
        if batch:
            self.batch.observe(batch)
            self.step.observe(seconds)

    def queued(self, seconds: float) -> None:
        self.queue.observe(seconds)

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


class TurnWatch:
    """Time to the first token, between tokens, and how the turn ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._last, self._tokens = metrics, time.monotonic(), 0

    def __call__(self, event: Event, when: float) -> None:
        match event:
            case Delta(_, ids, _) if ids:
                (self._metrics.inter_token if self._tokens else self._metrics.first_token).observe(when - self._last)
                self._last, self._tokens = when, self._tokens + len(ids)
            case Finished(reason, usage, _):
                self._metrics.turns.labels(reason).inc()
                self._metrics.prompt_tokens.inc(usage.prompt_tokens)
                self._metrics.completion_tokens.inc(usage.completion_tokens)
            case Failed(error):
                self._metrics.turns.labels(type(error).__name__).inc()
