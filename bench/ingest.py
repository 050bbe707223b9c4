"""How fast is a document of any size read over HTTP, and what does it cost in memory?

Streams files to a running server's ``/ingest``, one request each, then asks one question and checks that the working
context tiles the whole history within its budget. Reading runs the tokenizer and GistNet, never the base model, so the
rate should not fall with the length of the history, and memory should grow by the bytes a token of ids, gists and
index entries that docs/limits.md names. Files ending in .xz hold JSON lines with a "text" field, as training data does.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bench.common import report
from bench.serving import metric

PIECE = 1 << 20


def pieces(path: Path) -> Iterator[bytes]:
    """The text of a file, a piece at a time."""
    if path.suffix != ".xz":
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        return
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield (json.loads(line)["text"] + "\n\n").encode()


def check_focus(focus: dict[str, Any]) -> None:
    """The entries must tile [0, tokens) at no more than the budget."""
    at = 0
    for entry in focus["entries"]:
        assert entry["start"] == at, f"gap or overlap at token {at}"
        at = entry["end"]
    assert at == focus["tokens"], f"the entries end at {at}, the history at {focus['tokens']}"
    assert sum(entry["cost"] for entry in focus["entries"]) == focus["cost"] <= focus["budget"]


def measure(client: httpx.Client, path: Path, question: str) -> dict[str, Any]:
    before = metric(client, "process_resident_memory_bytes")
    session = client.post("/v1/sessions", json={}).raise_for_status().json()["id"]
    started = time.perf_counter()
    answer = client.post(
        f"/v1/sessions/{session}/ingest", content=pieces(path), headers={"content-type": "text/plain; charset=utf-8"}
    )
    tokens = answer.raise_for_status().json()["tokens_added"]
    seconds = time.perf_counter() - started
    after = metric(client, "process_resident_memory_bytes")
    asked = time.perf_counter()
    body = {"session_id": session, "messages": [{"role": "user", "content": question}], "max_tokens": 32}
    reply = client.post("/v1/chat/completions", json={"model": _model(client), **body})
    turn_seconds = time.perf_counter() - asked
    focus = client.get(f"/v1/sessions/{session}/focus").raise_for_status().json()
    check_focus(focus)
    return {
        "file": path.name,
        "tokens": tokens,
        "tokens/s": tokens / seconds,
        "seconds": seconds,
        "bytes/token": (after - before) / max(1, tokens),
        "resident MB": after / 1e6,
        "turn s": turn_seconds,
        "cost": focus["cost"],
        "entries": len(focus["entries"]),
        "reply tokens": reply.raise_for_status().json()["usage"]["completion_tokens"],
    }


def _model(client: httpx.Client) -> str:
    return str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--question", default="Who is the narrator of this story?")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    headers = {"authorization": f"Bearer {key}"} if (key := os.environ.get("MEGACONTEXT_API_KEY")) else {}
    with httpx.Client(base_url=options.url, timeout=httpx.Timeout(3600.0), headers=headers) as client:
        rows = [measure(client, path, options.question) for path in options.files]
    report("ingest", rows, {"tokens_per_second": [row["tokens/s"] for row in rows]}, options.save)


if __name__ == "__main__":
    main()
