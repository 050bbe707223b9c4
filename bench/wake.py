"""How long until the first token of a session that was idle: warm, woken, restored?

Physics: a warm session still has its slab, and reads the question alone. A woken one is in memory, but another took its
slab: its working context comes from a file (``kv_folder``), or from what ``recent_kv_bytes`` kept (block repair); what
neither has is computed anew. A restored one was in the store alone, which is read first. The three are measured in
turn, round after round, in one engine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.common import BUNDLE, Bench, bench_engine, report
from bench.text import novel_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.session.session import Session

STATES = ("warm", "woken", "restored")
QUESTION = "And what happened after that?"


class Idler:
    """A session that is brought into each state, and another that takes its slab: there is one for both."""

    def __init__(self, bench: Bench, history: int, text: Path | None) -> None:
        ids = novel_ids(bench.bundle.tokenizer, history, text)
        self.bench, self.session = bench, bench.read(bench.session("idle"), ids)
        self._other = bench.read(bench.session("other"), ids[:64])
        self._ask(self.session)

    def asked(self, state: str) -> dict[str, float]:
        """Seconds to the first token of a question, all counted that the state costs."""
        if state == "warm":
            self._ask(self.session)
        else:
            self._leave(self.session)
            self._ask(self._other)
        if state == "restored":
            self.bench.engine.release(self.session).result()
        began, spent = time.perf_counter(), time.process_time()
        if state == "restored":
            self.session = self.bench.load(self.session.id)
        found, at_first = time.perf_counter() - began, list[float]()
        turn = self._ask(self.session, lambda: at_first.append(time.process_time()))
        assert turn.finished is not None
        context = turn.finished.context
        return {
            "open": found,
            "first": found + turn.deltas[0],
            "processor": at_first[0] - spent,
            "computed": context.kv_recomputed,
        }

    def _leave(self, session: Session) -> None:
        """Idle for so long that its slab was written to a file."""
        keeper = self.bench.engine.core.keeper
        saving = None if keeper is None else self.bench.engine.call(lambda: keeper.save(session)).result()
        if saving is not None:
            saving.result()

    def _ask(self, session: Session, on_first: Callable[[], None] = lambda: None) -> Any:
        return self.bench.ask(session, QUESTION, 2, on_first=on_first, ignore_eos=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--repair", default=None, help="the bundle's own by default")
    parser.add_argument("--history", type=int, default=64_000)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--no-files", action="store_true", help="keep no slab as a file")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.history = 2, 8_000

    focus, weights, rng = FocusConfig(budget=options.budget), getattr(torch, options.weights), np.random.default_rng(0)
    found: dict[str, list[dict[str, float]]] = {state: [] for state in STATES}
    with ExitStack() as stack:
        folder = None if options.no_files else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = EngineConfig(max_sessions=1, kv_folder=folder)
        bench = stack.enter_context(
            bench_engine(options.model, dtype=weights, focus=focus, config=config, repair=options.repair)
        )
        idler = Idler(bench, options.history, options.text)
        for _ in range(options.rounds):
            for state in rng.permutation(STATES).tolist():
                found[state].append(idler.asked(state))
        repair = bench.engine.core.runner.mode
    rows = [_row(state, runs) for state, runs in found.items()]
    summary: dict[str, Any] = {
        f"{state}_to_warm{of}": median(a[key] / b[key] for a, b in zip(found[state], found["warm"], strict=True))
        for state in STATES[1:]
        for of, key in (("", "first"), ("_processor", "processor"))
    }
    chosen = {name: getattr(options, name) for name in ("weights", "history", "budget", "rounds", "no_files")}
    report("wake", rows, summary | chosen | {"repair": repair}, options.save)


def _row(state: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "state": state,
        "first token ms": 1e3 * median(run["first"] for run in runs),
        "least": 1e3 * min(run["first"] for run in runs),
        "of the processor ms": 1e3 * median(run["processor"] for run in runs),
        "of it, opening ms": 1e3 * median(run["open"] for run in runs),
        "units computed": median(run["computed"] for run in runs),
    }


if __name__ == "__main__":
    main()
