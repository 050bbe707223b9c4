"""What does HTTP cost: streams of server-sent events against the same turns in an engine without a server?

Physics: the engine's thread and the server's event loop share one interpreter. A token costs the loop a few callbacks
and one write a stream; if that were too much, the loop would lag and the engine would wait for the interpreter. Streams
are read by this process, the server is another; the engine alone runs here, in turn with it. The loop's lag is the
server's own histogram, of which a percentile is interpolated within its bucket.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import torch

from bench.batch import QUESTION
from bench.common import BUNDLE, Bench, bench_engine, report
from bench.load import lag_buckets
from bench.serving import served, words_in
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig

BAR_MS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.streams, options.reply, options.rounds = [1, 64], 32, 1
    torch.set_num_threads(options.threads)

    most, weights = max(options.streams), getattr(torch, options.weights)
    config, focus = EngineConfig(max_sessions=most), FocusConfig(budget=1024)
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in options.streams}
    flags = ["--weights", options.weights, "--max-sessions", str(most), "--threads", str(options.threads)]
    flags += ["--model", str(options.model), "--budget", "1024", "--lookup-tokens", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        served(*flags, "--store", f"sqlite:///{folder}/s.sqlite") as (client, _),
        bench_engine(options.model, dtype=weights, focus=focus, config=config) as bench,
    ):
        model = client.get("/v1/models").json()["data"][0]["id"]
        for number in range(-1, options.rounds):
            for count in options.streams:
                before = lag_buckets(client)
                seen = asyncio.run(streamed(str(client.base_url), model, count, options.reply))
                lag = lag_ms(before, lag_buckets(client))
                alone = engine_rate(bench, f"{number}-{count}", count, options.reply)
                if number >= 0:  # the first round warms up
                    found[count].append(seen | {"lag": lag, "ratio": seen["rate"] / alone, "alone": alone})
    rows = [_row(count, runs) for count, runs in found.items()]
    worst = rows[-1]["lag p99 ms"]
    summary = {"lag_p99_ms": worst, "bar_ms": BAR_MS, "within": worst < BAR_MS, "to_engine": rows[-1]["to engine"]}
    chosen = {name: getattr(options, name) for name in ("weights", "reply", "rounds", "threads")}
    report("http", rows, summary | chosen, options.save)


async def streamed(address: str, model: str, count: int, reply: int) -> dict[str, Any]:
    """``count`` streams at once."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        began = time.perf_counter()
        turns = await asyncio.gather(*(_stream(client, model, number, reply) for number in range(count)))
        seconds = time.perf_counter() - began
    gaps = np.concatenate([np.diff(times) for times in turns])
    return {"rate": count * reply / seconds, "first": [times[0] - began for times in turns], "gaps": gaps}


async def _stream(client: httpx.AsyncClient, model: str, number: int, reply: int) -> list[float]:
    """When each piece of text came."""
    asked = [{"role": "user", "content": f"{QUESTION} ({number})"}]
    body = {"model": model, "messages": asked, "max_tokens": reply, "stream": True, "ignore_eos": True, "store": False}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        lines = ((line, time.perf_counter()) async for line in response.aiter_lines())
        return [at async for line, at in lines if words_in(line)]


def engine_rate(bench: Bench, name: str, count: int, reply: int) -> float:
    """Tokens a second of as many new sessions without a server."""
    sessions = [bench.session(f"{name}-{number}") for number in range(count)]
    began = time.perf_counter()
    turns = [bench.start(session, f"{QUESTION} ({at})", reply, ignore_eos=True) for at, session in enumerate(sessions)]
    for turn in turns:
        turn.wait()
    seconds = time.perf_counter() - began
    for session in sessions:
        bench.engine.release(session).result()
    return count * reply / seconds


def lag_ms(before: dict[float, float], after: dict[float, float], share: float = 0.99) -> float:
    """A percentile of what was observed in between, interpolated within its bucket."""
    edges = sorted(after)
    counts = [after[edge] - before.get(edge, 0.0) for edge in edges]
    at = next(i for i, count in enumerate(counts) if count >= share * counts[-1])
    low, below = (edges[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    if not np.isfinite(edges[at]):
        return 1e3 * low
    return 1e3 * (low + (edges[at] - low) * (share * counts[-1] - below) / max(1e-9, counts[at] - below))


def _row(count: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    gaps = 1e3 * np.concatenate([run["gaps"] for run in runs])
    p50, p95, p99 = np.percentile(gaps, (50, 95, 99)).tolist()
    return {
        "streams": count,
        "tokens/s": median(run["rate"] for run in runs),
        "engine alone": median(run["alone"] for run in runs),
        "to engine": median(run["ratio"] for run in runs),
        "first token ms": 1e3 * float(np.median([first for run in runs for first in run["first"]])),
        "gap p50 ms": p50,
        "p95": p95,
        "p99": p99,
        "lag p99 ms": max(run["lag"] for run in runs),
    }


if __name__ == "__main__":
    main()
