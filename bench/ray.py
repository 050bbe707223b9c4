"""What does Ray Serve cost: streams through its proxy to one replica, against one plain server under the same load?

Physics: the proxy is a process between client and server. Each piece of a stream crosses it, and the replica hands it
over by an actor's call, so a token costs two more processes some hundred microseconds each; where cores are idle, that
is delay and not throughput. Both servers run all the time, over one Redis, and are asked in turn, so that a round
compares neighbours in time; what Ray's processes do when nobody asks weighs on both.
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
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.reply, options.rounds = 32, 2

    # One thread, so that proxy and client have a core.
    flags = ["--model", str(options.model), "--threads", "1", "--weights", "float32", "--budget", "1024"]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as redis:
        flags += ["--store", f"redis://127.0.0.1:{redis.get_connection_kwargs()['port']}/0"]
        with served(*flags) as (plain, _), served(*flags, "--ray", "1", PYTHONPATH=os.getcwd()) as (ray, _):
            servers = {"plain": plain, "ray": ray}
            for count in options.streams:
                for number in range(-1, options.rounds):  # the first one warms up
                    for kind in KINDS if number % 2 else KINDS[::-1]:
                        model = servers[kind].get("/v1/models").json()["data"][0]["id"]
                        run = asyncio.run(streamed(str(servers[kind].base_url), model, count, options.reply))
                        if number >= 0:
                            found.setdefault((kind, count), []).append(_middle(run))
    rows = [_row(count, found["plain", count], found["ray", count]) for count in options.streams]
    summary = {
        "rate_to_plain": min(row["to plain"] for row in rows),
        "first_ms_more": max(row["more ms"] for row in rows),
    }
    bars = {"bar_rate": 0.9, "bar_ms": 15.0}
    chosen = {name: getattr(options, name) for name in ("reply", "rounds")}
    report("ray", rows, summary | bars | chosen, options.save)


def _middle(run: dict[str, Any]) -> dict[str, float]:
    gap = 1e3 * float(np.percentile(run["gaps"], 95))
    return {"rate": run["rate"], "first": 1e3 * median(run["first"]), "gap": gap}


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
