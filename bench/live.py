"""What does it cost to be looked at, and to tell what a reply stood on?

Three questions. A strip of ten million tokens: how many bytes and milliseconds, with few and with thousands of places
opened all over the history? (A strip is made of columns, off the engine's thread; what the engine does is take a look,
which is a few references.) A reply while nobody follows its session, and while some do: the engine takes one look each
refocus, so what a token costs should stay. And a reply that adds up its attention: one product more for each measured
layer and token, over the slots that attention reads anyway. Each pair is asked in random order, round after round, so
that a noisy machine disturbs both alike; medians of paired ratios are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import orjson

from bench.common import BUNDLE, Bench, bench_engine, report
from bench.text import novel_ids
from mc_core.context.working_context import WorkingContext
from mc_core.engine.observer import Moment, SilentObserver
from mc_core.focus.reasons import Noted
from mc_core.session.look import Look
from server.apis.focus.format import strip_body
from server.live.follower import Seen
from server.live.followers import Followers

HISTORY = 10_000_000


class Followed(SilentObserver):
    """The engine's observer, with followers that read on a loop of their own."""

    def __init__(self) -> None:
        self.followers = Followers()
        self.looks: list[float] = []

    def moved(self, session_id: str, moment: Moment, look: Callable[[], Look]) -> None:
        started = time.perf_counter()
        self.followers.moved(session_id, moment, look)
        self.looks.append(time.perf_counter() - started)


def strips(places: int) -> dict[str, Any]:
    """A context of 10 M tokens in which so many blocks stand raw, and one in which half of them are others."""
    rng = np.random.default_rng(0)
    blocks = np.sort(rng.choice(HISTORY // 32 - 8, 2 * places, replace=False))
    seen = []
    for chosen in (blocks[::2], np.concatenate([blocks[::4], blocks[1::4]])):
        wc = WorkingContext(32, 1 << 18, 128, gist_cost=0)
        wc.cover(HISTORY)
        wc.choose([(block * 32, block * 32 + 32) for block in np.sort(chosen).tolist()])
        noted = Noted(dict.fromkeys(chosen.tolist(), "asked"), True)
        # Reasons as they are noted: nothing is pinned by hand.
        free = WorkingContext(32, 1 << 18, 128, gist_cost=0).protection
        seen.append(Seen(Look(wc.entries, free, wc.budget, 0.1, 0, 0, noted, None), "interval"))
    taken, size = [], 0
    for _ in range(20):
        started = time.thread_time()
        size = len(orjson.dumps(strip_body(seen[1], seen[0])))
        taken.append(1e3 * (time.thread_time() - started))
    entries = len(seen[1].look.entries)
    return {"case": f"strip, {places} places", "entries": entries, "bytes": size, "CPU ms": median(taken)}


class Speed(NamedTuple):
    """tokens: a second. cost: milliseconds of the processor a token."""

    tokens: float
    cost: float


async def _follow(followers: Followers, session: str, stop: asyncio.Event, count: int) -> None:
    async def read() -> None:
        follower = followers.add(session)
        before: Seen | None = None
        while not stop.is_set():
            seen = await follower.next(0.2)
            if isinstance(seen, Seen):
                orjson.dumps(await asyncio.to_thread(strip_body, seen, before))
                before = seen
                await asyncio.sleep(0.05)
        followers.remove(session, follower)

    await asyncio.gather(*(read() for _ in range(count)))


def speed(bench: Bench, session: Any, reply: int, **options: Any) -> Speed:
    """Of one reply."""
    began: list[float] = []
    line = bench.ask(
        session,
        "What happened to the captain, and who was there?",
        reply,
        ignore_eos=True,
        on_first=lambda: began.append(time.process_time()),
        **options,
    )
    return Speed((reply - 1) / (line.deltas[-1] - line.deltas[0]), 1e3 * (time.process_time() - began[0]) / (reply - 1))


def compared(name: str, rounds: int, plain: Callable[[], Speed], other: Callable[[], Speed]) -> dict[str, Any]:
    rng, pairs = np.random.default_rng(0), []
    for number in range(rounds + 1):
        told = {}
        for which in rng.permutation(2).tolist():
            told[which] = (plain, other)[which]()
        if number:  # the first round warms up
            pairs.append((told[0], told[1]))
    return {
        "case": name,
        "tokens/s without": median(a.tokens for a, _ in pairs),
        "tokens/s with": median(b.tokens for _, b in pairs),
        "CPU ms/token without": median(a.cost for a, _ in pairs),
        "CPU ms/token with": median(b.cost for _, b in pairs),
        "ratio": median(b.cost / a.cost for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--history", type=int, default=64_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--followers", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    drawn = [strips(places) for places in (200, 3_500)]
    observer = Followed()
    with bench_engine(options.model, observer=observer) as bench:
        ids = novel_ids(bench.bundle.tokenizer, options.history)
        session = bench.read(bench.session("history"), ids)

        def ask(**more: Any) -> Speed:
            return speed(bench, session, options.reply, **more)

        def followed() -> Speed:
            async def both() -> Speed:
                stop = asyncio.Event()
                reading = asyncio.create_task(_follow(observer.followers, session.id, stop, options.followers))
                await asyncio.sleep(0)
                told = await asyncio.to_thread(ask)
                stop.set()
                await reading
                return told

            return asyncio.run(both())

        observer.looks.clear()
        ask()
        unseen = median(observer.looks)
        rows = [
            compared(f"{options.followers} followers", options.rounds, ask, followed),
            compared("sources", options.rounds, ask, lambda: ask(sources=True)),
        ]
    summary = {
        **{f"strip_bytes_{place}": row["bytes"] for place, row in zip((200, 3_500), drawn, strict=True)},
        **{f"strip_cpu_ms_{place}": row["CPU ms"] for place, row in zip((200, 3_500), drawn, strict=True)},
        "unseen_us_a_refocus": 1e6 * unseen,
        "followed_cpu_ratio": rows[0]["ratio"],
        "sources_cpu_ratio": rows[1]["ratio"],
    }
    report("strips", drawn, {}, False)
    report("live", rows, summary, options.save)


if __name__ == "__main__":
    main()
