"""Sends one span, or an empty message of metrics, and waits until the collector has said that it took it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from server.telemetry import names
from server.telemetry.endpoint import Signal, endpoint

TIMEOUT = 5.0
"""Seconds in which a collector must answer."""


def confirm(signal: Signal) -> tuple[Literal["ok", "failed"], str]:
    """("ok" or "failed", why): whether a collector acknowledged a message just now; ok as well where none is wanted."""
    address = endpoint(signal)
    if address is None:
        return "ok", f"{signal} are not exported: the OTEL_* variables name no endpoint for them, or switch them off"
    from server.telemetry.otlp import protocol

    words = _Words()
    logger = logging.getLogger("opentelemetry")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(words)
    try:
        taken = _send_span() if signal == "traces" else _send_metrics()
    finally:
        logger.removeHandler(words)
        logger.propagate = before
    way = f"{address} ({protocol(signal)})"
    if taken:
        what = "a test span" if signal == "traces" else "an empty message of metrics"
        return "ok", f"the collector at {way} acknowledged {what}"
    return "failed", f"the collector at {way} did not acknowledge: {words}"


class _Words(logging.Handler):
    """Remembers the complaints of the exporters, which only log why they failed."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())

    def __str__(self) -> str:
        """The first complaint, which knows the cause, and the last one."""
        return " ... ".join(dict.fromkeys(self._heard[:1] + self._heard[-1:])) or "no reason was given"


def _send_span() -> bool:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    from server.telemetry.otlp import resource, span_exporter

    class Confirming(SpanExporter):
        """Keeps what became of each export: SUCCESS is the collector's own answer, not a place in a queue."""

        def __init__(self, inner: SpanExporter) -> None:
            self.inner = inner
            self.results: list[SpanExportResult] = []

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.results.append(self.inner.export(spans))
            return self.results[-1]

        def shutdown(self) -> None:
            self.inner.shutdown()

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return self.inner.force_flush(timeout_millis)

    exporter = Confirming(span_exporter(TIMEOUT))
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource(), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("megacontext").start_span(names.TEST_SPAN).end()
    flushed = provider.force_flush()
    provider.shutdown()
    return flushed and exporter.results == [SpanExportResult.SUCCESS]


def _send_metrics() -> bool:
    from opentelemetry.sdk.metrics.export import MetricExportResult
    from prometheus_client import CollectorRegistry

    from server.telemetry.otlp import metric_exporter, resource
    from server.telemetry.push import metrics_data

    exporter = metric_exporter(TIMEOUT)
    result = exporter.export(metrics_data(CollectorRegistry(), resource(), 0))
    exporter.shutdown()
    return result is MetricExportResult.SUCCESS
