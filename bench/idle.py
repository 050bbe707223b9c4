"""Ten thousand idle sessions: what do they cost, and how soon does one of them answer again?

Physics: an idle session is rows in the store. In memory are as many as the settings allow (``max_resident_sessions``,
``max_resident_tokens``); the others left it, the longest unused first, and what their slabs held lies in files, as far
as ``kv_folder_bytes`` goes. To wake one is to read it from the store, to fill a slab from its file, and to read the
question as a warm session does. Sessions are forks of one, which cost a record each; some of them are opened, so that
the process holds what a busy one does, and some of those are asked, leave memory, and are asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.common import BUNDLE, Bench, bench_engine, report, resident_memory
from bench.text import novel_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from server.sessions.forks import fork_at
from server.sessions.host import SessionHost

TENANT, QUESTION = "bench", "And what happened after that?"
ROWS = 8
"""Rows of the table of memory."""


class Sleepers:
    """Sessions of one history, at a host that keeps ``resident`` of them in memory."""

    def __init__(self, bench: Bench, history: int, text: Path | None, resident: int) -> None:
        parent = bench.read(bench.session("parent"), novel_ids(bench.bundle.tokenizer, history, text))
        self.bench, self.parent = bench, parent.id
        bench.engine.release(parent).result()
        bench.store.release(parent.id, parent.fence).result()
        self.host = SessionHost(
            bench.factory, bench.engine, bench.store, model="bench", max_resident=resident, max_implicit=1
        )
        self.ids: list[str] = []

    async def fork(self, count: int) -> None:
        """So many sessions more, in the store alone."""
        record = await self.host.info(self.parent, TENANT)
        for _ in range(count):
            name = await fork_at(self.host, record, record.tokens, implicit=False)
            assert name is not None
            self.ids.append(name)

    async def ask(self, name: str) -> dict[str, float]:
        """Seconds to have a session in memory, and to the first token of a question from there."""
        began = time.perf_counter()
        async with self.host.use(name, TENANT) as lease:
            opened = time.perf_counter() - began
            turn = self.bench.start(lease.session, QUESTION, 2, ignore_eos=True)
            await asyncio.to_thread(turn.wait)
        assert turn.finished is not None
        return {"open": opened, "first": turn.deltas[0], "computed": turn.finished.context.kv_recomputed}

    async def open(self, name: str) -> None:
        """Look at a session, as a page does that lists what it shows."""
        async with self.host.use(name, TENANT):
            pass

    async def leave(self, name: str) -> None:
        """Have a session leave memory, as ``idle_seconds`` does."""
        slot = self.host.residents.get(name, TENANT)
        if slot is not None:
            await self.host.residents.drop(slot)


async def measure(sleepers: Sleepers, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Memory while sessions are opened, then waking."""
    began = time.perf_counter()
    await sleepers.fork(options.sessions)
    forked = time.perf_counter() - began
    opened, rows = sleepers.ids[: options.opened], []
    before = resident_memory()
    for number, name in enumerate(opened, start=1):
        await sleepers.open(name)
        if number % max(1, len(opened) // ROWS) == 0:
            rows.append(
                {
                    "opened so far": number,
                    "in memory": len(sleepers.host.residents),
                    "resident MB": resident_memory() / 1e6,
                }
            )
    asked = opened[: options.asked]
    warm, woken = [], []
    for name in asked:
        await sleepers.ask(name)
        # Twice each: where one question opens places, the same one after it finds them open.
        warm.append(_mean([await sleepers.ask(name) for _ in range(2)]))
        await sleepers.leave(name)
    for name in asked:
        both = []
        for _ in range(2):
            both.append(await sleepers.ask(name))
            await sleepers.leave(name)
        woken.append(_mean(both))
    rates = [wake["first"] / stay["first"] for stay, wake in zip(warm, woken, strict=True)]
    half = rows[len(rows) // 2]["resident MB"]
    summary = {
        "fork_ms": 1e3 * forked / options.sessions,
        "resident_mb_before": before / 1e6,
        "grown_in_second_half_mb": rows[-1]["resident MB"] - half,
        "warm_first_token_ms": 1e3 * median(each["first"] for each in warm),
        "woken_first_token_ms": 1e3 * median(each["first"] for each in woken),
        "store_reads_ms": 1e3 * median(each["open"] for each in woken),
        "woken_to_warm": median(rates),
        "computed_warm": median(each["computed"] for each in warm),
        "computed_woken": median(each["computed"] for each in woken),
    }
    await sleepers.host.close()
    return rows, summary


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--opened", type=int, default=2_000, help="sessions that are opened, one after the other")
    parser.add_argument("--asked", type=int, default=50, help="of these: sessions that are asked, leave, and are woken")
    parser.add_argument("--history", type=int, default=50_000)
    parser.add_argument("--resident", type=int, default=64, help="sessions in memory at most")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.sessions, options.opened, options.asked, options.history, options.resident = 200, 64, 6, 8_000, 16

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = EngineConfig(hot_tokens=262_144, kv_folder=folder)
        focus, weights = FocusConfig(budget=options.budget), getattr(torch, options.weights)
        bench = stack.enter_context(bench_engine(options.model, dtype=weights, focus=focus, config=config))
        sleepers = Sleepers(bench, options.history, options.text, options.resident)
        rows, summary = asyncio.run(measure(sleepers, options))
    names = ("weights", "sessions", "opened", "asked", "history", "resident", "budget")
    report("idle", rows, summary | {name: getattr(options, name) for name in names}, options.save)


if __name__ == "__main__":
    main()
