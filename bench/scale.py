"""What do many servers of one store need, and what moves when their number changes?

Measured, on real servers and a real Redis: bytes of Redis' memory a token, seconds of Redis' processor a turn and a
server that idles, and the time to the first token of a session that is here, that another server hands over, and whose
server was killed. Simulated, with these numbers: a consistent-hash ring as Ray Serve's (100 places a replica, sessions
by a 64-bit hash), ``--replicas`` servers and ``--sessions`` sessions, few of them busy (lognormal);
how many move when servers come, go, or are all replaced, what that costs, and which server gets how much.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import redis
from numpy.typing import NDArray

from bench.common import BUNDLE, report
from bench.serving import redis_server, served, words_in
from bench.text import prose

PLACES = 100
"""Of a replica on the ring: Ray Serve's default."""
IDLE = 20
"""Seconds in which two servers do nothing."""
Ring = tuple[NDArray[np.uint64], NDArray[np.int64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--history", type=int, default=50_000, help="tokens of a session")
    parser.add_argument("--stored", type=int, default=4, help="sessions whose bytes are counted")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.history, options.stored, options.turns, options.sessions = 4_000, 2, 4, 100_000

    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as store:
        costs = measured(store, options)
    rows = simulated(options.replicas, options.sessions)
    report("scale", rows, {name: round(value, 6) for name, value in costs.items()} | _chosen(options), options.save)


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    names = ("history", "stored", "turns", "replicas", "sessions")
    return {"model": options.model.name} | {name: getattr(options, name) for name in names}


# -- measured ----------------------------------------------------------------------------------------------------------


def measured(store: redis.Redis, options: argparse.Namespace) -> dict[str, float]:
    """See the module."""
    url = f"redis://127.0.0.1:{store.get_connection_kwargs()['port']}/0"
    flags = ["--model", str(options.model), "--threads", "1", "--weights", "float32", "--store", url]
    text = prose(options.history // 12)
    with served(*flags) as (first, one), served(*flags) as (second, _):
        empty, began = _memory(store), _processor(store)
        time.sleep(IDLE)
        idle = (_processor(store) - began) / IDLE / 2
        sessions = [first.post("/v1/sessions", json={}).json()["id"] for _ in range(options.stored)]
        for session in sessions:
            first.post(f"/v1/sessions/{session}/ingest", content=text, headers={"content-type": "text/plain"})
        tokens = [first.get(f"/v1/sessions/{session}").json()["tokens"] for session in sessions]
        bytes_a_token = (_memory(store) - empty) / sum(tokens)
        session = sessions[0]
        used, began = _processor(store), time.perf_counter()
        here = [_first_token(first, session) for _ in range(options.turns)]
        turn = (_processor(store) - used - 2 * idle * (time.perf_counter() - began)) / options.turns
        handed = [_first_token((second, first)[n % 2], session) for n in range(options.turns)]
        model = first.get("/v1/models").json()["data"][0]["id"]
        _ask(first, model, session)
        one.kill()
        lapsed = _first_token(second, session)
    return {
        "tokens": float(tokens[0]),
        "redis_bytes_a_token": bytes_a_token,
        "redis_cpu_ms_a_turn": 1e3 * turn,
        "redis_cpu_ms_a_second_of_an_idle_server": 1e3 * idle,
        "first_token_ms_here": 1e3 * median(here),
        "first_token_ms_handed_over": 1e3 * median(handed),
        "first_token_s_after_a_kill": lapsed,
    }


def _memory(store: redis.Redis) -> float:
    return float(store.info("memory")["used_memory_dataset"])


def _processor(store: redis.Redis) -> float:
    """Seconds that Redis computed."""
    used = store.info("cpu")
    return float(used["used_cpu_user_main_thread"]) + float(used["used_cpu_sys_main_thread"])


def _first_token(client: httpx.Client, session: str) -> float:
    return _ask(client, client.get("/v1/models").json()["data"][0]["id"], session)


def _ask(client: httpx.Client, model: str, session: str) -> float:
    """Seconds to the first word of a turn, which is read to its end."""
    asked = [{"role": "user", "content": "And what happened after that?"}]
    body = {"model": model, "messages": asked, "session_id": session, "max_tokens": 32, "stream": True}
    began, first = time.perf_counter(), 0.0
    with client.stream("POST", "/v1/chat/completions", json=body | {"ignore_eos": True}) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if not first and words_in(line):
                first = time.perf_counter() - began
    return first


# -- simulated ---------------------------------------------------------------------------------------------------------


def simulated(replicas: int, sessions: int) -> list[dict[str, Any]]:
    """What each change moves."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, sessions, dtype=np.uint64)
    # Half of the sessions are asked a seventh as often as the mean, the busiest one of a million 2,000 times.
    share = rng.lognormal(sigma=2.0, size=sessions)
    share /= share.sum()
    names = rng.integers(0, 1 << 64, 2 * replicas, dtype=np.uint64)
    now = ring(names[:replicas])
    before = owners(now, hashes)
    half = max(1, replicas // 10)
    changes: dict[str, NDArray[np.uint64]] = {
        "none": names[:replicas],
        "one more": names[: replicas + 1],
        f"{half} more": names[: replicas + half],
        "twice as many": names,
        "one is gone": names[1:replicas],
        f"{half} are gone": names[half:replicas],
        "all replaced": names[replicas:],
    }
    rows = [_row(name, chosen, before, hashes, share) for name, chosen in changes.items()]
    alike = np.concatenate([0.98 * share, [0.02]])
    hashes = np.concatenate([hashes, hashes[:1]])
    return [*rows, _row("2 % begin alike", names[:replicas], owners(now, hashes), hashes, alike)]


def _row(
    name: str,
    chosen: NDArray[np.uint64],
    before: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    share: NDArray[np.float64],
) -> dict[str, Any]:
    after = owners(ring(chosen), hashes)
    moved = after != before
    was, least = len(np.unique(before)), 0.0
    if name != "all replaced":
        least = abs(len(chosen) - was) / max(len(chosen), was)
    _, place = np.unique(after, return_inverse=True)
    held = np.bincount(place, minlength=len(chosen))
    load = np.bincount(place, share, minlength=len(chosen))
    return {
        "change": name,
        "replicas": len(chosen),
        "moved": float(moved.mean()),
        "of requests": float(share[moved].sum()),
        "at least": least,
        "sessions max/mean": float(held.max() / held.mean()),
        "requests max/mean": float(load.max() / load.mean()),
        "requests p99/mean": float(np.percentile(load, 99) / load.mean()),
    }


def ring(names: NDArray[np.uint64]) -> Ring:
    """``PLACES`` places of each name, in order, and whose they are."""
    spots = np.concatenate([np.random.default_rng(int(name)).integers(0, 1 << 64, PLACES, np.uint64) for name in names])
    order = np.argsort(spots)
    return spots[order], np.repeat(names, PLACES)[order]


def owners(at: Ring, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Whose place comes next on the ring."""
    spots, whose = at
    return whose[np.searchsorted(spots, hashes, side="right") % len(spots)]


if __name__ == "__main__":
    main()
