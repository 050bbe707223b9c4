"""All that is to be known of a GPU, in one script: a 1 B Llama shape of random weights in bfloat16, through the engine.

Physics: one session's decode step reads every weight once, so the most tokens a second are the memory's bandwidth over
the weights' bytes; the bandwidth is that of a large copy, measured in the same run. Sessions that decode together share
the reading. A refocus costs host work and the repair of what changed. Weights are random, so texts are nonsense; times
are those of any model of that shape. Without a GPU the same code runs in miniature, which says that it runs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.batch import QUESTION, measured
from bench.common import BUNDLE, bench_engine, report
from bench.places import Traces
from bench.text import novel_ids
from mc_core.bundle.bundle import load_bundle
from mc_core.engine.engine_config import EngineConfig
from mc_core.focus.focus_config import FocusConfig
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.loading import save_decoder

LARGE: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 16_384,
}
SMALL = LARGE | {"hidden_size": 128, "intermediate_size": 256, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
SMALL |= {"head_dim": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--budget", type=int, default=8192, help="of the refocus share; the batch has an eighth of it")
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the small shape and short replies, on a GPU too")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    small = options.quick or device == "cpu"
    if small:
        options.sessions, options.budget, options.reply, options.rounds = [1, 4], 2048, 40, 1
    dtype = torch.float32 if device == "cpu" else torch.bfloat16

    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "shape", SMALL if small else LARGE, dtype)
        common: dict[str, Any] = {"device": device, "dtype": dtype}
        batch, totals = together(model, options, common)
        refocus = refocus_share(model, options, common)
    step = 1e-3 * batch[0]["gap p50 ms"]
    limit, read = bandwidth(device), weight_bytes(SMALL if small else LARGE, dtype)
    summary = {
        "device_name": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "shape": "small" if small else "1B",
        "weights_GB": read / 1e9,
        "bandwidth_GB_s": limit / 1e9,
        "share_of_bandwidth": read / step / limit,
        **totals,
        "refocus_share": refocus["share"],
        "refocus_ms": refocus["ms"],
        "refocus_budget": options.budget,
    }
    report("gpu", batch, summary, options.save)


def write_model(folder: Path, shape: dict[str, Any], dtype: torch.dtype) -> Path:
    """A Llama of random weights, with the bundled model's tokenizer."""
    folder.mkdir()
    shutil.copy(BUNDLE / "tokenizer.json", folder)
    torch.manual_seed(0)
    save_decoder(folder, Decoder(config_of(shape)).to(dtype), extra={"eos_token_id": 0})
    return folder


def config_of(shape: dict[str, Any]) -> DecoderConfig:
    """With the bundled model's vocabulary."""
    vocabulary = load_bundle(BUNDLE).decoder.config.vocab_size
    return DecoderConfig("llama", vocab_size=vocabulary, tie_word_embeddings=True, **shape)


def weight_bytes(shape: dict[str, Any], dtype: torch.dtype) -> int:
    """What one decode step reads of the weights: all layers, and the output embeddings."""
    config = config_of(shape)
    with torch.device("meta"):
        decoder = Decoder(config)
    return sum(weight.numel() for weight in decoder.parameters()) * dtype.itemsize


def together(
    model: Path, options: argparse.Namespace, common: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sessions that decode together."""
    config, focus = EngineConfig(max_sessions=max(options.sessions)), FocusConfig(budget=max(512, options.budget // 8))
    with bench_engine(model, focus=focus, config=config, **common) as bench:
        return measured(bench, options.sessions, 4 * focus.budget, options.reply, options.rounds)


def refocus_share(model: Path, options: argparse.Namespace, common: dict[str, Any]) -> dict[str, float]:
    """Of a long reply's seconds, those of its refocuses; and milliseconds of one."""
    traces, focus = Traces(), FocusConfig(budget=options.budget)
    with bench_engine(model, focus=focus, config=EngineConfig(max_sessions=1), observer=traces, **common) as bench:
        ids = novel_ids(bench.bundle.tokenizer, 4 * options.budget)
        session, shares, each = bench.read(bench.session("long"), ids), [], []
        for number in range(options.rounds + 1):
            traces.take()
            turn = bench.ask(session, QUESTION, 2 * options.reply, ignore_eos=True)
            seconds = [trace.seconds for trace in traces.take() if trace.reason == "interval"]
            if number or options.rounds == 1:  # else the first one warms up
                shares.append(sum(seconds) / (turn.deltas[-1] - turn.deltas[0]))
                each += seconds
    return {"share": median(shares), "ms": 1e3 * float(np.median(each))}


def bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes, the best of some."""
    source = torch.ones((1 << 30 if device != "cpu" else 1 << 26) // 4, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(6):
        began = time.perf_counter()
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


if __name__ == "__main__":
    main()
