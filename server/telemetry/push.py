"""Pushes the Prometheus registry over OTLP: one set of numbers, so that the two can't disagree."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from mc_core.errors import ConfigError

logger = logging.getLogger(__name__)
SCOPE = InstrumentationScope("megacontext")
UNITS = {"seconds": "s", "bytes": "By", "tokens": "{token}", "": ""}
"""Prometheus's words for units -> OpenTelemetry's."""
Key = tuple[tuple[str, str], ...]


class Pusher:
    """Exports the registry every OTEL_METRIC_EXPORT_INTERVAL milliseconds (a minute by default), and once at the end.

    Always cumulative: the registry's counters only grow.
    """

    def __init__(self, registry: CollectorRegistry, exporter: MetricExporter, who: Resource) -> None:
        self._registry, self._exporter, self._who = registry, exporter, who
        self._interval = _interval()
        self._began = time.time_ns()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="megacontext-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push a last time, then stop."""
        self._end.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            self._push()
        self._push()

    def _push(self) -> None:
        try:
            self._exporter.export(metrics_data(self._registry, self._who, self._began))
        except Exception:
            # Telemetry is never in the way, and never silent about itself.
            logger.exception("metrics could not be pushed")


def metrics_data(registry: CollectorRegistry, who: Resource, began: int) -> MetricsData:
    """Everything in a registry as OTLP has it; ``began``: when counting began, in nanoseconds since the epoch."""
    now = time.time_ns()
    metrics = [_metric(family, began, now) for family in registry.collect() if family.samples]
    scope = ScopeMetrics(SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(who, [scope], "")])


def _metric(family: Family, began: int, now: int) -> Metric:
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(_histogram_points(family, began, now), AggregationTemporality.CUMULATIVE)
    else:
        # What a family says of when it was created is no number of its own.
        values = [sample for sample in family.samples if not sample.name.endswith("_created")]
        points = [NumberDataPoint(sample.labels, began, now, float(sample.value)) for sample in values]
        if family.type == "counter":
            data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        else:
            data = Gauge(points)
    return Metric(family.name, family.documentation, UNITS.get(family.unit, family.unit), data)


def _histogram_points(family: Family, began: int, now: int) -> list[HistogramDataPoint]:
    """One point a set of labels; Prometheus counts up to each bound, OTLP between them."""
    points = []
    for labels, samples in _by_labels(family).items():
        bounds = [(float(s.labels["le"]), int(s.value)) for s in samples if s.name.endswith("_bucket")]
        total = next(float(s.value) for s in samples if s.name.endswith("_sum"))
        upto = [count for _, count in bounds]
        counts = [count - before for count, before in zip(upto, [0, *upto[:-1]], strict=True)]
        points.append(
            HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=began,
                time_unix_nano=now,
                count=upto[-1],
                sum=total,
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in bounds[:-1]],
                # The registry keeps neither; left out of the message.
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )
        )
    return points


def _by_labels(family: Family) -> dict[Key, list[Sample]]:
    groups: dict[Key, list[Sample]] = {}
    for sample in family.samples:
        groups.setdefault(_key(sample.labels.items()), []).append(sample)
    return groups


def _key(labels: Iterable[tuple[str, str]]) -> Key:
    return tuple((name, value) for name, value in labels if name != "le")


def _interval() -> float:
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip() or "60000"
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds < float("inf"):
        raise ConfigError(f"OTEL_METRIC_EXPORT_INTERVAL must be a number of milliseconds above 0, got {text!r}")
    return milliseconds / 1e3
