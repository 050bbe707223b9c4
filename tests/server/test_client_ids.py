"""Ids that clients send for their conversations: none of them makes an answer wrong, or is needed to find a history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from support import running, settings_for

ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
HEADERS = ["x-claude-code-session-id", "session-id", "session_id", "x-session-affinity", "x-opencode-session"]


def chat(http: httpx.Client, *texts: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[str, str]:
    """Messages of the user and the assistant in turn -> (reply, session)."""
    roles = ("user", "assistant")
    told = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    answer = http.post("/v1/chat/completions", json={**ASK, "messages": told, **more}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.headers["x-session-id"]


@pytest.mark.parametrize("name", [*HEADERS, "prompt_cache_key", "metadata"])
def test_the_messages_are_the_truth(http: httpx.Client, name: str) -> None:
    """With one id, two chats that differ are two sessions, each goes on in its own, and replies are as without it."""

    def ask(*texts: str) -> tuple[str, str]:
        if name in HEADERS:
            return chat(http, *texts, headers={name: "one-id"})
        value: Any = {"user_id": "one-id"} if name == "metadata" else "one-id"
        return chat(http, *texts, **{name: value})

    first, second = f"Hi from {name}", f"Ho from {name}"
    (one, a), (two, b) = ask(first), ask(second)
    assert a != b
    assert ask(first, one, "And then?")[1] == a
    assert ask(second, two, "And then?")[1] == b
    assert ask(first)[0] == chat(http, first)[0]


def test_keys_never_see_one_another(model_dir: Path, tmp_path: Path) -> None:
    """The same messages and the same ids of another key find nothing of the first one's."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", api_key="A,B")) as address:
        sessions = []
        for key in ("A", "B"):
            headers = {"authorization": f"Bearer {key}", "session-id": "one-id"}
            with httpx.Client(base_url=address, timeout=60, headers=headers) as http:
                reply, session = chat(http, "Hi", prompt_cache_key="one-id")
                assert chat(http, "Hi", reply, "More", prompt_cache_key="one-id")[1] == session
                sessions.append(session)
        assert sessions[0] != sessions[1]
