"""What keeping a reply to a grammar costs: tokens a second of JSON of a schema, against the same server writing freely.

A step of a grammar is computed on the engine's thread, so what it takes is added to each token. Replies alternate, at
temperature 1, and the best of each counts, since other work only ever makes one slower. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import httpx

from bench.common import machine
from bench.serving import served

SCHEMA = {
    "type": "object",
    "properties": {
        "year": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 2, "maxItems": 4},
        "text": {"type": "string", "minLength": 4000},
    },
    "required": ["year", "tags", "text"],
    "additionalProperties": False,
}
KEPT = {"response_format": {"type": "json_schema", "json_schema": {"name": "made", "schema": SCHEMA}}}


def speed(client: httpx.Client, model: str, tokens: int, seed: int, more: dict[str, Any]) -> float:
    """Tokens a second from the first token of a reply to its last."""
    body = {"model": model, "messages": [{"role": "user", "content": "Write."}], "store": False, "stream": True}
    body |= {"max_tokens": tokens, "temperature": 1, "seed": seed, "ignore_eos": True, "logprobs": True, **more}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.raise_for_status().iter_lines()
        times = [time.perf_counter() for line in lines if '"logprobs":{' in line]
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--model", default="tiny")
    asked.add_argument("--tokens", type=int, default=128)
    asked.add_argument("--rounds", type=int, default=5)
    given = asked.parse_args()
    with served("--model", given.model) as (client, _):
        name = client.get("/v1/models").json()["data"][0]["id"]
        speed(client, name, 8, 0, KEPT)
        pairs = [
            (speed(client, name, given.tokens, seed, {}), speed(client, name, given.tokens, seed, KEPT))
            for seed in range(given.rounds)
        ]
    free, kept = (max(speeds) for speeds in zip(*pairs, strict=True))
    told = {"bench": "constrained", "model": name, "free": round(free, 1), "constrained": round(kept, 1)}
    print(json.dumps({**told, "ratio": round(kept / free, 3), "rounds": pairs, "machine": machine()}))


if __name__ == "__main__":
    main()
