"""What does a model take: seconds to load, memory, tokens a second?

Each line is a process of its own. Memory is what it holds beyond what it held before it loaded the model, with
the slab of one session; prefill is a prompt of some hundred tokens read at once; decode is one reply alone. Numbers of
one run are comparable; a busy machine disturbs them all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.common import BUNDLE, bench_engine, report, resident_memory
from bench.text import prose
from mc_core.engine.engine_config import EngineConfig
from server.fetch import SMOLLM2, fetch, model_cache

REPLY = 64


def measure(model: Path, dtype: str, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    before, began = resident_memory(), time.perf_counter()
    with bench_engine(model, dtype=getattr(torch, dtype), config=EngineConfig(max_sessions=1)) as bench:
        loaded = time.perf_counter() - began
        prefill, decode = [], []
        for number in range(rounds + 1):
            session = bench.session(f"s{number}")
            told = bench.ask(session, prose(36, seed=number), REPLY, ignore_eos=True)
            assert told.finished is not None
            if number:  # the first one warms up
                prefill.append(told.finished.usage.prompt_tokens / told.finished.context.prefill_seconds)
                decode.append((REPLY - 1) / (told.deltas[-1] - told.deltas[0]))
        return {
            "model": bench.bundle.name,
            "dtype": dtype,
            "load s": loaded,
            "MB": (resident_memory() - before) / 1e6,
            "prefill tokens/s": median(prefill),
            "decode tokens/s": median(decode),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", help="the bundled model and SmolLM2 by default")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    if options.one:
        print(json.dumps(measure(options.model[0], options.dtype[0], options.rounds)))
        return
    rows = []
    for model in options.model or [BUNDLE, fetch(SMOLLM2, model_cache())]:
        for dtype in options.dtype:
            command = [sys.executable, "-m", "bench.models", "--one", "--model", str(model), "--dtype", dtype]
            done = subprocess.run([*command, "--rounds", str(options.rounds)], stdout=subprocess.PIPE, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    report("models", rows, {"threads": torch.get_num_threads()}, options.save)


if __name__ == "__main__":
    main()
