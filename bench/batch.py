"""What do sessions that decode together get: all of them in tokens a second, and each of them in even shares?

Physics: a step reads the weights once for all sessions, but the keys and values of each; so the total grows with the
number of sessions until reading slabs, or arithmetic, is what a step consists of. Numbers of sessions are measured in
turn, round after round, so that a busy machine disturbs all of them alike. Each session has a history that fills its
context. What is counted lies between the last first token and the first end, when all of them decode: tokens a second
of all, the slowest session's share of the fastest's, seconds between two tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.common import BUNDLE, Bench, Timeline, bench_engine, report
from bench.text import novel_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.session.session import Session

QUESTION = "Who is the captain, and what did he say to the others?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--history", type=int, default=4_000)
    parser.add_argument("--reply", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.sessions, options.rounds, options.reply = [1, 2, 8], 1, 32
    config = EngineConfig(max_sessions=max(options.sessions))
    weights, focus = getattr(torch, options.weights), FocusConfig(budget=options.budget)
    with bench_engine(options.model, device=options.device, dtype=weights, focus=focus, config=config) as bench:
        rows, summary = measured(bench, options.sessions, options.history, options.reply, options.rounds, options.text)
    chosen = {name: getattr(options, name) for name in ("weights", "device", "budget", "history", "reply", "rounds")}
    report("batch", rows, summary | chosen, options.save)


def measured(
    bench: Bench, counts: list[int], history: int, reply: int, rounds: int, text: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each number of sessions, and their totals against the first's."""
    ids = novel_ids(bench.bundle.tokenizer, history, text)
    sessions = [bench.read(bench.session(f"batch-{number}"), ids) for number in range(max(counts))]
    for session in sessions:
        bench.ask(session, QUESTION, 2, ignore_eos=True)  # slabs are filled, code is warm
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for count in rng.permutation(counts).tolist():
            found[count].append(together(bench, sessions[:count], reply))
    rows = [_row(count, found[count]) for count in counts]
    base = found[counts[0]]
    ratios = {
        f"total_{count}_to_{counts[0]}": median(a["rate"] / b["rate"] for a, b in zip(found[count], base, strict=True))
        for count in counts[1:]
    }
    return rows, ratios


def together(bench: Bench, sessions: list[Session], reply: int) -> dict[str, Any]:
    """One reply of each session, all at once."""
    turns = [bench.start(session, QUESTION, reply, ignore_eos=True) for session in sessions]
    for turn in turns:
        turn.wait()
    began = max(turn.submitted + turn.deltas[0] for turn in turns)
    ended = min(turn.submitted + turn.deltas[-1] for turn in turns)
    within = [_within(turn, began, ended) for turn in turns]
    return {
        "rate": sum(map(len, within)) / max(1e-9, ended - began),
        "share": min(map(len, within)) / max(1, *map(len, within)),
        "gaps": [gap for turn in turns for gap in turn.gaps],
    }


def _within(turn: Timeline, began: float, ended: float) -> list[float]:
    return [at for at in turn.deltas if began < turn.submitted + at <= ended]


def _row(count: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    gaps = 1e3 * np.concatenate([run["gaps"] for run in runs])
    p50, p95, p99 = np.percentile(gaps, (50, 95, 99)).tolist()
    rate = median(run["rate"] for run in runs)
    return {
        "sessions": count,
        "tokens/s": rate,
        "each": rate / count,
        "slowest/fastest": min(run["share"] for run in runs),
        "gap p50 ms": p50,
        "p95": p95,
        "p99": p99,
    }


if __name__ == "__main__":
    main()
