"""A chat over HTTP while it fits into the budget: read as any other server reads it; and what stays when it doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import torch

from mc_core.models.attention import FullAttention
from mc_core.models.rotary import Rotary
from mc_core.session.session import Session
from server.auth import OPEN_TENANT
from server.state import ServerState
from support import ServerThread, settings_for, state_in, write_model

SYSTEM = "You are the keeper of the lighthouse and you answer in one short sentence, please."


def held(state: ServerState, session_id: str) -> Session:
    session = state.host.peek(session_id, OPEN_TENANT)
    assert session is not None
    return session


def told(state: ServerState, ids: list[int], count: int) -> bool:
    """Whether the last ``count`` ids are greedy, by one pass of the base model alone over all of them."""
    decoder = state.bundle.decoder
    with torch.no_grad():
        rotation = Rotary(decoder.config).table(torch.arange(len(ids))[None])
        hidden = decoder(decoder.embed(torch.tensor([ids])), FullAttention(rotation))
        logits = decoder.logits(hidden[0])[-count - 1 : -1]
    chosen = logits[torch.arange(count), torch.tensor(ids[-count:])]
    return bool((logits.max(-1).values - chosen < 1e-4).all())


def ask(http: httpx.Client, session_id: str, text: str) -> dict[str, Any]:
    body = {"session_id": session_id, "messages": [{"role": "user", "content": text}]}
    options = {"model": "tiny", "temperature": 0, "max_tokens": 20, "ignore_eos": True}
    answer = http.post("/v1/chat/completions", json={**body, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chat_that_fits_is_read_whole(tmp_path: Path) -> None:
    """Turn by turn, also where a turn is taken back and asked anew, a stock model's reply is the one that it gives to
    the whole conversation, with nothing put between; the system message stays raw when the rest no longer fits."""
    model = write_model(tmp_path / "tiny", block_mask=False)
    with ServerThread(settings_for(model, tmp_path / "s.sqlite", budget=640, weights="float32")) as server:
        state = state_in(server)
        assert state.bundle.frames is not None
        assert state.engine.core.focus.narrow > 0
        http = httpx.Client(base_url=server.address, timeout=60)
        session_id = http.post("/v1/sessions", json={"system": SYSTEM}).json()["id"]
        checked, hidden = 0, 0
        for number in range(14):
            before = http.get(f"/v1/sessions/{session_id}").json()["tokens"]
            text = f"It was the age of wisdom number {number}; who keeps the lighthouse? " * (1 + number % 3)
            for again in (False, True) if number % 4 == 1 else (False,):
                if again:
                    http.post(f"/v1/sessions/{session_id}/rewind", json={"position": before}).raise_for_status()
                answer = ask(http, session_id, text)
                session, usage = held(state, session_id), answer["usage"]
                end = usage["prompt_tokens"] + usage["completion_tokens"]
                if answer["x_megacontext"]["hidden"]:
                    hidden += 1
                    continue
                assert told(state, session.tree.ids(0, end).tolist(), usage["completion_tokens"])
                checked += 1
        assert checked >= 4
        assert hidden >= 2
        entries = http.get(f"/v1/sessions/{session_id}/focus").json()["entries"]
        raw = [(entry["start"], entry["end"]) for entry in entries if entry["level"] == 0]
        ids = held(state, session_id).tree
        shown = state.bundle.tokenizer.decode([i for start, end in raw for i in ids.ids(start, end).tolist()])
        assert SYSTEM in shown
