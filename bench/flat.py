"""Does a token cost the same at any length of history?

Physics: a decode step reads the weights and at most W + K slots of KV, whatever the history; every K tokens a refocus
adds scoring O(W), a look-ahead whose work is bounded, and the repair of the blocks that changed. So time a token and
time to the first token of a turn must not grow with N. The lengths are measured in turn, round after round, so that a
noisy machine disturbs all of them alike; medians over rounds are compared.

A last session has no lens: its context slides over the newest W tokens, as a plain server's cache would, with the same
engine. What all focus costs a token is the difference.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.common import BUNDLE, Bench, bench_engine, report
from bench.text import novel_ids
from mc_core.focus.focus_config import FocusConfig
from mc_core.session.factory import SessionFactory
from mc_core.session.session import Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_000, 64_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--reply", type=int, default=128, help="tokens decoded a turn")
    parser.add_argument("--text", type=Path, help="UTF-8 text to use as history; repeated as needed")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    focus = FocusConfig(budget=options.budget)
    with bench_engine(options.model, dtype=getattr(torch, options.weights), focus=focus) as bench:
        newest = SessionFactory(bench.bundle, replace(focus, lens="recency"))
        sliding = Bench(bench.bundle, bench.engine, newest, bench.store)
        sessions: dict[int | str, Session] = {}
        for tokens in options.tokens:
            ids = novel_ids(bench.bundle.tokenizer, tokens, options.text)
            sessions[tokens] = bench.read(bench.session(f"history-{tokens}"), ids)
        ids = novel_ids(bench.bundle.tokenizer, options.tokens[0], options.text)
        sessions["sliding"] = bench.read(sliding.session("sliding"), ids)
        per_token: dict[int | str, list[float]] = {n: [] for n in sessions}
        first: dict[int | str, list[float]] = {n: [] for n in sessions}
        order = list(sessions)
        rng = np.random.default_rng(0)
        for number in range(options.rounds + 1):
            rng.shuffle(order)
            for tokens in order:
                question = f"What happened to the captain on day {number * 37 % 91}, and who was there?"
                timeline = bench.ask(sessions[tokens], question, options.reply, ignore_eos=True)
                if number:  # the first round warms up
                    first[tokens].append(timeline.deltas[0])
                    per_token[tokens].append((timeline.deltas[-1] - timeline.deltas[0]) / (options.reply - 1))
        rows = [
            {
                "history": tokens,
                "ms/token": 1e3 * median(per_token[tokens]),
                "ms/token min": 1e3 * min(per_token[tokens]),
                "first token ms": 1e3 * median(first[tokens]),
                "first token min": 1e3 * min(first[tokens]),
            }
            for tokens in sessions
        ]
        shortest, longest = options.tokens[0], options.tokens[-1]
        summary = {
            "decode_ratio_last_to_first": _ratio(per_token[longest], per_token[shortest]),
            "first_token_ratio_last_to_first": _ratio(first[longest], first[shortest]),
            "tokens_a_second_to_sliding": _ratio(per_token["sliding"], per_token[longest]),
        }
        summary |= {name: getattr(options, name) for name in ("weights", "budget", "rounds", "reply")}
        report("flat", rows, summary, options.save)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over rounds."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
