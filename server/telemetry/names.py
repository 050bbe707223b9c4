"""Every metric that the server measures, and every name of a span, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0)
BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Definition:
    """What Prometheus and OTLP tell of a metric. unit: as the name ends, or "" for counts and ratios."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, text: str, *labels: str, unit: str = "") -> Definition:
    return Definition(f"megacontext_{name}", "counter", text, unit, labels)


def _gauge(name: str, text: str, *labels: str, unit: str = "") -> Definition:
    return Definition(f"megacontext_{name}", "gauge", text, unit, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Definition:
    return Definition(f"megacontext_{name}", "histogram", text, "", labels, buckets)


def _seconds(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Definition:
    return Definition(f"megacontext_{name}_seconds", "histogram", text, "seconds", labels, buckets)


HTTP_REQUESTS = _counter("http_requests", "HTTP requests", "route", "method", "status")
TURNS = _counter("turns", "Turns by how they ended", "outcome")
TIME_TO_FIRST_TOKEN = _seconds("time_to_first_token", "Request to first token")
INTER_TOKEN = _seconds("inter_token", "Between two tokens of a reply")
QUEUE_TIME = _seconds("queue", "Waiting for a slab")
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens read", unit="tokens")
COMPLETION_TOKENS = _counter("completion_tokens", "Tokens generated", unit="tokens")
GUESSED_TOKENS = _counter("guessed_tokens", "Tokens of replies that were guessed and read ahead", unit="tokens")
GUESSED_RIGHT_TOKENS = _counter("guessed_right_tokens", "Of those guessed, tokens that came", unit="tokens")
INGESTED_TOKENS = _counter("ingested_tokens", "Tokens ingested", unit="tokens")
SESSIONS_RESIDENT = _gauge("sessions_resident", "Sessions in memory")
RESIDENT_TOKENS = _gauge("sessions_resident_tokens", "Tokens of all histories in memory")
BLOCKS_WITHOUT_VECTORS = _gauge(
    "blocks_without_vectors", "Blocks of histories in memory whose gists and lens keys are still to be made"
)
SLABS = _gauge("slabs", "KV slabs")
SLABS_FREE = _gauge("slabs_free", "KV slabs that no turn uses")
SLAB_BYTES = _gauge("slab_bytes", "Memory of all KV slabs", unit="bytes")
TURNS_RUNNING = _gauge("turns_running", "Turns that hold a slab")
TURNS_WAITING = _gauge("turns_waiting", "Turns that wait for a slab")
DECODE_BATCH = _histogram("decode_batch", "Turns in a decode step", BATCHES)
DECODE_STEP = _seconds("decode_step", "One batched decode step")
REFOCUSES = _counter("refocuses", "Refocuses", "reason")
REFOCUS_TIME = _seconds("refocus", "Parts of a refocus", "part")
SWAP_RATE = _histogram("swap_rate", "Blocks changed / eligible", SHARES)
UTILIZATION = _histogram("utilization", "Working context cost / budget", SHARES)
EXPANDS = _counter("expands", "Entries that refocuses made finer")
COLLAPSES = _counter("collapses", "Groups of entries that refocuses made coarser")
REJECTIONS = _counter("rejections", "Edits that a refocus wished and did not make", "reason")
RESIDENCY = _gauge("residency_refocuses", "Mean refocuses since an entry changed level, at the last refocus")
RESIDENCY_P95 = _gauge("residency_p95_refocuses", "The same, 95th percentile")
SCORE = _gauge("score", "Scores of the entries at the last refocus", "statistic")
GIST_CALLS = _counter("gist_calls", "GistNet calls")
CONTEXT_ENTRIES = _counter("context_entries", "Entries by level, summed over refocuses", "level")
SPANS_HIT = _counter("spans_hit", "Spans that a refocus opened and memory had")
SPANS_RESTORED = _counter("spans_restored", "Spans fetched from the store")
SPANS_MISSED = _counter("spans_missed", "Spans asked for and not had")
SPANS_EVICTED = _counter("spans_evicted", "Spans evicted to the store")
KV_REUSED = _counter("kv_reused", "KV units kept by repairs")
KV_RECOMPUTED = _counter("kv_recomputed", "KV units computed by repairs")
KV_SOUGHT = _counter("kv_sought", "KV units of history, apart from the tail, that repairs lacked (block repair)")
KV_RESTORED = _counter("kv_restored", "Of those sought, KV units that host memory had: they left a context lately")
KV_LOADED = _counter("kv_loaded", "KV units that files of idle sessions brought into slabs")
KV_SHARED = _counter("kv_shared", "KV units that slabs of sessions that begin alike brought into new slabs")
WAKES = _counter(
    "wakes",
    "Turns that began with a history and without a slab, by where it was, and whether a file filled the new slab",
    "source",
    "file",
)
KV_RECENT_BYTES = _gauge("kv_recent_bytes", "Memory of KV units that left a context lately", unit="bytes")
STORE_LATENCY = _seconds("store", "Store operations", "operation")
STORE_UP = _gauge("store_up", "1 if the store took a durable write when last tried, 0 if not")
STORE_BACKLOG = _gauge("store_backlog_bytes", "Writes that waited for the store then", unit="bytes")
EVENT_LOOP_LAG = _seconds("event_loop_lag", "Event loop lag", buckets=LAGS)

QUEUE_SPAN = "mc.queue"
INGEST_SPAN = "mc.ingest"
REFOCUS_SPAN = "mc.refocus"
PART_SPANS = {part: f"mc.{part}" for part in ("lens", "allocate", "restore", "follow", "kv_repair", "evict")}
"""Span by part of a refocus."""
TEST_SPAN = "mc.doctor"
