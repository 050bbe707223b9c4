"""Everything that a server tells of itself: numbers for Prometheus, and the same with spans over OTLP if asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from opentelemetry.trace import Span
from starlette.types import Scope

from mc_core.engine.observer import RefocusTrace
from mc_core.engine.requests import Warmth
from server.telemetry.endpoint import endpoint
from server.telemetry.metrics import Metrics
from server.telemetry.spans import Spans

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from server.telemetry.push import Pusher

PROBES = r"://[^/]*/(health|ready|metrics)$"
ADDRESSES = ("http.url", "http.target", "url.full", "url.path")


class Telemetry:
    """Metrics and spans of one app, of what the engine tells. Nothing is global, so that a process may hold several.

    provider, pusher: where spans and metrics go, None = nowhere.
    """

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.provider: TracerProvider | None = None
        self.pusher: Pusher | None = None
        self.spans = Spans(None)

    @classmethod
    def from_environment(cls) -> Telemetry:
        """As OpenTelemetry's OTEL_* variables say. ConfigError for those that do not fit."""
        telemetry = cls()
        if endpoint("traces") is None and endpoint("metrics") is None:
            return telemetry
        from server.telemetry import otlp
        from server.telemetry.push import Pusher

        who = otlp.resource()
        if endpoint("traces") is not None:
            telemetry.provider = otlp.tracer_provider(otlp.span_exporter(), who)
            telemetry.spans = Spans(telemetry.provider.get_tracer("megacontext"))
        if endpoint("metrics") is not None:
            telemetry.pusher = Pusher(telemetry.metrics.registry, otlp.metric_exporter(), who)
        return telemetry

    def instrument(self, app: FastAPI) -> None:
        """A span for each HTTP request but probes, under the caller's ``traceparent`` if it sent one."""
        if self.provider is None:
            return
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.metrics import NoOpMeterProvider

        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self.provider,
            meter_provider=NoOpMeterProvider(),
            excluded_urls=PROBES,
            exclude_spans=["receive", "send"],
            server_request_hook=_route_for_address,
        )

    def close(self) -> None:
        """Send what is left, for some seconds at most. Blocks."""
        self.spans.close()
        if self.provider is None and self.pusher is None:
            return
        from server.telemetry.otlp import LAST_WORDS, within

        within(LAST_WORDS, self._close)

    def _close(self) -> None:
        if self.provider is not None:
            self.provider.shutdown()
        if self.pusher is not None:
            self.pusher.close()

    # -- Observer ------------------------------------------------------------------------------------------------

    def refocused(self, trace: RefocusTrace) -> None:
        self.metrics.refocused(trace)
        self.spans.refocused(trace)

    def decoded(self, batch: int, seconds: float) -> None:
        self.metrics.decoded(batch, seconds)

    def queued(self, request_id: str, seconds: float) -> None:
        self.metrics.queued(seconds)
        self.spans.queued(request_id, seconds)

    def woke(self, source: Warmth, kv_loaded: int) -> None:
        self.metrics.woke(source, kv_loaded)


def _route_for_address(span: Span, scope: Scope) -> None:
    """Addresses are the caller's words; the route says what was asked for."""
    written = getattr(span, "attributes", None) or {}
    route = str(written.get("http.route", "unknown"))
    span.set_attributes({name: route for name in ADDRESSES if name in written})
    if "url.query" in written:
        span.set_attribute("url.query", "")
