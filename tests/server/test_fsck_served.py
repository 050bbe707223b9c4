"""What megacontext fsck mended is served again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import httpx
from typer.testing import CliRunner

from server.cli import app
from support import PROSE, running, settings_for

RUNNER = CliRunner()


def damage(store: Path, query: str) -> None:
    connection = sqlite3.connect(store)
    with connection:
        assert connection.execute(query).rowcount > 0
    connection.close()


def fsck(store: Path, *options: str) -> tuple[int, list[str]]:
    done = RUNNER.invoke(app, ["fsck", str(store), "--json", *options])
    return done.exit_code, [one["kind"] for one in json.loads(done.stdout)["findings"]]


def test_a_mended_session_goes_on(model_dir: Path, tmp_path: Path) -> None:
    """Law: gists that fsck dropped are made anew and change no reply; a history that it cut goes on where it ends; a
    list that lost a message is complete neither for fsck nor for clients, on whatever page, until a rewind in front."""
    store = tmp_path / "s.sqlite"
    ask = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Who?"}]}

    def asked(http: httpx.Client, session: str) -> str:
        answer = http.post("/v1/chat/completions", json={**ask, "session_id": session})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def made(http: httpx.Client) -> str:
        session = str(http.post("/v1/sessions", json={"system": "You keep the light."}).json()["id"])
        http.post(f"/v1/sessions/{session}/ingest", json={"text": " ".join(PROSE) * 4})
        asked(http, session)
        return session

    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address, timeout=60) as http:
        session, whole, talked = made(http), made(http), made(http)
        asked(http, talked)
        expected = asked(http, whole)
    assert fsck(store) == (0, [])
    damage(store, "DELETE FROM rows WHERE (key >> 32) & 15 = 1 AND key & 4294967295 = 9")
    assert fsck(store) == (1, ["gists", "gists", "gists"])
    message = f"session = (SELECT id FROM sessions WHERE session_id = '{talked}') AND key LIKE 'msg:%"
    damage(store, f"UPDATE notes SET value = zeroblob(4) WHERE {message}2'")
    code, kinds = fsck(store, "--repair", "--drop-notes")
    assert (code, sorted(kinds)) == (0, ["gists", "gists", "gists", "notes"])
    assert fsck(store) == (1, ["messages"])
    damage(store, f"UPDATE notes SET value = zeroblob(4) WHERE {message}3'")
    assert fsck(store, "--repair", "--drop-notes") == (1, ["notes", "messages"])
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address, timeout=60) as http:
        assert asked(http, session) == expected
        tokens = http.get(f"/v1/sessions/{session}").json()["tokens"]
        for _ in range(2):
            for page in ({}, {"limit": 1}, {"limit": 1, "order": "desc"}):
                listed = http.get(f"/v1/sessions/{talked}/messages", params=page).json()
                assert listed["complete"] is False
            asked(http, talked)
        first = http.get(f"/v1/sessions/{talked}/messages").json()["data"][0]["id"]
        assert http.post(f"/v1/sessions/{talked}/rewind", json={"message_id": first}).status_code == 200
        assert http.get(f"/v1/sessions/{talked}/messages").json()["complete"] is True
    assert fsck(store) == (0, [])
    damage(store, "UPDATE rows SET data = zeroblob(length(data)) WHERE (key >> 32) & 15 = 0 AND key & 4294967295 = 20")
    assert fsck(store, "--repair", "--session", session) == (1, ["spans"])
    assert fsck(store, "--repair", "--cut", "--session", session) == (0, ["spans"])
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address, timeout=60) as http:
        assert http.get(f"/v1/sessions/{session}").json()["tokens"] == 640 < tokens
        assert asked(http, session)
        assert http.get(f"/v1/sessions/{session}/export").status_code == 200
        error = http.get(f"/v1/sessions/{whole}/export")
        assert (error.status_code, error.json()["error"]["code"]) == (500, "session_damaged")


def test_a_damaged_record_is_told_and_can_be_deleted(model_dir: Path, tmp_path: Path) -> None:
    """Law: a session whose record is not as it was written is told to be damaged, and not read as something else; its
    chat goes on in another session, and it can be deleted."""
    store, chat = tmp_path / "s.sqlite", [{"role": "user", "content": "Who keeps the lighthouse?"}]
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logit_bias": {"67": 100}}
    with running(settings_for(model_dir, store)) as address:
        answer = httpx.post(f"{address}/v1/chat/completions", json={**body, "messages": chat})
        damaged = answer.headers["X-Session-ID"]
        chat += [answer.json()["choices"][0]["message"], {"role": "user", "content": "Since when?"}]
    damage(store, "UPDATE sessions SET tokens = tokens - 1")
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address, timeout=60) as http:
        for told in (
            http.get(f"/v1/sessions/{damaged}"),
            http.get(f"/v1/sessions/{damaged}/export"),
            http.get(f"/v1/sessions/{damaged}/focus"),
            http.post("/v1/chat/completions", json={**body, "messages": chat, "session_id": damaged}),
        ):
            assert (told.status_code, told.json()["error"]["code"]) == (500, "session_damaged")
        other = http.post("/v1/chat/completions", json={**body, "messages": chat})
        assert other.status_code == 200
        assert other.headers["X-Session-ID"] != damaged
        assert http.delete(f"/v1/sessions/{damaged}").status_code == 200
        assert http.get(f"/v1/sessions/{damaged}").status_code == 404
