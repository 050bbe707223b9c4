"""Sessions across restarts of a server whose model has a LensNet."""

from __future__ import annotations

from pathlib import Path

import httpx

from support import add_lensnet, gauge, running, settings_for, wait_until, write_model


def test_short_and_long_sessions_come_back_under_any_lens(tmp_path: Path) -> None:
    """An empty session, one of a few words and a long one answer after each restart, with or without lens keys, and
    soon have all of their vectors, as their focus and the gauge tell."""
    model, store = write_model(tmp_path / "model"), tmp_path / "sessions.sqlite"
    add_lensnet(model)
    with running(settings_for(model, store, lens="hybrid")) as address:
        sessions = [httpx.post(f"{address}/v1/sessions", json={}).json()["id"] for _ in range(3)]
        for session, words in zip(sessions, (0, 3, 700), strict=True):
            ingest = f"{address}/v1/sessions/{session}/ingest"
            assert not words or httpx.post(ingest, json={"text": "keeper " * words}).status_code == 200
    for lens in ("hybrid", "lexical", "cross"):
        with running(settings_for(model, store, lens=lens)) as address:
            for session in sessions:
                body = {"model": "tiny", "session_id": session, "max_tokens": 2}
                said = {"messages": [{"role": "user", "content": "Hi"}]}
                answer = httpx.post(f"{address}/v1/chat/completions", json={**body, **said}, timeout=60)
                assert answer.status_code == 200, (lens, answer.text)
            wait_until(lambda at=address: gauge(at, "megacontext_blocks_without_vectors") == 0)
            vectors = httpx.get(f"{address}/v1/sessions/{sessions[-1]}/focus").json()["vectors"]
            assert vectors["made"] == vectors["blocks"] > 20
