"""The first chat of the README, as it goes on this machine: the default model, the story, greedy replies.

It starts a server, reads the story into a session, asks the questions one after the other, and prints the talk; with
``--into README.md`` that takes the place of the one between two marks there, so that the README shows what readers get.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.common import ROOT
from bench.serving import served

STORY = ROOT / "docs" / "examples" / "the-ferry-at-averby.txt"
QUESTIONS = (
    "What is the name of Marta's dog?",
    "In which year was the bell of Averby cast?",
    "How many steps are there in the tower of Averby?",
    "What is the name of the clockmaker?",
)
BEGIN, END = "<!-- first chat: python -m bench.first_chat --into README.md -- --budget 1024 -->", "<!-- /first chat -->"


def talk(client: httpx.Client) -> Iterator[str]:
    """Lines as ``megacontext chat`` shows them."""
    model = client.get("/v1/models").json()["data"][0]["id"]
    session = client.post("/v1/sessions", json={}).json()["id"]
    yield f"> /ingest {STORY.relative_to(ROOT)}"
    text = {"content": STORY.read_bytes(), "headers": {"content-type": "text/plain"}}
    added = client.post(f"/v1/sessions/{session}/ingest", **text).json()
    yield f"{added['tokens_added']:,} tokens added, {added['tokens']:,} in all"
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "session_id": session, "messages": messages, "temperature": 0, "max_tokens": 60}
        reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        yield f"> {question}"
        yield reply["choices"][0]["message"]["content"].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="file whose talk is replaced")
    parser.add_argument("flags", nargs="*", help="of megacontext serve, behind --")
    options = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        served("--store", f"sqlite:///{folder}/s.sqlite", *options.flags) as (
            client,
            _,
        ),
    ):
        lines = []
        for line in talk(client):
            print(line, flush=True)
            lines.append(line)
    if options.into is not None:
        block = "\n".join([BEGIN, "", "```", *lines, "```", "", END])
        old = options.into.read_text("utf-8")
        parts = re.split(f"{re.escape(BEGIN)}.*?{re.escape(END)}", old, flags=re.DOTALL)
        if len(parts) != 2:
            parser.error(f"{options.into} must hold {BEGIN} and {END} once")
        options.into.write_text(block.join(parts), "utf-8")


if __name__ == "__main__":
    main()
