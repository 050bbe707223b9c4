"""How does this server compare with what runs the same file: transformers in float32, and llama.cpp?

Each peer lives in a process of its own and is asked in turn, round after round, so that a busy machine disturbs all of
them alike. A text of so many tokens is pasted, then a question is asked about it: seconds until the first token of the
answer, tokens a second over the whole of a reply (refocuses and repair included), resident memory. Here a text is read
when it is pasted (``paste s``); a peer reads it with the question. llama.cpp needs llama-cpp-python, and is left out
without it; whatever is longer than a peer's window it cannot do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.common import Bench, bench_engine, report, resident_memory
from bench.text import novel_ids
from mc_core.session.session import Session

QUESTION = "Who is the captain, and what did he say to the others?"
Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--text", type=Path, help="UTF-8 text; made-up prose by default")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 7900, 32_000, 128_000, 1_000_000])
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--weights", default="int8", help="ours: float32, bfloat16 or int8")
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-clock", action="store_true", help="count the processor's seconds, on a shared machine")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    peers = {"megacontext": ours, "transformers": transformers_float32, "llama.cpp": llama_cpp}
    missing = [
        name for name, module in (("transformers", "transformers"), ("llama.cpp", "llama_cpp")) if not find_spec(module)
    ]
    for name in missing:
        print(f"{name} is left out: its package is not installed")
        del peers[name]
    asked = {name: _start(peer, options) for name, peer in peers.items()}
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for tokens in options.tokens:
            for name, pipe in asked.items():
                pipe.send(tokens)
                answer = pipe.recv()
                if answer is not None:
                    found.setdefault((tokens, name), []).append(answer)
    rows = [_row(tokens, name, found.get((tokens, name), [])) for tokens in options.tokens for name in asked]
    summary = {
        "rounds": options.rounds,
        "budget": options.budget,
        "weights": options.weights,
        "threads": options.threads,
    }
    report("peers", rows, summary | {"clock": "cpu" if options.cpu_clock else "wall"}, options.save)
    for pipe in asked.values():
        pipe.send(None)


def _row(tokens: int, name: str, answers: list[dict[str, float]]) -> dict[str, Any]:
    columns = ("paste s", "first token s", "reply tokens/s", "resident MB")
    values = {column: median(one[column] for one in answers) if answers else "cannot" for column in columns}
    return {"history": tokens, "who": name, **values}


def _start(peer: Callable[..., Iterator[Any]], options: argparse.Namespace) -> Connection:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(peer, options, there), daemon=True).start()
    return here


def _serve(peer: Callable[..., Iterator[Any]], options: argparse.Namespace, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(options.threads)
    clock: Clock = time.process_time if options.cpu_clock else time.perf_counter
    answers = peer(options, clock)
    next(answers)
    while (tokens := pipe.recv()) is not None:
        pipe.send(answers.send(tokens))
        next(answers)


def ours(options: argparse.Namespace, clock: Clock) -> Iterator[Any]:
    """Ingest, then a chat turn, by the engine with its store."""
    import torch

    from mc_core.focus.focus_config import FocusConfig

    focus, weights = FocusConfig(budget=options.budget), getattr(torch, options.weights)
    with bench_engine(options.model, focus=focus, dtype=weights) as bench:
        number = 0
        while True:
            tokens = yield
            ids, number = novel_ids(bench.bundle.tokenizer, tokens, options.text), number + 1
            session = bench.session(f"peer-{number}")
            began = clock()
            bench.engine.ingest(session, ids).result()
            bench.engine.commit(session).result()
            pasted = clock()
            first, whole = _ask(bench, session, options, clock)
            yield _answer(pasted - began, first, options.reply, whole)


def _ask(bench: Bench, session: Session, options: argparse.Namespace, clock: Clock) -> tuple[float, float]:
    """Seconds until the first token, and until the reply is stored."""
    began, marks = clock(), []
    bench.ask(session, QUESTION, options.reply, ignore_eos=True, on_first=lambda: marks.append(clock()))
    return marks[0] - began, clock() - began


def transformers_float32(options: argparse.Namespace, clock: Clock) -> Iterator[Any]:
    """Greedy decoding with a cache that grows."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, file = options.model.parent, options.model.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    tokenizer = _tokenizer(options.model)
    while True:
        tokens = yield
        ids = _prompt(tokenizer, tokens, options.text)
        if len(ids) + options.reply > model.config.max_position_embeddings:
            yield None
            continue
        began, first = clock(), 0.0
        with torch.inference_mode():
            out = model(torch.from_numpy(ids[None].astype(np.int64)), use_cache=True, logits_to_keep=1)
            for number in range(options.reply):
                token = out.logits[:, -1:].argmax(-1)
                first = first or clock()
                if number + 1 < options.reply:
                    out = model(token, past_key_values=out.past_key_values, use_cache=True)
        yield _answer(0.0, first - began, options.reply, clock() - began)


def llama_cpp(options: argparse.Namespace, clock: Clock) -> Iterator[Any]:
    """The same file as it is, without dequantising it."""
    from llama_cpp import Llama  # type: ignore[import-not-found]

    window = 8192
    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = Llama(str(options.model), n_ctx=window, verbose=False, **threads)
    tokenizer = _tokenizer(options.model)
    while True:
        tokens = yield
        ids = _prompt(tokenizer, tokens, options.text)
        if len(ids) + options.reply > window:
            yield None
            continue
        model.reset()
        began, first = clock(), 0.0
        for number, _ in enumerate(model.generate(ids.tolist(), temp=0.0), 1):
            first = first or clock()
            if number == options.reply:
                break
        yield _answer(0.0, first - began, options.reply, clock() - began)


def _answer(paste: float, first: float, reply: int, whole: float) -> dict[str, float]:
    """``whole``: seconds from the question to the last token; a peer's prefill is not of its reply."""
    return {
        "paste s": paste,
        "first token s": first,
        "reply tokens/s": (reply - 1) / (whole - first),
        "resident MB": resident_memory() / 2**20,
    }


def _tokenizer(model: Path) -> Any:
    from mc_core.models.gguf_file import GgufFile
    from mc_core.models.gguf_tokenizer import load_tokenizer

    return load_tokenizer(GgufFile(model))


def _prompt(tokenizer: Any, tokens: int, text: Path | None) -> NDArray[np.int32]:
    """The text, and the question behind it in ChatML."""
    opened = tokenizer.encode_control("<|im_start|>user\n")
    ended = tokenizer.encode_control("<|im_end|>\n<|im_start|>assistant\n")
    return np.concatenate([novel_ids(tokenizer, tokens, text), opened, tokenizer.encode(QUESTION), ended])


if __name__ == "__main__":
    main()
