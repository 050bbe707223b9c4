"""What does it save to keep only the newest token ids in memory, and what does it cost to need an older one?

Two servers on one Redis read the same history with facts planted in it: one keeps all ids in memory, one only
``--hot`` of them. Resident memory before and after, spans in Redis (counted by SCAN), and the same questions to both:
every answer needs blocks from far back, which the second server must fetch. Restore times are the server's own, from
``/metrics``. The word index and the gists stay in memory either way (docs/limits.md), so ids are what eviction frees.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis

from bench.common import BUNDLE, report
from bench.recall import ADJECTIVES, NOUNS
from bench.serving import metric, redis_server, served
from bench.text import prose

KEEP_ALL = 1 << 40


def planted(text: str, facts: int, seed: int) -> tuple[str, dict[str, str]]:
    """The text with facts spread over its first three quarters -> (text, value by key)."""
    rng = np.random.default_rng(seed)
    keys = rng.permutation([f"{a}-{n}" for a in ADJECTIVES for n in NOUNS])[:facts].tolist()
    values = {key: str(rng.integers(10_000, 100_000)) for key in keys}
    parts, at = [], 0
    for i, (key, value) in enumerate(values.items()):
        end = text.index(" ", (i + 1) * len(text) * 3 // 4 // (facts + 1))
        parts += [text[at:end], f" The magic number for {key} is {value}."]
        at = end
    return "".join([*parts, text[at:]]), values


def spans_in(client: redis.Redis, namespace: str) -> int:
    """LOD0 rows that Redis holds: bytes of their pages over the bytes of one."""
    session = next(key for key in client.scan_iter(f"{namespace}*:session:*"))
    width = json.loads(client.hget(session, "widths"))[0]
    return sum(client.strlen(key) for key in client.scan_iter(f"{namespace}*:rows:*:0:*", count=1000)) // width


def measure(options: argparse.Namespace, store: redis.Redis, port: int, hot: int, text: str) -> dict[str, Any]:
    """One server: ingest, then one turn a fact."""
    namespace = f"evict{hot}:"
    url = f"redis://127.0.0.1:{port}/0?namespace={namespace}"
    history, facts = planted(text, options.questions, options.seed)
    with served("--model", str(options.model), "--store", url, "--hot-tokens", str(hot)) as (http, server):
        session = http.post("/v1/sessions", json={}).raise_for_status().json()["id"]
        before = resident(server)
        tokens = http.post(
            f"/v1/sessions/{session}/ingest", content=history.encode(), headers={"content-type": "text/plain"}
        )
        tokens = tokens.raise_for_status().json()["tokens"]
        after = resident(server)
        model = http.get("/v1/models").json()["data"][0]["id"]
        right = fetched = missing = 0
        turns = []
        for key, value in facts.items():
            question = {"role": "user", "content": f"What is the magic number for {key}?"}
            body = {"model": model, "session_id": session, "messages": [question], "max_tokens": 24, "temperature": 0}
            started = time.perf_counter()
            reply = http.post("/v1/chat/completions", json=body).raise_for_status().json()
            turns.append(time.perf_counter() - started)
            right += value in reply["choices"][0]["message"]["content"]
            fetched += reply["x_megacontext"]["spans_fetched"]
            missing += reply["x_megacontext"]["unavailable"]
        restores, reads = {"part": "restore"}, {"operation": "read_spans"}
        restored = metric(http, "megacontext_refocus_seconds_count", **restores)
        read = metric(http, "megacontext_store_seconds_count", **reads)
        restoring = metric(http, "megacontext_refocus_seconds_sum", **restores)
        reading = metric(http, "megacontext_store_seconds_sum", **reads)
        return {
            "hot tokens": "all" if hot == KEEP_ALL else f"{hot:,}",
            "history": tokens,
            "before MB": before / 1e6,
            "after MB": after / 1e6,
            "ids in memory": min(hot, tokens),
            "spans in Redis": spans_in(store, namespace),
            "blocks": tokens // 32,
            "questions": len(facts),
            "right": right,
            "spans fetched": fetched,
            "tokens missing": missing,
            "restore ms, mean": 1e3 * restoring / max(1.0, restored),
            "round trip ms, mean": 1e3 * reading / max(1.0, read),
            "turn s, median": float(np.median(turns)),
        }


def resident(server: psutil.Process) -> int:
    """Bytes, after a moment in which freed memory may go back."""
    time.sleep(1.0)
    return int(server.memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLE)
    parser.add_argument("--text", type=Path, help="UTF-8 text to use as history; made-up prose by default")
    parser.add_argument("--chars", type=int, default=4_000_000, help="of the text; about 4 make a token")
    parser.add_argument("--hot", type=int, default=4096)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8") if options.text else prose(options.chars // 40)
    text = text[: options.chars]
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as store:
        port = store.connection_pool.connection_kwargs["port"]
        rows = [measure(options, store, port, hot, text) for hot in (KEEP_ALL, options.hot)]
    grown = [row["after MB"] - row["before MB"] for row in rows]
    summary = {
        "history": rows[1]["history"],
        "grown_mb_all_hot": grown[0],
        "grown_mb_evicted": grown[1],
        "freed_bytes_a_token": 1e6 * (grown[0] - grown[1]) / rows[1]["history"],
        "every_block_stored": rows[1]["spans in Redis"] >= rows[1]["blocks"],
        "restore_ms": rows[1]["restore ms, mean"],
        "right": [row["right"] / row["questions"] for row in rows],
    }
    report("evict", rows, summary, options.save)


if __name__ == "__main__":
    main()
