"""What does it bring to read guesses ahead (prompt lookup decoding)?

Physics: one turn that decodes alone on a CPU waits for weights and for the host; five tokens at once cost little more
than one. How many of them are right depends on what is asked: who copies out, corrects or lists repeats what stands
there already, who tells something new does not. The same questions are asked with and without guesses, in turn.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import BUNDLE, Bench, bench_engine, report
from bench.text import prose
from mc_core.engine.core import LOOKUP_TOKENS
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig

TASKS = {
    "correct": "Correct the spelling of this text and write it out again: {text}",
    "details": "{text} What happens in this text? Answer with details.",
    "quote": "{text} Quote the two most important sentences of this text.",
    "list": "List ten facts about {word} as bullet points.",
    "code": "Write a Python function that counts the word '{word}' in a file, then one that replaces it.",
    "tell": "Tell me about {word}.",
}
WORDS = ("Paris", "bread", "horses", "the moon", "chess", "rivers", "music", "winter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--guesses", type=int, default=LOOKUP_TOKENS)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--text", type=Path, help="prose that is asked about; made up without it")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--reply", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.reply = 2, 64
    torch.set_num_threads(options.threads)

    focus, weights = FocusConfig(budget=options.budget), getattr(torch, options.weights)
    text = options.text.read_text(encoding="utf-8") if options.text else prose(400)
    rows = []
    with ExitStack() as stack:
        benches = [
            stack.enter_context(
                bench_engine(options.model, dtype=weights, focus=focus, config=EngineConfig(2, lookup_tokens=guesses))
            )
            for guesses in (0, options.guesses)
        ]
        for temperature in options.temperatures:
            for task, asked in TASKS.items():
                found = [
                    [
                        decoded(bench, f"{task}-{temperature}-{at}", asked, text, at, temperature, options)
                        for bench in benches
                    ]
                    for at in range(options.rounds)
                ]
                rows.append({"task": task, "temperature": temperature, **figures(found)})
    means = {
        f"{t:g}": float(np.mean([row["ratio"] for row in rows if row["temperature"] == t]))
        for t in options.temperatures
    }
    chosen = {name: getattr(options, name) for name in ("weights", "guesses", "reply", "rounds", "threads")}
    report("lookup", rows, {"ratio": means, **chosen}, options.save)


def decoded(
    bench: Bench, name: str, asked: str, text: str, at: int, temperature: float, options: argparse.Namespace
) -> dict[str, Any]:
    """One reply: tokens a second after the first, by the processor and by the wall."""
    part = text[1_500 * at :][:1_000]
    question = asked.format(text=part, word=WORDS[at % len(WORDS)])
    at_first = list[tuple[float, float]]()
    turn = bench.ask(
        bench.session(name),
        question,
        options.reply,
        on_first=lambda: at_first.append((time.perf_counter(), time.process_time())),
        temperature=temperature,
        seed=at,
    )
    wall, spent = time.perf_counter() - at_first[0][0], time.process_time() - at_first[0][1]
    return {"wall": wall, "spent": spent, "tokens": len(turn.deltas) - 1, "text": turn.text}


def figures(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Of all rounds together, without guesses and with."""
    tokens, wall, spent = (
        np.array([[run[key] for run in pair] for pair in found]).sum(0) for key in ("tokens", "wall", "spent")
    )
    rate = tokens / wall
    return {
        "tokens/s one by one": float(rate[0]),
        "with guesses": float(rate[1]),
        "ratio": float(rate[1] / rate[0]),
        "of the processor": float((tokens / spent)[1] / (tokens / spent)[0]),
        "same reply": sum(one["text"] == other["text"] for one, other in found) / len(found),
    }


if __name__ == "__main__":
    main()
