"""What dashboards and alerts ask Prometheus for: names and labels that a running server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy_files import DEPLOY, LABELS_OF_SCRAPES, MADE_BY_PROMETHEUS, asked_of, dashboard_queries, rules
from support import running, settings_for

PROMTOOL = shutil.which("promtool")
WATCHED = (
    "turns_total",
    "http_requests_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_seconds_bucket",
    "queue_seconds_bucket",
    "turns_waiting",
    "completion_tokens_total",
    "ingested_tokens_total",
    "swap_rate_sum",
    "utilization_sum",
    "residency_refocuses",
    "context_entries_total",
    "spans_restored_total",
    "spans_missed_total",
    "slabs",
    "slabs_free",
    "store_seconds_bucket",
    "event_loop_lag_seconds_bucket",
    "expands_total",
    "collapses_total",
    "rejections_total",
    "score",
    "gist_calls_total",
    "spans_hit_total",
    "store_up",
    "store_backlog_bytes",
    "wakes_total",
)
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool, which comes with prometheus, isn't installed")


@pytest.fixture(scope="module")
def exposed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Samples that /metrics of a server has after one turn: name -> label names."""
    settings = settings_for(model, tmp_path_factory.mktemp("queries") / "store.sqlite")
    with running(settings) as address:
        question = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        httpx.post(f"{address}/v1/chat/completions", json=question, timeout=60).raise_for_status()
        text = httpx.get(f"{address}/metrics").text
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def test_queries_ask_for_what_the_server_exposes(exposed: dict[str, set[str]]) -> None:
    """Law: every metric, and every label, in a dashboard or an alert is one of a real server's /metrics."""
    queries = [*dashboard_queries(), *((rule["alert"], rule["expr"]) for rule in rules())]
    for title, query in queries:
        asked = [(name, labels) for name, labels in asked_of(query) if name not in MADE_BY_PROMETHEUS]
        assert asked or query.startswith("up{"), title
        for name, labels in asked:
            assert name in exposed, f"{title}: no metric {name}"
            grouped = {label for other, _ in asked for label in exposed.get(other, ())}
            assert labels - LABELS_OF_SCRAPES <= grouped, f"{title}: {name} has no label {labels - grouped}"
            assert "job" in labels, f"{title}: {name} isn't of one job alone, so OTLP would be counted twice"


def test_variables_ask_for_what_the_server_exposes(exposed: dict[str, set[str]]) -> None:
    """Law: the dashboard's variables read metrics that exist, and its queries use no variable that it lacks."""
    text = (DEPLOY / "grafana" / "dashboards" / "megacontext.json").read_text("utf-8")
    dashboard = json.loads(text)
    variables = dashboard["templating"]["list"]
    for variable in variables:
        metric = re.fullmatch(r"label_values\((\w+)\{.*\}, \w+\)", variable["query"])
        assert metric
        assert metric[1] in exposed
    assert set(re.findall(r"\$(?!__)(\w+)", text)) == {variable["name"] for variable in variables}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_what_must_be_watched_is_shown() -> None:
    """Law: what users feel, what the focus does and what runs short each have a panel."""
    shown = {name for _, query in dashboard_queries() for name, _ in asked_of(query)}
    assert {f"megacontext_{name}" for name in WATCHED} <= shown


def test_names_are_found_in_queries() -> None:
    """Law: the reader of PromQL sees every metric, also one inside functions, beside operators and without labels."""
    query = 'sum by (a) (rate(one_total{b=~"x|y", c!="z"}[5m])) / scalar(sum(two)) > 0.5 * max_over_time(three{}[1h])'
    assert dict(asked_of(query)) == {"one_total": {"a", "b", "c"}, "two": {"a"}, "three": {"a"}}


@needs_promtool
def test_queries_are_valid(tmp_path: Path) -> None:
    """Law: Prometheus' own checker takes configuration, alerts and, as rules, every query of the dashboard."""
    recorded = [{"record": f"panel:{i}", "expr": query} for i, (_, query) in enumerate(dashboard_queries())]
    panels = tmp_path / "panels.yml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    _promtool("check", "rules", panels)
    _promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")


@needs_promtool
def test_alerts_fire(tmp_path: Path) -> None:
    """Law: each alert fires on the series that stand for its fault, and none fires on a healthy server's."""
    sick, well = _series(sick=True), _series(sick=False)
    alerts = {rule["alert"]: rule for rule in rules()}
    for number, (input_series, firing) in enumerate(((sick, alerts), (well, {}))):
        checks = [
            {
                "eval_time": "30m",
                "alertname": name,
                "exp_alerts": [{"exp_labels": labels} for labels in _labels(name, rule)] if name in firing else [],
            }
            for name, rule in alerts.items()
        ]
        for check in checks:
            for alert in check["exp_alerts"]:
                alert["exp_annotations"] = _annotations(alerts[check["alertname"]], alert["exp_labels"])
        test = {
            "rule_files": [str(DEPLOY / "prometheus" / "alerts.yml")],
            "tests": [{"interval": "15s", "input_series": input_series, "alert_rule_test": checks}],
        }
        path = tmp_path / f"alerts{number}.yml"
        path.write_text(yaml.safe_dump(test))
        _promtool("test", "rules", path)


def _series(sick: bool) -> list[dict[str, str]]:
    """Thirty minutes of scrapes every 15 s, of a server in trouble or of a healthy one under load."""
    server = 'job="megacontext",instance="a"'
    grows, still = "0+5x130", "0x130"
    bad = grows if sick else still
    buckets = {
        "time_to_first_token_seconds": ("5", "10"),
        "store_seconds": ("1", "2.5"),
        "event_loop_lag_seconds": ("0.25", "0.5"),
    }
    series = {
        f"up{{{server}}}": "0x130" if sick else "1x130",
        'up{job="tempo",instance="t"}': "0x130" if sick else "1x130",
        f'megacontext_http_requests_total{{{server},route="/health",status="500"}}': bad,
        f'megacontext_http_requests_total{{{server},route="/ready",status="503"}}': bad,
        f'megacontext_http_requests_total{{{server},route="/v1/chat/completions",status="429"}}': bad,
        f'megacontext_http_requests_total{{{server},route="/v1/chat/completions",status="500"}}': bad,
        f'megacontext_http_requests_total{{{server},route="/v1/chat/completions",status="200"}}': grows,
        f'megacontext_turns_total{{{server},outcome="StoreError"}}': bad,
        # Clients that go away are no fault of the server's.
        f'megacontext_turns_total{{{server},outcome="CancelledTurnError"}}': grows,
        f'megacontext_turns_total{{{server},outcome="stop"}}': grows,
        f"megacontext_turns_waiting{{{server}}}": "2x130" if sick else "0 3 0 2 0x126",
        f"megacontext_spans_missed_total{{{server}}}": bad,
    }
    for name, (low, high) in buckets.items():
        labels = f'{server},operation="commit"' if name == "store_seconds" else server
        series[f'megacontext_{name}_bucket{{{labels},le="{low}"}}'] = still if sick else grows
        series[f'megacontext_{name}_bucket{{{labels},le="{high}"}}'] = grows
        series[f'megacontext_{name}_bucket{{{labels},le="+Inf"}}'] = grows
    return [{"series": name, "values": values} for name, values in series.items()]


def _labels(name: str, rule: dict[str, object]) -> list[dict[str, str]]:
    """Labels of the alert that a sick server raises: those that its expression keeps."""
    own = {"severity": rule["labels"]["severity"], "instance": "a"}  # type: ignore[index]
    job = {"job": "megacontext"}
    kept: dict[str, dict[str, str]] = {
        "ServerDown": job,
        "EngineDead": {**job, "route": "/health", "status": "500"},
        "NotReady": {**job, "route": "/ready", "status": "503"},
        "TurnsWait": job,
        "SpansMissed": job,
        "TargetDown": {"job": "tempo", "instance": "t"},
    }
    return [own | kept.get(name, {})]


def _annotations(rule: dict[str, dict[str, str]], labels: dict[str, str]) -> dict[str, str]:
    text = rule["annotations"]["summary"]
    return {"summary": re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)}


def _promtool(*arguments: object) -> None:
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
