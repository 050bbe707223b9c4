"""What does Ray Serve cost: streams through its proxy to one replica, against one plain server under the same load?

Physics: the proxy is a process between client and server. Each piece of a stream crosses it, and the replica hands it
over by an actor's call, so a token costs two more processes some hundred microseconds each; where cores are idle, that
is delay and not throughput. Servers are started in turn, one at a time, over one Redis; a round compares neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.common import BUNDLE, report
from bench.http import streamed
from bench.serving import redis_server, served

KINDS = ("plain", "ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.reply, options.rounds, options.repeats = 32, 1, 1

    # One thread, so that proxy and client have a core.
    flags = ["--model", str(options.model), "--threads", "1", "--weights", "float32", "--budget", "1024"]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as redis:
        flags += ["--store", f"redis://127.0.0.1:{redis.get_connection_kwargs()['port']}/0"]
        for number in range(options.rounds):
            for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                more = ["--ray", "1"] if kind == "ray" else []
                with served(*flags, *more, PYTHONPATH=os.getcwd()) as (client, _):
                    model, address = client.get("/v1/models").json()["data"][0]["id"], str(client.base_url)
                    for count in options.streams:
                        asyncio.run(streamed(address, model, count, options.reply))
                        runs = [
                            asyncio.run(streamed(address, model, count, options.reply)) for _ in range(options.repeats)
                        ]
                        found.setdefault((kind, count), []).append(_middle(runs))
    rows = [_row(count, found["plain", count], found["ray", count]) for count in options.streams]
    summary = {
        "rate_to_plain": min(row["to plain"] for row in rows),
        "first_ms_more": max(row["more ms"] for row in rows),
    }
    bars = {"bar_rate": 0.9, "bar_ms": 15.0}
    chosen = {name: getattr(options, name) for name in ("reply", "rounds", "repeats")}
    report("ray", rows, summary | bars | chosen, options.save)


def _middle(runs: list[dict[str, Any]]) -> dict[str, float]:
    firsts = [first for run in runs for first in run["first"]]
    return {
        "rate": median(run["rate"] for run in runs),
        "first": 1e3 * median(firsts),
        "gap": 1e3 * float(np.percentile(np.concatenate([run["gaps"] for run in runs]), 95)),
    }


def _row(count: int, plain: list[dict[str, float]], ray: list[dict[str, float]]) -> dict[str, Any]:
    pairs = list(zip(plain, ray, strict=True))
    return {
        "streams": count,
        "plain tokens/s": median(run["rate"] for run in plain),
        "ray tokens/s": median(run["rate"] for run in ray),
        "to plain": median(b["rate"] / a["rate"] for a, b in pairs),
        "plain first ms": median(run["first"] for run in plain),
        "ray first ms": median(run["first"] for run in ray),
        "more ms": median(b["first"] - a["first"] for a, b in pairs),
        "plain gap p95": median(run["gap"] for run in plain),
        "ray gap p95": median(run["gap"] for run in ray),
    }


if __name__ == "__main__":
    main()
