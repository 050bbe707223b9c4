"""What does telemetry cost?

Two servers of the same model run side by side, one with OTLP over gRPC to a collector in a process of its own, one
without. The same turns are asked of both, one after the other in random order, so that a noisy machine disturbs both
alike. There are six spans a refocus, so about K tokens: tokens a second should fall by less than a noisy machine shows.
So processor seconds a token are compared as well, and the spans of a refocus are made and sent alone, many times,
which says what part of a token's processor time they are. Fresh pairs of servers are started several times, because two
processes are never quite alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np

from bench.common import BUNDLE, report
from bench.serving import process, served
from bench.text import prose
from mc_core.bundle.bundle import load_bundle
from mc_core.engine.observer import Part, RefocusTrace
from mc_core.models.sampling_params import SamplingParams
from server.telemetry.telemetry import Telemetry


def line_of(collector: subprocess.Popen[str]) -> str:
    assert collector.stdout is not None
    return collector.stdout.readline()


def counts_of(collector: subprocess.Popen[str]) -> dict[str, int]:
    assert collector.stdin is not None
    collector.stdin.write("\n")
    collector.stdin.flush()
    counts: dict[str, int] = json.loads(line_of(collector))
    return counts


class Server:
    """``megacontext serve`` with one session that has a history."""

    def __init__(self, stack: ExitStack, options: argparse.Namespace, endpoint: str | None) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        flags = ["--model", str(options.model), "--store", f"sqlite:///{folder}/s.sqlite"]
        flags += ["--threads", str(options.threads)]
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "5000"} if endpoint else {}
        self._http, self._usage = stack.enter_context(served(*flags, **otel))
        self._model = self._http.get("/v1/models").json()["data"][0]["id"]
        self._session = self._http.post("/v1/sessions", json={}).raise_for_status().json()["id"]
        text = prose(options.history // 10)
        self._http.post(f"/v1/sessions/{self._session}/ingest", content=text).raise_for_status()

    def ask(self, question: str, tokens: int) -> tuple[float, float]:
        """One turn -> tokens a second, processor seconds a token."""
        body = {"model": self._model, "session_id": self._session, "max_tokens": tokens, "ignore_eos": True}
        body |= {"temperature": 0.0, "messages": [{"role": "user", "content": question}]}
        used, started = self._processor(), time.perf_counter()
        reply = self._http.post("/v1/chat/completions", json=body).raise_for_status().json()
        seconds, used = time.perf_counter() - started, self._processor() - used
        count = reply["usage"]["completion_tokens"]
        return count / seconds, used / count

    def _processor(self) -> float:
        times = self._usage.cpu_times()
        return float(times.user + times.system)


def measure(options: argparse.Namespace, rng: np.random.Generator, endpoint: str) -> dict[str, list[float]]:
    """One pair of servers -> columns of the pairs of turns."""
    columns: dict[str, list[float]] = {name: [] for name in ("off t/s", "on t/s", "off cpu", "on cpu")}
    with ExitStack() as stack:
        servers = {"off": Server(stack, options, None), "on": Server(stack, options, endpoint)}
        for number in range(options.rounds + 1):
            question = f"What happened to the captain on day {number * 37 % 91}, and who was there?"
            for name in rng.permutation(list(servers)).tolist():
                speed, processor = servers[name].ask(question, options.reply)
                if number:  # the first round warms up
                    columns[f"{name} t/s"].append(speed)
                    columns[f"{name} cpu"].append(processor)
    return columns


def alone(endpoint: str, refocuses: int = 2_000) -> float:
    """Processor seconds of telling one refocus: counted, made to spans, encoded, sent, acknowledged."""
    os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "100000"}
    telemetry = Telemetry.from_environment()
    numbers = ("tokens", "cost", "budget", "utilization", "eligible", "changed", "expands", "collapses", "swap_rate")
    numbers += ("residency_mean", "residency_p95", "score_mean", "score_std", "score_min", "score_max")
    numbers += ("entries.lod0", "entries.lod1", "entries.lod2", "rejections.budget", "rejections.cooldown")
    parts = {name: Part(0.0, 0.001) for name in ("plan", "lens", "allocate", "restore", "kv_repair", "evict")}
    assert telemetry.provider is not None
    with telemetry.spans.turn("chat", "bench", "alone", SamplingParams()):
        used = time.process_time()
        for step in range(refocuses):
            report = dict.fromkeys(numbers, 1.0)
            telemetry.refocused(RefocusTrace("s", "alone", "turn", step, report, started=time.time(), parts=parts))
        telemetry.spans.close()
        telemetry.provider.force_flush()
        used = time.process_time() - used
    telemetry.close()
    return used / refocuses


def interval(values: list[float], rng: np.random.Generator) -> list[float]:
    """95 % bootstrap interval of the median."""
    draws = rng.choice(values, (4000, len(values)))
    return [float(edge) for edge in np.percentile(np.median(draws, axis=1), [2.5, 97.5])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--history", type=int, default=20_000, help="tokens of history, about")
    parser.add_argument("--reply", type=int, default=96, help="tokens decoded a turn")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of turns for each pair of servers")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of servers, one after the other")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows, slower, dearer = [], [], []
    with process("bench.otlp_receiver") as collector:
        endpoint = f"http://127.0.0.1:{int(line_of(collector))}"
        for pair in range(options.pairs):
            columns = measure(options, rng, endpoint)
            slower += [1 - on / off for on, off in zip(columns["on t/s"], columns["off t/s"], strict=True)]
            dearer += [on / off - 1 for on, off in zip(columns["on cpu"], columns["off cpu"], strict=True)]
            medians = {name: median(values) for name, values in columns.items()}
            rows.append(
                {
                    "servers": pair + 1,
                    "tokens/s off": medians["off t/s"],
                    "tokens/s on": medians["on t/s"],
                    "cpu ms/token off": 1e3 * medians["off cpu"],
                    "cpu ms/token on": 1e3 * medians["on cpu"],
                    "slower %": 100 * median(slower[-options.rounds :]),
                    "more cpu %": 100 * median(dearer[-options.rounds :]),
                }
            )
        received = counts_of(collector)
        telling = alone(endpoint)
    turns = options.pairs * (options.rounds + 1)
    assert received["chats"] == turns, f"{turns} turns were traced, the collector has {received['chats']}"
    block = load_bundle(options.model).block_size * 1e-3 * median(row["cpu ms/token off"] for row in rows)
    summary = {
        "cpu_us_per_refocus_alone": 1e6 * telling,
        "alone_percent_of_a_block": 100 * telling / block,
        "slower_percent": 100 * median(slower),
        "slower_percent_95": [100 * edge for edge in interval(slower, rng)],
        "more_cpu_percent": 100 * median(dearer),
        "more_cpu_percent_95": [100 * edge for edge in interval(dearer, rng)],
        "bar_percent": 2.0,
        "turns": turns,
        "reply": options.reply,
        "received": received,
    }
    report("telemetry", rows, summary, options.save)


if __name__ == "__main__":
    main()
