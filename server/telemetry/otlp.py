"""OTLP exporters and providers, as OpenTelemetry's OTEL_* variables ask for them. Nothing here is global.

Only imported when an endpoint is set: without one, a server never loads the SDK.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from mc_core.errors import ConfigError
from server.telemetry.endpoint import Signal

SERVICE = "megacontext"
PROTOCOLS = ("grpc", "http/protobuf")
LAST_WORDS = 5.0
"""Seconds that a provider has to send the rest when the server ends; a collector that is gone must not hold it up."""


def resource() -> Resource:
    """Who speaks: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES before our own names."""
    given = Resource.create().attributes
    own: dict[str, Any] = {"service.instance.id": secrets.token_hex(8), "service.version": _version()}
    if str(given.get("service.name", "unknown_service")).startswith("unknown_service"):
        own["service.name"] = SERVICE
    return Resource.create({name: value for name, value in own.items() if name == "service.name" or name not in given})


def tracer_provider(exporter: SpanExporter, who: Resource) -> TracerProvider:
    """Batches spans to an exporter; the sampler is OTEL_TRACES_SAMPLER's."""
    provider = TracerProvider(resource=who, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def span_exporter(timeout: float | None = None) -> SpanExporter:
    """Sends spans; ``timeout`` in seconds, else the environment's. ConfigError for variables that do not fit."""
    with _plain_complaints():
        if protocol("traces") == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter(timeout=timeout)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HTTPSpanExporter

        return HTTPSpanExporter(timeout=timeout)


def metric_exporter(timeout: float | None = None) -> MetricExporter:
    """Sends metrics; otherwise as ``span_exporter``."""
    with _plain_complaints():
        if protocol("metrics") == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

            return OTLPMetricExporter(timeout=timeout)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HTTPMetricExporter

        return HTTPMetricExporter(timeout=timeout)


def protocol(signal: Signal) -> str:
    """grpc (the default, as in OpenTelemetry's own SDK for Python) or http/protobuf. ConfigError for others."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if value := os.environ.get(variable, "").strip():
            if value not in PROTOCOLS:
                raise ConfigError(f"{variable} must be one of {PROTOCOLS}, got {value!r}")
            return value
    return PROTOCOLS[0]


def within(seconds: float, work: Callable[[], object]) -> None:
    """Do something for so long at most; what is not done then is left to a thread that holds nothing up."""
    thread = threading.Thread(target=work, name="megacontext-last-words", daemon=True)
    thread.start()
    thread.join(seconds)


@contextmanager
def _plain_complaints() -> Iterator[None]:
    """What an exporter says against a variable, as one line."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"a variable OTEL_EXPORTER_OTLP_* does not fit: {error}") from error


def _version() -> str:
    try:
        return metadata.version("megacontext")
    except metadata.PackageNotFoundError:
        return "source"
