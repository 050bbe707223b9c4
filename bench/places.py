"""What does it cost to go back to a place: a chat that goes to and fro between two texts, with KV kept and without?

Physics: under block repair what a place's keys and values are depends on the place alone. So a place that left the
context lately can come back out of host memory, and a repair then computes the tail. Two engines, one with
``recent_kv_bytes`` and one without, are asked the same in turn. Each question quotes a passage of the one text or of
the other, and is taken back with its reply before the next, so that places are not found in earlier questions. Both
engines see the same working contexts, for these depend on token ids alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.common import BUNDLE, Bench, bench_engine, report
from bench.text import novel_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.engine.observer import RefocusTrace, SilentObserver
from mc_core.focus.focus_config import FocusConfig
from mc_core.session.session import Session

QUOTE = 48
"""Tokens of a passage that a question repeats."""


class Traces(SilentObserver):
    """The refocuses since they were last taken."""

    def __init__(self) -> None:
        self._traces: list[RefocusTrace] = []

    def refocused(self, trace: RefocusTrace) -> None:
        self._traces.append(trace)

    def take(self) -> list[RefocusTrace]:
        traces, self._traces = self._traces, []
        return traces


def asked(bench: Bench, session: Session, traces: Traces, question: str, reply: int) -> dict[str, Any]:
    """One turn, as measured."""
    traces.take()
    history = session.tokens
    timeline = bench.ask(session, question, reply, ignore_eos=True)
    seen = traces.take()
    bench.engine.rewind(session, history).result()
    return {
        "first": timeline.deltas[0],
        "repair": sum(trace.parts["kv_repair"].seconds for trace in seen),
        "computed": sum(trace.kv_recomputed for trace in seen),
        "sought": sum(trace.kv_sought for trace in seen),
        "restored": sum(trace.kv_restored for trace in seen),
        "text": timeline.text,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--text", type=Path, nargs=2, help="two UTF-8 texts; made-up prose by default")
    parser.add_argument("--history", type=int, default=16_000, help="tokens of each text")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--reply", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.history, options.turns = 4_000, 6

    weights, focus = getattr(torch, options.weights), FocusConfig(budget=options.budget)
    kept, without = EngineConfig(max_sessions=1), EngineConfig(max_sessions=1, recent_kv_bytes=0)
    traces = {"kept": Traces(), "without": Traces()}
    common: dict[str, Any] = {"focus": focus, "dtype": weights, "repair": "block"}
    with (
        bench_engine(options.model, config=kept, observer=traces["kept"], **common) as on,
        bench_engine(options.model, config=without, observer=traces["without"], **common) as off,
    ):
        paths = enumerate(options.text or (None, None))
        texts = [novel_ids(on.bundle.tokenizer, options.history, path, seed) for seed, path in paths]
        quotes = [on.bundle.tokenizer.decode(ids[len(ids) // 3 :][:QUOTE]).replace("\ufffd", "") for ids in texts]
        sessions = {}
        for name, bench in (("kept", on), ("without", off)):
            session = bench.session("chat")
            for ids in texts:
                bench.read(session, ids)
            sessions[name] = (bench, session, traces[name])
        found: dict[str, list[dict[str, Any]]] = {"kept": [], "without": []}
        for turn in range(options.turns):
            question = f"Tell me more about this: {quotes[turn % 2]}"
            for name in sorted(sessions, reverse=turn % 2 == 1):
                found[name].append(asked(*sessions[name], question, options.reply))
    rows = [row(name, turns[2:]) for name, turns in found.items()]  # the first two go there for the first time
    pairs = list(zip(found["kept"][2:], found["without"][2:], strict=True))
    summary = {
        "computed_ratio": rows[0]["computed"] / max(1, rows[1]["computed"]),
        "repair_seconds_ratio": median(a["repair"] / b["repair"] for a, b in pairs),
        "first_token_ratio": median(a["first"] / b["first"] for a, b in pairs),
        "same_replies": sum(a["text"] == b["text"] for a, b in pairs) / len(pairs),
        "weights": options.weights,
        "budget": options.budget,
        "turns": len(pairs),
    }
    report("places", rows, summary, options.save)


def row(name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    sought, restored = (sum(turn[key] for turn in turns) for key in ("sought", "restored"))
    return {
        "KV of places": name,
        "computed": sum(turn["computed"] for turn in turns),
        "sought": sought,
        "restored": restored,
        "hit rate": restored / max(1, sought),
        "repair s": sum(turn["repair"] for turn in turns),
        "first token s": median(turn["first"] for turn in turns),
    }


if __name__ == "__main__":
    main()
