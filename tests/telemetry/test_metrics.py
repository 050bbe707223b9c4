"""Metrics over OTLP: the numbers and names of /metrics."""

import itertools

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mc_core.errors import CancelledTurnError, QueueFullError
from mc_core.store import SessionMismatchError, StoreError, TurnsLostError
from otlp_receiver import attributes
from server.errors import ApiError, gone_for_long, turn_cancelled
from server.telemetry import names
from server.telemetry.metrics import outcome_of
from server.telemetry.names import Definition
from support import running, settings_for, wait_until

UNITS = {"seconds": "s", "bytes": "By", "tokens": "{token}", "": ""}
UNSTEADY = (names.EVENT_LOOP_LAG.name,)
DEFINITIONS = {value.name: value for value in vars(names).values() if isinstance(value, Definition)}


def scraped(text):
    """/metrics as {(name, labels): value}, what changes while nothing happens left out."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if steady(family.name, sample.labels) and not sample.name.endswith("_created")
    }


def steady(name, labels):
    return name.startswith("megacontext_") and name not in UNSTEADY and labels.get("route") != "/metrics"


def pushed(metrics):
    """An OTLP message in the same form."""
    return {
        (name, tuple(sorted(labels.items()))): value
        for metric in metrics.values()
        for name, labels, value in samples(metric)
        if steady(metric.name, labels)
    }


def samples(metric):
    """Of one metric, as Prometheus would name them: (name, labels, value)."""
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points:
        labels = attributes(point)
        if kind != "histogram":
            yield f"{metric.name}_total" if kind == "sum" else metric.name, labels, point.as_double
            continue
        yield f"{metric.name}_count", labels, point.count
        yield f"{metric.name}_sum", labels, point.sum
        bounds = [*map(str, point.explicit_bounds), "+Inf"]
        for bound, upto in zip(bounds, itertools.accumulate(point.bucket_counts), strict=True):
            yield f"{metric.name}_bucket", {**labels, "le": bound}, upto


def turn(http):
    body = {"model": "tiny", "max_tokens": 40, "ignore_eos": True, "messages": [{"role": "user", "content": "Hello"}]}
    assert http.post("/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_they_equal_those_of_the_metrics_page(received, model_dir, tmp_path):
    """Every counter, gauge and histogram, bucket by bucket, has the same name and value on both sides."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        http.post(f"/v1/sessions/{session}/ingest", content="The keeper counted the waves. " * 100)
        turn(http)
        turn(http)
        http.get("/v1/nothing")
        page = scraped(http.get("/metrics").text)
        seen = len(received.metrics)
        wait_until(lambda: len(received.metrics) > seen + 1)
        latest = received.latest()
    assert pushed(latest) == page
    assert page["megacontext_completion_tokens_total", ()] == 80
    assert page["megacontext_refocuses_total", (("reason", "turn"),)] == 2
    assert page["megacontext_time_to_first_token_seconds_count", ()] == 2
    assert page["megacontext_ingested_tokens_total", ()] > 500
    assert "process_resident_memory_bytes" in latest
    assert received.metrics[0].resource_metrics[0].resource == received.traces[0].resource_spans[0].resource


def test_each_has_the_unit_help_and_kind_of_its_one_definition(received, model_dir, tmp_path):
    """names.py alone says what a metric is: all its definitions arrive, and nothing of ours that it does not define."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
        turn(http)
    latest = received.latest()
    ours = {name for name in latest if name.startswith("megacontext_")}
    without_samples = {names.INGESTED_TOKENS.name, names.REJECTIONS.name}
    assert ours <= DEFINITIONS.keys()
    assert DEFINITIONS.keys() - ours <= without_samples
    kinds = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}
    for name in ours:
        metric, definition = latest[name], DEFINITIONS[name]
        assert (metric.description, metric.unit) == (definition.help, UNITS[definition.unit])
        kind = metric.WhichOneof("data")
        assert kind == kinds[definition.kind]
        if kind != "gauge":
            assert getattr(metric, kind).aggregation_temporality == 2  # cumulative
        for point in getattr(metric, kind).data_points:
            assert set(attributes(point)) == set(definition.labels)
            assert kind == "gauge" or 0 < point.start_time_unix_nano < point.time_unix_nano


@pytest.mark.parametrize("received", ["grpc"], indirect=True)
def test_traces_and_metrics_may_go_to_different_places(received, model_dir, tmp_path, monkeypatch):
    """With an endpoint for metrics alone, no span is sent; OTEL_METRICS_EXPORTER=none then silences metrics too."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", received.endpoint)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    for exporters, expected in (("otlp", True), ("none", False)):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", exporters)
        with running(settings_for(model_dir, tmp_path / "s.sqlite")) as address, httpx.Client(base_url=address) as http:
            turn(http)
        assert bool(received.metrics) == expected
        assert not received.traces
        received.metrics.clear()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (SessionMismatchError("s"), "refused"),
        (QueueFullError("q"), "refused"),
        (ApiError(409, "m", code="messages_differ"), "refused"),
        (CancelledTurnError("c"), "CancelledTurnError"),
        (turn_cancelled(), "CancelledTurnError"),
        (gone_for_long(1.0), "CancelledTurnError"),
        (TurnsLostError("s"), "TurnsLostError"),
        (StoreError("s"), "StoreError"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_turns_fail_by_name_where_the_server_or_its_store_is_at_fault(error, outcome):
    """What the alert on failed turns goes by: a request at fault raises none, and turns that the store lost do."""
    assert outcome_of(error) == outcome
