"""The focus over HTTP: followed live, read as text, and told what to keep in view."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from support import ForkedServer, ServerThread, running, settings_for, state_in, wait_until, write_model

MODEL = "tiny"
TEXT = "The keeper of the lighthouse counted the waves, and told nobody. " * 400
FAR = [2_000, 2_100]


class Strips:
    """The events of a stream, read by a thread of its own."""

    def __init__(self, address: str, session: str) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sizes: list[int] = []
        self.over = threading.Event()
        self.status = 0
        self._client = httpx.Client(base_url=address, timeout=60)
        self._thread = threading.Thread(target=self._read, args=(f"/v1/sessions/{session}/focus/stream",))
        self._thread.start()

    def _read(self, path: str) -> None:
        try:
            with self._client.stream("GET", path) as response:
                self.status = response.status_code
                name = ""
                for line in response.iter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        self.sizes.append(len(line))
                        self.events.append((name, json.loads(line.removeprefix("data: "))))
        except httpx.TransportError:
            pass
        finally:
            self.over.set()

    def strips(self) -> list[dict[str, Any]]:
        return [data for name, data in self.events if name == "strip"]

    def wait(self, wanted: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        wait_until(lambda: wanted(self.strips()))
        return self.strips()

    def close(self) -> None:
        self._client.close()
        self._thread.join(20)


@contextmanager
def following(address: str, session: str) -> Iterator[Strips]:
    strips = Strips(address, session)
    try:
        strips.wait(lambda told: bool(told))
        yield strips
    finally:
        strips.close()


def ask(address: str, session: str, text: str = "Who counted the waves?", **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "session_id": session, "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body | more, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def focus(address: str, session: str) -> dict[str, Any]:
    return httpx.get(f"{address}/v1/sessions/{session}/focus").json()


def raw_tokens(entries: list[dict[str, Any]]) -> set[int]:
    return {at for entry in entries if entry["level"] == 0 for at in range(entry["start"], entry["end"])}


def raw_of(strip: dict[str, Any]) -> set[int]:
    return {at for start, end, level, _ in strip["runs"] if level == 0 for at in range(start, end)}


def ingested(address: str, text: str = TEXT) -> str:
    session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
    assert httpx.post(f"{address}/v1/sessions/{session}/ingest", content=text, timeout=60).status_code == 200
    return session


# -- followed live -----------------------------------------------------------------------------------------------------


def test_a_turn_is_followed_from_strip_to_strip(address: str) -> None:
    """First the strip as it stands, then one for what each change leaves; they tile the history, and each differs from
    the one before by what it says was opened and closed."""
    session = ingested(address, TEXT + "A zebra called Quagga painted 4711 doors. " + TEXT)
    with following(address, session) as strips:
        first = strips.strips()[0]
        assert (first["moment"], first["opened"], first["closed"]) == ("now", [], [])
        ask(address, session, "Which doors did the zebra Quagga paint?", max_tokens=100, ignore_eos=True)
        tokens = focus(address, session)["tokens"]
        told = strips.wait(lambda told: told[-1]["tokens"] == tokens and told[-1]["moment"] == "commit")
        shown = focus(address, session)
    assert {"turn", "interval"} & {strip["moment"] for strip in told}
    for strip in told:
        runs = strip["runs"]
        assert runs[0][0] == 0
        assert runs[-1][1] == strip["tokens"]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
        assert 0 < strip["cost"] <= strip["budget"]
        for _, _, level, state in runs:
            assert (strip["states"][state] == "gist") == (level > 0)
    assert any(strip["opened"] for strip in told)
    for before, strip in itertools.pairwise(told):
        known = min(before["tokens"], strip["tokens"]) // 32 * 32
        opened = {at for start, end, *_ in strip["opened"] for at in range(start, end)}
        closed = {at for start, end in strip["closed"] for at in range(start, end)}
        was, now = ({at for at in raw_of(one) if at < known} for one in (before, strip))
        assert (opened, closed) == (now - was, was - now)
        assert {reason for *_, reason, _ in strip["opened"]} <= set(strip["states"])
    assert raw_of(told[-1]) == raw_tokens(shown["entries"])
    same = ("tokens", "budget", "cost", "framed", "pin_room")
    assert [told[-1][name] for name in same] == [shown[name] for name in same]
    assert max(strips.sizes) <= 50_000


def test_an_ingest_a_rewind_and_pins_are_followed(address: str) -> None:
    """What changes a history without a turn is told too, whoever asked for it."""
    session = ingested(address)
    with following(address, session) as strips:
        httpx.post(f"{address}/v1/sessions/{session}/ingest", content=TEXT, timeout=60)
        longer = strips.wait(lambda told: told[-1]["moment"] == "commit")[-1]["tokens"]
        httpx.post(f"{address}/v1/sessions/{session}/focus", json={"pin": [FAR]})
        pinned = strips.wait(lambda told: told[-1]["opened"] != [])[-1]
        assert {reason for *_, reason, _ in pinned["opened"]} == {"pinned"}
        assert {at for start, end, *_ in pinned["opened"] for at in range(start, end)} >= set(range(*FAR))
        httpx.post(f"{address}/v1/sessions/{session}/rewind", json={"position": 700})
        assert longer > 700
        strips.wait(lambda told: told[-1]["tokens"] == 700)


def test_one_look_is_enough_for_some(http: httpx.Client, session: str) -> None:
    """With a limit the stream ends by itself, as soon as it has told so many."""
    told = http.get(f"/v1/sessions/{session}/focus/stream", params={"limit": 1})
    assert told.status_code == 200
    assert told.text.count("event: ") == told.text.count("event: strip") == 1
    for wrong in (0, "x"):
        answer = http.get(f"/v1/sessions/{session}/focus/stream", params={"limit": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


def test_many_follow_and_go_as_they_like(model_dir: Any, tmp_path: Any) -> None:
    """Each of several readers is told; one that goes away is forgotten, and nobody else notices."""
    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server:
        followers, session = state_in(server).followers, ingested(server.address)
        with following(server.address, session) as one, following(server.address, session) as two:
            assert len(followers) == 2
            with following(server.address, session):
                assert len(followers) == 3
            wait_until(lambda: len(followers) == 2)
            ask(server.address, session)
            for strips in (one, two):
                strips.wait(lambda told: told[-1]["moment"] == "commit")
        wait_until(lambda: len(followers) == 0)
        assert httpx.head(f"{server.address}/v1/sessions/{session}/focus/stream").status_code == 200
        wait_until(lambda: len(followers) == 0)


def test_a_deleted_session_ends_its_streams(address: str) -> None:
    """Who follows is told that there is nothing more, and a stream that is asked for then is 404."""
    session = ingested(address)
    with following(address, session) as strips:
        httpx.delete(f"{address}/v1/sessions/{session}")
        assert strips.over.wait(20)
        assert strips.events[-1] == ("end", {"reason": "deleted"})
    assert httpx.get(f"{address}/v1/sessions/{session}/focus/stream").status_code == 404


def test_a_server_that_drains_waits_for_no_follower(model_dir: Any, tmp_path: Any) -> None:
    """At SIGTERM streams end at once, so that they don't use up the time that running turns have."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", drain_seconds=600.0)
    with ServerThread(settings) as server:
        session = ingested(server.address)
        with following(server.address, session) as strips:
            server.sigterm()
            assert strips.over.wait(20)
            assert strips.events[-1] == ("end", {"reason": "draining"})
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_session_that_left_memory_is_followed_too(model_dir: Any, tmp_path: Any) -> None:
    """A stream goes on when its session is unloaded and comes back for a turn."""
    with running(settings_for(model_dir, tmp_path / "s.sqlite", max_resident_sessions=1)) as address:
        session = ingested(address)
        with following(address, session) as strips:
            other = ingested(address, "Another text.")
            ask(address, other)
            reply = ask(address, session)
            assert reply["x_megacontext"]["source"] == "restored"
            strips.wait(lambda told: told[-1]["tokens"] == reply["x_megacontext"]["tokens"])


def test_a_session_that_is_followed_is_not_idle(model_dir: Any, tmp_path: Any) -> None:
    """While a stream of it is open a session stays in memory, though nothing happens in it; afterwards it leaves."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", idle_seconds=0.4)
    with ServerThread(settings) as server:
        session = ingested(server.address)
        residents = state_in(server).host.residents
        with following(server.address, session) as strips:
            strips.wait(bool)
            (slot,) = residents
            slot.used = 0.0
            other = ingested(server.address, "Another text.")
            wait_until(lambda: all(each.session is None or each.session.id != other for each in residents))
            assert slot.session is not None
        wait_until(lambda: slot.session is None)
        assert slot.used > 0


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_is_what_went_in(address: str) -> None:
    """Parts of a history, in memory or in the store, join to the text; characters are never cut in two."""
    written = "Größe, naïve café, 東京 🙂 🦊! " * 300
    session = ingested(address, written)
    tokens = focus(address, session)["tokens"]
    borders = [0, 1, 2, 3, 77, 501, 1_000, 1_001, tokens - 1, tokens]
    url = f"{address}/v1/sessions/{session}/text"
    parts = [httpx.get(url, params={"start": a, "end": b}).json() for a, b in itertools.pairwise(borders)]
    assert "".join(part["text"] for part in parts) == written
    assert [(part["start"], part["end"]) for part in parts] == list(itertools.pairwise(borders))


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [(5, 5, "end"), (6, 5, "end"), (0, 8_193, "end"), (0, 10**7, "end"), (-1, 4, "start"), (0, "x", "end")],
)
def test_text_that_is_not_there(address: str, start: Any, end: Any, param: str) -> None:
    """A range that is none, too long, or beyond the history is answered 400 with the parameter's name."""
    session = ingested(address, "Short.")
    answer = httpx.get(f"{address}/v1/sessions/{session}/text", params={"start": start, "end": end})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    beyond = httpx.get(f"{address}/v1/sessions/{session}/text", params={"start": 0, "end": 1_000})
    assert (beyond.status_code, beyond.json()["error"]["param"]) == (400, "end")


# -- pins --------------------------------------------------------------------------------------------------------------


def pins(address: str, session: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/sessions/{session}/focus", json=body, timeout=60)


def test_a_pinned_place_is_raw_in_the_next_turn_and_after_a_kill(model_dir: Any, tmp_path: Any) -> None:
    """What was opened by hand is read by the model from then on, also by the server that comes after a kill -9."""
    store = tmp_path / "s.sqlite"
    with ForkedServer(model_dir, store) as server:
        session = ingested(server.address)
        assert not raw_tokens(focus(server.address, session)["entries"]) & set(range(*FAR))
        shown = pins(server.address, session, pin=[FAR]).json()
        assert shown["pins"] == [[1_984, 2_112]]
        assert shown["pin_room"] == focus(server.address, session)["pin_room"]
        ask(server.address, session)
        assert raw_tokens(focus(server.address, session)["entries"]) >= set(range(*FAR))
        server.stop()
    with ForkedServer(model_dir, store) as server:
        for _ in range(2):
            ask(server.address, session, "And then?")
            shown = focus(server.address, session)
            assert shown["pins"] == [[1_984, 2_112]]
            assert raw_tokens(shown["entries"]) >= set(range(*FAR))
        pinned = [entry for entry in shown["entries"] if 1_984 <= entry["start"] < 2_112]
        assert {(entry["reason"], entry["shown"]) for entry in pinned} == {("pinned", 32)}
        freed = pins(server.address, session, unpin=[[0 + 1_984, 2_112]]).json()
        assert freed["pins"] == []


def test_a_fork_has_the_pins_of_its_part(http: httpx.Client, address: str) -> None:
    """Law: a fork begins as the session does, pins and all, and its own can be let go; a pin behind its end is none."""
    session = ingested(address)
    pins(address, session, pin=[[300, 310], FAR])
    forks = {
        at: http.post(f"/v1/sessions/{session}/fork", json={"position": at}).json()["id"] for at in (2_400, 2_050, 305)
    }
    assert [focus(address, forks[at])["pins"] for at in forks] == [
        [[288, 320], [1_984, 2_112]],
        [[288, 320], [1_984, 2_050]],
        [[288, 305]],
    ]
    for fork in forks.values():
        ask(address, fork)
    shown = focus(address, forks[2_400])
    assert raw_tokens(shown["entries"]) >= set(range(*FAR))
    assert pins(address, forks[2_400], unpin=[FAR]).json()["pins"] == [[288, 320]]
    assert focus(address, session)["pins"] == [[288, 320], [1_984, 2_112]]


def test_pins_that_cannot_be(http: httpx.Client, address: str) -> None:
    """No room, no such tokens, a system message: 400 that names the field and what is left; nothing changes."""
    made = http.post("/v1/sessions", json={"system": "You count waves."}).json()
    session = made["id"]
    http.post(f"/v1/sessions/{session}/ingest", content=TEXT)
    assert pins(address, session, pin=[FAR]).status_code == 200
    before = focus(address, session)
    cases = [
        ({"pin": [[3_000, 3_001 + before["pin_room"]]]}, "pin", f"there is room for {before['pin_room']}"),
        ({"pin": [[10, 10**7]]}, "pin", "beyond the history's"),
        ({"unpin": [[0, 3]]}, "unpin", "always stay"),
        ({"pin": [[7, 7]]}, "pin.0", "start below end"),
        ({"pin": [[7]]}, "pin.0", "2 items"),
        ({"pin": [[-1, 7]]}, "pin.0.0", "greater than or equal to 0"),
        ({"pins": []}, "pins", "pins"),
    ]
    for body, param, words in cases:
        answer = pins(address, session, **body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert words in error["message"]
    assert pins(address, session, pin=[[3_000, 3_001 + before["pin_room"]]]).json()["error"]["code"] == "pin_room"
    assert focus(address, session) == before
    http.delete(f"/v1/sessions/{session}")


# -- a budget of one's own ---------------------------------------------------------------------------------------------


def test_frames_take_the_share_of_a_sessions_own_budget(tmp_path: Any) -> None:
    """A session with a smaller budget has so much less room for frames, in what is told and in what is read."""
    model = write_model(tmp_path / "tiny", block_mask=False)
    with ServerThread(settings_for(model, tmp_path / "s.sqlite", budget=768)) as server:
        core, host = state_in(server).engine.core, state_in(server).host
        assert core.frame_room == 768 // 8
        small = httpx.post(f"{server.address}/v1/sessions", json={"budget": 400}).json()["id"]
        for number in range(8):
            ask(server.address, small, f"Wave {number}: " + "the keeper counted it. " * 30, max_tokens=2)
        told = ask(server.address, small, "Which wave was it, wave 3 or wave 5?")["x_megacontext"]
        session = next(slot.session for slot in host.residents if slot.session is not None)
        assert core.room(session) == 400 // 8
        assert 0 < told["framed"] <= 400 // 8
        assert focus(server.address, small)["framed"] <= 400 // 8


# -- what a reply stood on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_tells_its_sources_when_asked(address: str, path: str, stream: bool) -> None:
    """Whole or streamed: places with their text and shares, which with the rest make 1; and nothing unasked."""
    session = ingested(address)
    body: dict[str, Any] = {"model": MODEL, "session_id": session, "max_tokens": 20, "stream": stream}
    body |= {"messages": [{"role": "user", "content": "waves?"}]} if path.startswith("chat") else {"prompt": "waves"}
    for asked in (True, False):
        more = {"x_megacontext": {"sources": asked}} if asked else {}
        answer = httpx.post(f"{address}/v1/{path}", json=body | more, timeout=60)
        assert answer.status_code == 200, answer.text
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        (told,) = (one["x_megacontext"] for one in chunks or [answer.json()] if "x_megacontext" in one)
        assert ("sources" in told, "rest" in told, "provenance" in told) == (asked, asked, False)
        if not asked:
            continue
        shares = [place["share"] for place in told["sources"]]
        assert shares
        assert sum(shares) + sum(told["rest"].values()) == pytest.approx(1.0, abs=1e-4)
        for place in told["sources"]:
            part = httpx.get(
                f"{address}/v1/sessions/{session}/text", params={"start": place["start"], "end": place["end"]}
            ).json()["text"]
            assert part.startswith(place["text_start"][:20])


def test_wishes_of_a_context_are_strict(address: str) -> None:
    """A wish that is not known, or of another kind, is refused by its name."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    for wish, param in (({"source": True}, "x_megacontext.source"), ({"sources": 1}, "x_megacontext.sources")):
        answer = httpx.post(f"{address}/v1/chat/completions", json=body | {"x_megacontext": wish})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
