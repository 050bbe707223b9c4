"""What does each way of repairing keys and values cost, and what does an approximate one lose?

The same texts are fed to one session a way, in turns: a prompt of some tokens, the rest token by token. The focus
depends on token ids alone, so all of them show the model the same working contexts. ``exact`` recomputes everything
behind the first edit and is the reference. ``incremental`` keeps values that were computed under an older view.
``block`` encodes the history by segments, here of several lengths; for a base that was trained so it is exact under its
own mask, and for a stock base that mask has a price. Losses are the KL divergence of the next-token distribution from
exact's and the difference in NLL of the true next token, with twice its standard error: over the passages' means where
there are eight or more, over tokens else. ``--reference`` computes ``exact`` with weights of another precision, so that
the losses are of repair and precision together. Times are of the processor, so that a busy machine does not disturb
them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.common import BUNDLE, report
from bench.text import novel_ids
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.kv.repair import RepairMode
from mc_core.lab.controller import MCController

PROMPT = 16
ENOUGH = 8
"""Passages, that the spread of their means says how sure the mean of all is."""


@dataclass(frozen=True)
class Way:
    """One way of repair; ``segment`` in tokens, of ``block`` alone; ``refresh_every`` as in ``EngineConfig``."""

    mode: RepairMode
    segment: int | None = None
    refresh_every: int = EngineConfig.refresh_every

    def __str__(self) -> str:
        if self.mode == "incremental":
            return f"{self.mode} {self.refresh_every}"
        return self.mode if self.segment is None else f"{self.mode} {self.segment}"


@dataclass
class Run:
    """What one way did with one text: log probabilities [steps, vocab], true next tokens, seconds for a step."""

    log_probs: Tensor
    targets: list[int]
    first_seconds: float
    seconds: float
    recomputed: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--reference", help="weights of the exact reference; those of --weights by default")
    parser.add_argument("--passages", type=int, default=1, help="of each text, each with the history before it")
    parser.add_argument("--text", type=Path, nargs="*", help="UTF-8 texts; made-up prose by default")
    parser.add_argument("--history", type=int, default=64_000)
    parser.add_argument("--tokens", type=int, default=512, help="read one by one, of each text")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--segments", type=int, nargs="*", default=[128, 256, 512])
    parser.add_argument("--refresh", type=int, nargs="*", default=[8, 32, 1024], help="refocuses between refreshes")
    parser.add_argument("--turn", type=int, default=64, help="tokens of a turn, of which the first 16 are its prompt")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    bundle = load_bundle(options.model, dtype=getattr(torch, options.weights))
    ways = [Way("exact"), *(Way("incremental", None, every) for every in options.refresh)]
    ways += [Way("block", segment) for segment in options.segments]
    texts = [ids for path in options.text or [None] for ids in _passages(bundle, path, options)]
    runs: dict[str, list[Run]] = {}
    if options.reference:
        wide = load_bundle(options.model, dtype=getattr(torch, options.reference))
        runs[f"exact {options.reference}"] = [run(wide, Way("exact"), ids, options) for ids in texts]
    runs |= {str(way): [run(bundle, way, ids, options) for ids in texts] for way in ways}
    rows = [_row(name, of_way, next(iter(runs.values()))) for name, of_way in runs.items()]
    base = rows[0]
    summary = {
        f"{row['repair']}_{name}": row[key] if name == "dnll" else row[key] / max(1e-12, base[key])
        for row in rows[1:]
        for name, key in (("dnll", "dNLL"), ("time_ratio", "ms/token"), ("first_ratio", "first ms"))
    }
    report("repair", rows, summary, options.save)


def run(bundle: Bundle, way: Way, ids: NDArray[np.int32], options: argparse.Namespace) -> Run:
    """Feed one text."""
    segments = {} if way.segment is None else {"segment_blocks": max(1, way.segment // bundle.block_size)}
    config = EngineConfig(max_sessions=1, refresh_every=way.refresh_every, **segments)
    controller = MCController(bundle, FocusConfig(budget=options.budget), repair=way.mode, engine=config)
    began = time.process_time()
    step = controller.begin_inference_session(ids[: options.history])
    rows, targets, recomputed, started = [], [], [0], time.process_time()
    at = options.history
    while at < options.history + options.tokens - PROMPT:
        prompt = (at - options.history) % options.turn == 0
        count = PROMPT if prompt else 1
        step = controller.inference_step(ids[at : at + count])
        at += count
        rows.append(step.logits.log_softmax(-1))
        targets.append(int(ids[at]))
        if step.report is not None:
            recomputed.append(step.context.kv_recomputed)
    seconds = (time.process_time() - started) / len(rows)
    return Run(torch.stack(rows), targets, started - began, seconds, float(np.mean(recomputed[1:] or recomputed)))


def _passages(bundle: Bundle, path: Path | None, options: argparse.Namespace) -> list[NDArray[np.int32]]:
    """As many stretches of a text as are asked for, one behind the other."""
    count = options.history + options.tokens
    ids = novel_ids(bundle.tokenizer, options.passages * count, path)
    return list(ids.reshape(options.passages, count))


def _joined(runs: list[Run]) -> Tensor:
    return torch.cat([one.log_probs for one in runs])


def _row(name: str, runs: list[Run], exact: list[Run]) -> dict[str, str | float]:
    log_probs, reference = _joined(runs), _joined(exact)
    targets = torch.tensor([target for one in exact for target in one.targets])
    kl = (reference.exp() * (reference - log_probs)).sum(-1)
    nll = -log_probs.gather(1, targets[:, None])[:, 0]
    worse = nll + reference.gather(1, targets[:, None])[:, 0]
    means = worse.view(len(runs), -1).mean(1) if len(runs) >= ENOUGH else worse
    return {
        "repair": name,
        "ms/token": 1e3 * float(np.mean([one.seconds for one in runs])),
        "first ms": 1e3 * float(np.median([one.first_seconds for one in runs])),
        "recomputed/refocus": float(np.mean([one.recomputed for one in runs])),
        "KL mean": float(kl.mean()),
        "KL p95": float(kl.quantile(0.95)),
        "NLL": float(nll.mean()),
        "dNLL": float(worse.mean()),
        "+-": 2 * float(means.std()) / len(means) ** 0.5,
    }


if __name__ == "__main__":
    main()
