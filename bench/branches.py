"""How long until the first token of a chat that shares its beginning with another one?

Physics: whoever asks a question anew, edits it, or begins another chat behind the same system message brings a list of
which a session knows the beginning. What that computed of it is in its slab; read anew it costs a prefill. The calls
are those of a stock client, without a session id, over HTTP: ``next`` goes on with a chat, the others branch off it,
and ``new`` has nothing in common with any.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.common import BUNDLE, report
from bench.serving import metric, served, words_in
from bench.text import prose

ASKED = ("next", "again", "edited", "same system", "new")
Messages = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--weights", default="float32", help="float32, bfloat16 or int8")
    parser.add_argument("--repair", default="auto", help="the bundle's own by default")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--sentences", type=int, default=40, help="of the system message, some ten tokens each")
    parser.add_argument("--sessions", type=int, default=16, help="slabs (max_sessions)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2

    flags = ["--model", str(options.model), "--weights", options.weights, "--budget", str(options.budget)]
    flags += ["--repair", options.repair, "--max-sessions", str(options.sessions)]
    found: dict[str, list[dict[str, float]]] = {each: [] for each in ASKED}
    with (
        tempfile.TemporaryDirectory() as folder,
        served(*flags, "--store", f"sqlite:///{folder}/s.sqlite") as (client, _),
    ):
        for number in range(options.rounds + 1):
            for each, seen in round_of(client, number, options.sentences):
                if number:  # the first round warms up
                    found[each].append(seen)
    rows = [
        {"asked": each, "first token ms": 1e3 * median(run["first"] for run in runs)}
        | {"least": 1e3 * min(run["first"] for run in runs), "computed": median(run["computed"] for run in runs)}
        for each, runs in found.items()
    ]
    summary: dict[str, Any] = {
        f"{each.replace(' ', '_')}_to_new": median(
            a["first"] / b["first"] for a, b in zip(found[each], found["new"], strict=True)
        )
        for each in ASKED[:-1]
    }
    chosen = {name: getattr(options, name) for name in ("weights", "repair", "budget", "sentences", "rounds")}
    report("branches", rows, summary | chosen, options.save)


def round_of(client: httpx.Client, number: int, sentences: int) -> Iterator[tuple[str, dict[str, float]]]:
    """One chat, and what branches off it."""

    def system(seed: int) -> Messages:
        return [{"role": "system", "content": f"You help. ({seed}) {prose(sentences, seed)}"}]

    def asks(what: str) -> Messages:
        return [{"role": "user", "content": what}]

    def says(text: str) -> Messages:
        return [{"role": "assistant", "content": text}]

    begun = [*system(2 * number), *asks("Who walked to the harbour?")]
    seen, text = asked(client, begun)
    yield "new", seen
    longer = [*begun, *says(text), *asks("And what did the widow do? " + prose(6, number))]
    seen, _ = asked(client, longer)
    yield "next", seen
    yield "again", asked(client, longer)[0]
    yield "edited", asked(client, [*longer[:-1], *asks("Where was the captain? " + prose(6, number + 1000))])[0]
    yield "same system", asked(client, [*system(2 * number), *asks("Who feared the old house?")])[0]


def asked(client: httpx.Client, messages: Messages) -> tuple[dict[str, float], str]:
    """Seconds to the first token and units computed before it -> these, and the reply."""
    model = client.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": messages, "max_tokens": 8, "stream": True, "temperature": 0.0}
    before, began, first, text = metric(client, COMPUTED), time.perf_counter(), 0.0, ""
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.is_success, response.read()
        for line in response.iter_lines():
            if word := words_in(line):
                first = first or time.perf_counter() - began
                text += word
    return {"first": first, "computed": metric(client, COMPUTED) - before}, text


COMPUTED = "megacontext_kv_recomputed_total"

if __name__ == "__main__":
    main()
