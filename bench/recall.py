"""Is a fact planted anywhere in a million tokens found again, and does the model then answer?

One history is read once; every trial has planted its own fact at its own depth before that, and asks for it in its own
turn. After the turn's first refocus the blocks of key and value must stand raw in the working context ("opened").
"Answered" is the share of replies that hold the value exactly: opened but not answered is the language model's failure,
not the focus's. Each question's turn is rewound, so that no answer can be read off an earlier one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.common import BUNDLE, Bench, bench_engine, report, resident_memory
from bench.text import novel_ids
from mc_core.focus.focus_config import FocusConfig
from mc_core.session.session import Session

ADJECTIVES = [
    "amber",
    "brave",
    "crimson",
    "dusty",
    "eager",
    "frosty",
    "gentle",
    "hollow",
    "ivory",
    "jolly",
    "keen",
    "lunar",
    "mellow",
    "noble",
    "olive",
    "proud",
]
NOUNS = [
    "anchor",
    "badger",
    "canyon",
    "dagger",
    "ember",
    "falcon",
    "glacier",
    "harbor",
    "island",
    "jungle",
    "kettle",
    "lantern",
    "meadow",
    "needle",
    "otter",
]


@dataclass(frozen=True)
class Fact:
    """A key-value pair, the token range of its sentence, and where in it the key begins, the value being its end."""

    key: str
    value: str
    start: int
    end: int
    key_start: int


def plant(
    bench: Bench, ids: NDArray[np.int32], trials: int, digits: int, seed: int
) -> tuple[NDArray[np.int32], list[Fact]]:
    """Put one fact a trial into the text, at evenly spread depths, at arbitrary places within a block."""
    rng = np.random.default_rng(seed)
    keys = rng.permutation([f"{a}-{n}" for a in ADJECTIVES for n in NOUNS])[:trials]
    depths = np.sort(rng.choice(len(ids), size=trials, replace=False))
    parts, facts, at, length = [], [], 0, 0
    for key, depth in zip(keys, depths, strict=True):
        value = "".join(str(d) for d in rng.integers(0, 10, digits))
        needle = bench.bundle.tokenizer.encode(f" One of the special magic numbers for {key} is: {value}. ")
        parts += [ids[at:depth], needle]
        length += depth - at
        before = len(bench.bundle.tokenizer.encode(" One of the special magic numbers for"))
        facts.append(Fact(str(key), value, int(length), int(length + len(needle)), int(length + before)))
        length, at = length + len(needle), depth
    return np.concatenate([*parts, ids[at:]]), facts


def opened(session: Session, start: int, end: int) -> bool:
    """Whether every block that the tokens [start, end) touch stands raw."""
    k = session.block_size
    return set(range(start // k, (end - 1) // k + 1)) <= set(session.raw_blocks().tolist())


def find_and_answer(bench: Bench, session: Session, fact: Fact, tokens: int) -> tuple[bool, bool, bool]:
    """Ask for a fact -> (key and value opened by the first refocus, its whole sentence opened, answered right).

    The session is rewound to ``tokens`` again.
    """
    question = f"What is the special magic number for {fact.key} mentioned in the provided text?"
    # One token: the first refocus of the turn, and nothing after it.
    bench.ask(session, question, 1)
    found = opened(session, fact.key_start, fact.end)
    whole = opened(session, fact.start, fact.end)
    bench.engine.rewind(session, tokens).result()
    reply = bench.ask(session, question, 48)
    bench.engine.rewind(session, tokens).result()
    return found, whole, fact.value in reply.text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--text", type=Path, help="UTF-8 text to use as history; made-up prose by default")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--digits", type=int, default=7)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--lens", default="lexical")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    focus = FocusConfig(budget=options.budget, lens=options.lens)
    with bench_engine(options.model, focus=focus) as bench:
        haystack = novel_ids(bench.bundle.tokenizer, options.tokens, options.text)
        ids, facts = plant(bench, haystack, options.trials, options.digits, options.seed)
        session = bench.session("recall")
        started = time.perf_counter()
        tokens = bench.engine.ingest(session, ids).result()
        bench.engine.commit(session).result()
        ingest_seconds = time.perf_counter() - started
        found, wholes, right, straddling, right_straddling = 0, 0, 0, 0, 0
        by_depth: dict[int, list[int]] = {}
        for fact in facts:
            is_open, is_whole, is_right = find_and_answer(bench, session, fact, tokens)
            wholes += is_whole
            found, right = found + is_open, right + is_right
            across = fact.start // session.block_size != (fact.end - 1) // session.block_size
            straddling, right_straddling = straddling + across, right_straddling + (across and is_right)
            row = by_depth.setdefault(10 * fact.start // tokens * 10, [0, 0, 0])
            row[0], row[1], row[2] = row[0] + 1, row[1] + is_open, row[2] + is_right
        rows = [
            {"depth %": depth, "trials": n, "opened": o, "answered": a} for depth, (n, o, a) in sorted(by_depth.items())
        ]
        summary = {
            "history": tokens,
            "trials": len(facts),
            "opened": found / len(facts),
            "opened_with_all_of_its_sentence": wholes / len(facts),
            "answered": right / len(facts),
            "answered_across_a_border": right_straddling / max(1, straddling),
            "answered_within_a_block": (right - right_straddling) / max(1, len(facts) - straddling),
            "ingest_tokens_per_second": tokens / ingest_seconds,
            "resident_bytes": resident_memory(),
        }
        report("recall", rows, summary, options.save)


if __name__ == "__main__":
    main()
