"""A server that was killed in the middle of its work: when are its sessions served again?

Physics: a restarted server has the name that it had, and so its leases; nothing is to be waited for. Each session is
read from the store by its first request, all of them at once, and answers when its slab is filled: from the file that
an idle one left, or by computing its working context. Measured is from the first 200 of ``/ready`` to the first token
of each session, all of which are asked at once; that none is refused; and the same of a second round, which is warm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import httpx

from bench.common import report
from bench.serving import free_port, process, wait_until, words_in
from bench.text import prose

ASK = {"messages": [{"role": "user", "content": "And what happened after that?"}], "max_tokens": 2, "stream": True}
SAVED_AFTER = 4.0
"""Seconds after which the files of idle sessions are there, if no slab is free."""


def is_ready(client: httpx.Client) -> bool:
    return client.get("/ready").status_code == 200


def first_token(client: httpx.Client, session: str, began: float) -> tuple[int, float]:
    """The status of a turn, and when its first token came, in seconds since ``began``."""
    model = client.get("/v1/models").json()["data"][0]["id"]
    body = {**ASK, "model": model, "session_id": session}
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        times = [time.perf_counter() - began for line in reply.iter_lines() if words_in(line)]
    return reply.status_code, times[0] if times else time.perf_counter() - began


def ask_all(client: httpx.Client, sessions: Sequence[str], began: float) -> list[tuple[int, float]]:
    """The same of all sessions at once."""
    with ThreadPoolExecutor(len(sessions)) as pool:
        return list(pool.map(lambda name: first_token(client, name, began), sessions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--sentences", type=int, default=4_000, help="of each history, about 12 tokens each")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("flags", nargs="*", help="of megacontext serve, behind --")
    options = parser.parse_args()
    if options.quick:
        options.sessions, options.sentences = 4, 400

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        port = str(free_port())
        command = ["server.cli", "serve", "--port", port, "--store", f"sqlite:///{folder}/s.sqlite"]
        # Files are written soon where all slabs are given out.
        command += ["--max-sessions", str(options.sessions), *options.flags]
        sessions: list[str] = []
        for life in ("before the kill", "after it"):
            started = time.perf_counter()
            with (
                process(*command) as running,
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600.0) as client,
            ):
                wait_until(partial(is_ready, client), "the server")
                ready = time.perf_counter()
                if not sessions:
                    text = prose(options.sentences)
                    for _ in range(options.sessions):
                        sessions.append(client.post("/v1/sessions", json={}).json()["id"])
                        client.post(f"/v1/sessions/{sessions[-1]}/ingest", content=text).raise_for_status()
                for what in ("first", "second"):
                    since_ready = life == "after it" and what == "first"
                    found = ask_all(client, sessions, ready if since_ready else time.perf_counter())
                    times = [seconds for _, seconds in found]
                    rows.append(
                        {
                            "server": life,
                            "round": what,
                            "ready after s": ready - started,
                            "refused": sum(status != 200 for status, _ in found),
                            "first token s": median(times),
                            "last of them s": max(times),
                        }
                    )
                time.sleep(SAVED_AFTER)
                running.kill()
    restarted = next(row for row in rows if row["server"] == "after it")
    summary = {"all_served_s": restarted["last of them s"], "refused": restarted["refused"]}
    report("restart", rows, summary | {"sessions": options.sessions, "sentences": options.sentences}, options.save)


if __name__ == "__main__":
    main()
