"""What does each way of repairing keys and values cost, and what does the approximate one lose?

The same text is fed, token by token, to one session a mode; the focus depends on token ids alone, so all of them show
the model the same working contexts. ``exact`` recomputes everything behind the first edit and is the reference.
``incremental`` keeps values that were computed under an older view: its loss is the KL divergence of its next-token
distribution from exact's, and the difference in NLL of the true next token. ``block`` is exact under its own mask, so
its NLL tells what that mask costs this base.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.common import BUNDLE, report
from bench.text import novel_ids
from mc_core.bundle.bundle import load_bundle
from mc_core.lab.controller import MCController


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--text", type=Path, help="UTF-8 text; made-up prose by default")
    parser.add_argument("--history", type=int, default=64_000)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    bundle = load_bundle(options.model)
    ids = novel_ids(bundle.tokenizer, options.history + options.tokens, options.text)
    modes = ["exact", "incremental", "block"]
    runs = {mode: run(MCController(bundle, repair=mode), ids, options) for mode in modes}
    reference, targets = runs["exact"][0], torch.from_numpy(ids[options.history + 1 :].astype(np.int64))
    rows = []
    for mode, (log_probs, seconds, recomputed) in runs.items():
        kl = (reference.exp() * (reference - log_probs)).sum(-1)
        nll = -log_probs[:-1].gather(1, targets[:, None])[:, 0]
        rows.append(
            {
                "repair": mode,
                "ms/token": 1e3 * seconds / options.tokens,
                "recomputed/refocus": recomputed,
                "KL to exact mean": float(kl.mean()),
                "KL p95": float(kl.quantile(0.95)),
                "NLL": float(nll.mean()),
            }
        )
    base = rows[0]
    summary = {
        f"{row['repair']}_{name}": row[key] - base[key] if name == "dnll" else row[key] / max(1e-12, base[key])
        for row in rows[1:]
        for name, key in (("dnll", "NLL"), ("time_ratio", "ms/token"), ("recomputed_ratio", "recomputed/refocus"))
    }
    report("repair", rows, summary, options.save)


def run(controller: MCController, ids: np.ndarray, options: argparse.Namespace) -> tuple[Tensor, float, float]:
    """Feed the text -> (log probabilities [tokens, vocab], seconds, mean units recomputed a refocus)."""
    step = controller.begin_inference_session(ids[: options.history])
    rows, recomputed, started = [], [], time.perf_counter()
    for at in range(options.history, options.history + options.tokens):
        step = controller.inference_step(ids[at : at + 1])
        rows.append(step.logits.log_softmax(-1))
        if step.report is not None:
            recomputed.append(step.context.kv_recomputed)
    return torch.stack(rows), time.perf_counter() - started, float(np.mean(recomputed))


if __name__ == "__main__":
    main()
