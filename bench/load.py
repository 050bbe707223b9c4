"""Does the server hold up under load: latencies as clients see them, flat memory, and an event loop that stays awake?

Starts ``megacontext serve`` as it comes, puts ``megacontext load`` against it, and reads resident memory (each second)
and the event loop's lag (the server's own histogram) meanwhile. ``talks``: ``--sessions`` sessions at once of
``--turns`` turns, histories from nothing to ``--history`` tokens and growing. ``replay``: a trace of a real service
for ``--seconds``, ``--speed`` times as fast. Memory is compared over the second half of a run, when caches have filled.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bench.common import BUNDLE, ROOT, report
from bench.serving import samples, served

SETTINGS = ("concurrency", "sessions", "turns", "history_tokens", "prompt_tokens", "output_tokens", "speed", "duration")
LAG = "megacontext_event_loop_lag_seconds"


def lag_buckets(client: httpx.Client) -> dict[float, float]:
    """Observations of the loop's lag at most so many seconds, by upper edge."""
    return {float(labels["le"]): count for labels, count in samples(client, f"{LAG}_bucket")}


def lag_percentile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Upper edge, in ms, of the bucket that holds the percentile of what was observed in between."""
    edges = sorted(after)
    counts = [after[edge] - before.get(edge, 0.0) for edge in edges]
    at = next(i for i, count in enumerate(counts) if count >= share * counts[-1])
    return 1e3 * edges[at]


@contextmanager
def memory_of(server: psutil.Process) -> Iterator[list[float]]:
    """Resident MB, once a second."""
    seen: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            seen.append(server.memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def run(name: str, flags: list[str], options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """One load run against a server of its own -> a row, and the tester's whole report."""
    folder = ROOT / "bench" / "results" if options.save else options.out
    page, found = folder / f"load-{name}.html", options.out / f"load-{name}.json"
    store = f"sqlite:///{options.out.resolve()}/{name}.sqlite"
    with served("--model", str(options.model), "--store", store) as (client, server):
        before = lag_buckets(client)
        with memory_of(server) as memory:
            command = [sys.executable, "-m", "server.cli", "load", str(client.base_url), *flags]
            subprocess.run([*command, "--json", str(found), "--html", str(page)], check=True)
        after = lag_buckets(client)
    full = json.loads(found.read_text())
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 60 if len(half) > 1 else math.nan
    latency = full["latency_ms"]
    row = {
        "run": name,
        "seconds": full["seconds"],
        "completed": full["requests"]["completed"],
        "failed": full["requests"]["failed"],
        "longest history": full["tokens"]["longest_history"],
        "tokens/s": full["throughput"]["completion_tokens_per_second"],
        "first token ms": latency["time_to_first_token"]["median"],
        "p99": latency["time_to_first_token"]["p99"],
        "gap ms": latency["inter_token"]["median"],
        "gap p99": latency["inter_token"]["p99"],
        "MB at half": half[0],
        "MB at end": half[-1],
        "MB/min": slope,
        "lag p50 ms": lag_percentile(before, after, 0.5),
        "lag p99 ms": lag_percentile(before, after, 0.99),
    }
    return row, full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--history", type=int, default=200_000)
    parser.add_argument("--trace", type=Path, help="Azure CSV or Mooncake JSON lines; no replay without it")
    parser.add_argument("--speed", type=float, default=0.06)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the servers' data and the full reports")
    parser.add_argument("--save", action="store_true", help="keep results and the pages with pictures in the project")
    options = parser.parse_args()
    seed = ["--seed", str(options.seed), "--warm-up", "4"]
    talks = ["--concurrency", str(options.sessions), "--sessions", str(options.sessions), "--turns", str(options.turns)]
    runs = {"talks": [*talks, "--history-tokens", f"uniform:0,{options.history}", *seed]}
    if options.trace:
        pace = ["--speed", str(options.speed), "--duration", str(options.seconds)]
        runs["replay"] = ["--trace", str(options.trace), *pace, *seed]
    options.out.mkdir(parents=True, exist_ok=True)
    rows, reports = zip(*(run(name, flags, options) for name, flags in runs.items()), strict=True)
    summary = {
        row["run"]: {
            "failed": row["failed"],
            "by_status": full["requests"]["by_status"],
            "by_turn": full["by_turn"],
            "by_history": full["by_history"]["groups"],
            "slope": full["by_history"]["slope"],
            "settings": {name: full["settings"][name] for name in SETTINGS},
        }
        for row, full in zip(rows, reports, strict=True)
    }
    report("load", list(rows), summary, options.save)


if __name__ == "__main__":
    main()
