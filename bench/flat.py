"""Does a token cost the same at any length of history?

Physics: a decode step reads the weights and at most W + K slots of KV, whatever the history; every K tokens a refocus
adds scoring O(W), a look-ahead whose work is bounded, and the repair of the blocks that changed. So time a token and
time to the first token of a turn must not grow with N. The lengths are measured in turn, round after round, so that a
noisy machine disturbs all of them alike; medians over rounds are compared.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from statistics import median

import numpy as np

from bench.common import BUNDLE, bench_engine, report
from bench.text import novel_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_000, 64_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--reply", type=int, default=128, help="tokens decoded a turn")
    parser.add_argument("--text", type=Path, help="UTF-8 text to use as history; repeated as needed")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    with bench_engine(options.model) as bench:
        sessions = {}
        for tokens in options.tokens:
            session = bench.session(f"history-{tokens}")
            ids = novel_ids(bench.bundle.tokenizer, tokens, options.text)
            bench.engine.ingest(session, ids).result()
            bench.engine.commit(session).result()
            sessions[tokens] = session
        per_token: dict[int, list[float]] = {n: [] for n in sessions}
        first: dict[int, list[float]] = {n: [] for n in sessions}
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
        paired = [b / a for a, b in itertools.zip_longest(per_token[shortest], per_token[longest])]
        paired_first = [b / a for a, b in itertools.zip_longest(first[shortest], first[longest])]
        summary = {
            "decode_ratio_last_to_first": median(paired),
            "first_token_ratio_last_to_first": median(paired_first),
            "rounds": options.rounds,
            "reply": options.reply,
        }
        report("flat", rows, summary, options.save)


if __name__ == "__main__":
    main()
