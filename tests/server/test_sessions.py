"""Sessions over HTTP: their life, what focus shows of them, and the wall between tenants."""

import concurrent.futures
import itertools

import httpx
import pytest

from support import ServerThread, gauge, running, settings_for, state_in, wait_until

MODEL = "tiny"
TEXT = "The keeper of the lighthouse counted the waves, and told nobody. " * 200


def test_a_session_from_creation_to_deletion(http):
    """Create, inspect, list and delete show one and the same session; after that it is gone."""
    made = http.post("/v1/sessions", json={"metadata": {"title": "café"}, "budget": 380})
    assert made.status_code == 201
    body = made.json()
    assert {"id", "tokens", "budget", "cost", "utilization", "sequence"} <= set(body)
    assert (body["tokens"], body["budget"], body["cost"], body["utilization"]) == (0, 380, 0, 0)
    seen = http.get(f"/v1/sessions/{body['id']}").json()
    assert seen["metadata"] == {"title": "café"}
    assert body["id"] in [session["id"] for session in http.get("/v1/sessions").json()["data"]]
    gone = http.delete(f"/v1/sessions/{body['id']}")
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert http.get(f"/v1/sessions/{body['id']}").status_code == 404
    assert http.delete(f"/v1/sessions/{body['id']}").status_code == 404


@pytest.mark.parametrize("kind", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "objects"])
def test_metadata_is_told_as_deep_as_it_is_taken(http, kind):
    """What is nested too deep is refused by name, and no session is so deep that lists of sessions fail with it."""

    def nested(levels):
        inner = 1
        for _ in range(levels - 1):
            inner = kind(inner)
        return {"a": inner}

    before = [session["id"] for session in http.get("/v1/sessions").json()["data"]]
    for levels in (65, 300, 900):
        answer = http.post("/v1/sessions", json={"metadata": nested(levels)})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "metadata"
        assert "64 levels" in answer.json()["error"]["message"]
    assert [session["id"] for session in http.get("/v1/sessions").json()["data"]] == before
    made = http.post("/v1/sessions", json={"metadata": nested(64)})
    assert (made.status_code, made.json()["metadata"]) == (201, nested(64))
    http.delete(f"/v1/sessions/{made.json()['id']}")


def test_listing_is_paged(http):
    """Pages put together are all sessions, newest first, each once."""
    made = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(5)]
    found, after = [], None
    while True:
        params = {"limit": 2} | ({"after": after} if after else {})
        page = http.get("/v1/sessions", params=params).json()
        assert len(page["data"]) <= 2
        assert page["has_more"] == (page["next"] is not None)
        found += [session["id"] for session in page["data"]]
        after = page["next"]
        if after is None:
            break
    assert len(found) == len(set(found))
    assert [session for session in found if session in made] == made[::-1]
    for session in made:
        http.delete(f"/v1/sessions/{session}")


@pytest.mark.parametrize(
    "body",
    [
        {"budget": 100},
        {"budget": 10_000},
        {"budget": "big"},
        {"system": ""},
        {"metadata": {"x": "y" * 20_000}},
        {"a": 1},
    ],
)
def test_sessions_that_cannot_be(http, body):
    """A budget out of range, oversized metadata and unknown fields are answered 400 and leave nothing behind."""
    before = http.get("/v1/sessions", params={"limit": 1000}).json()["data"]
    response = http.post("/v1/sessions", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    assert http.get("/v1/sessions", params={"limit": 1000}).json()["data"] == before


def test_focus_tiles_the_history_within_the_budget(http, session):
    """/focus shows entries that cover [0, N) without gap or overlap, whose costs add up to at most the budget."""
    http.post(f"/v1/sessions/{session}/ingest", content=TEXT)
    body = {"model": MODEL, "session_id": session, "max_tokens": 4, "messages": [{"role": "user", "content": "waves?"}]}
    context = http.post("/v1/chat/completions", json=body).json()["x_megacontext"]
    focus = http.get(f"/v1/sessions/{session}/focus").json()
    entries = focus["entries"]
    assert set(entries[0]) >= {"level", "start", "end", "cost", "score", "residency"}
    assert entries[0]["start"] == 0
    assert entries[-1]["end"] == focus["tokens"] == context["tokens"]
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(entries))
    assert sum(entry["cost"] for entry in entries) == focus["cost"] <= focus["budget"] == 384
    assert focus["utilization"] == pytest.approx(focus["cost"] / focus["budget"])
    assert 0 <= focus["swap_rate"] <= 1
    for entry in entries:
        span = entry["end"] - entry["start"]
        # The bundle under test hides its gists: they cost nothing.
        assert entry["cost"] == (span if entry["level"] == 0 else 0)
        assert span == 32 ** max(1, entry["level"]) or entry is entries[-1]
        assert -1 <= entry["score"] <= 1
    assert max(entry["level"] for entry in entries) >= 1


def test_a_system_prompt_is_read_at_once_and_stays_raw(http):
    """A session's system prompt is in its history before the first turn, and is never collapsed."""
    system = "You are the keeper of the lighthouse and you answer in one short sentence. " * 3
    made = http.post("/v1/sessions", json={"system": system}).json()
    assert made["tokens"] > 32
    http.post(f"/v1/sessions/{made['id']}/ingest", content=TEXT)
    body = {"model": MODEL, "session_id": made["id"], "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    entries = http.get(f"/v1/sessions/{made['id']}/focus").json()["entries"]
    head = [entry for entry in entries if entry["start"] < made["tokens"]]
    assert {entry["level"] for entry in head} == {0}
    http.delete(f"/v1/sessions/{made['id']}")


@pytest.mark.parametrize("position", [0, 1, 31, 32, 33, 700, 1500])
def test_rewind(http, session, position):
    """A rewind cuts the history at any position, and the session goes on from there."""
    total = http.post(f"/v1/sessions/{session}/ingest", content=TEXT).json()["tokens"]
    assert http.post(f"/v1/sessions/{session}/rewind", json={"position": position}).json() == {"tokens": position}
    focus = http.get(f"/v1/sessions/{session}/focus").json()
    assert focus["tokens"] == position == sum(entry["end"] - entry["start"] for entry in focus["entries"])
    again = http.post(f"/v1/sessions/{session}/ingest", content=TEXT).json()
    assert again == {"tokens_added": total, "tokens": position + total}


@pytest.mark.parametrize(
    "body", [{"position": -1}, {"position": 10**9}, {"position": "x"}, {}, {"position": 1, "b": 2}]
)
def test_impossible_rewinds(http, session, body):
    """A position outside the history is answered 400 with the field's name, and nothing changes."""
    http.post(f"/v1/sessions/{session}/ingest", content="Some text")
    before = http.get(f"/v1/sessions/{session}").json()
    response = http.post(f"/v1/sessions/{session}/rewind", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"]
    assert http.get(f"/v1/sessions/{session}").json() == before


def test_tenants_do_not_see_each_other(model_dir, tmp_path):
    """With keys, a request without one is answered 401, and another key's session does not exist."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key="first,second")
    with running(settings) as address:
        first, second, nobody, wrong = (
            httpx.Client(base_url=address, headers=headers)
            for headers in (
                {"authorization": "Bearer first"},
                {"authorization": "bearer second"},
                {},
                {"authorization": "Bearer third"},
            )
        )
        session = first.post("/v1/sessions", json={}).json()["id"]
        ask = {"model": MODEL, "session_id": session, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
        calls = [
            ("GET", f"/v1/sessions/{session}", None),
            ("GET", f"/v1/sessions/{session}/focus", None),
            ("POST", f"/v1/sessions/{session}/rewind", {"position": 0}),
            ("POST", f"/v1/sessions/{session}/ingest", {"text": "x"}),
            ("POST", "/v1/chat/completions", ask),
            ("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "session_id": session}),
            ("DELETE", f"/v1/sessions/{session}", None),
        ]
        for method, path, body in calls:
            assert second.request(method, path, json=body).status_code == 404, path
            for stranger in (nobody, wrong):
                answer = stranger.request(method, path, json=body)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["type"] == "authentication_error"
        assert nobody.get("/v1/models").status_code == 401
        assert second.get("/v1/sessions").json()["data"] == []
        # Not even the history that both tell in the same words is shared.
        told = [{"role": "user", "content": "Hi"}]
        reply = first.post("/v1/chat/completions", json={"model": MODEL, "messages": told, "max_tokens": 2}).json()
        more = [*told, reply["choices"][0]["message"] | {}, {"role": "user", "content": "And?"}]
        more = [{"role": message["role"], "content": message["content"]} for message in more]
        body = {"model": MODEL, "messages": more, "max_tokens": 2}
        assert second.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens_details"] == {
            "cached_tokens": 0
        }
        assert first.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens_details"] != {
            "cached_tokens": 0
        }
        for probe in ("/health", "/ready", "/metrics"):
            assert nobody.get(probe).status_code == 200
        for client in (first, second, nobody, wrong):
            client.close()


def test_memory_holds_a_bounded_number_of_sessions(model_dir, tmp_path):
    """Sessions beyond the limit leave memory, the longest idle first, and come back from the store when asked for."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_resident_sessions=2)
    with running(settings) as address, httpx.Client(base_url=address) as http:
        made = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(5)]
        body = {"model": MODEL, "max_tokens": 2, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]}
        sources = []
        for _ in range(2):
            for session in made:
                reply = http.post("/v1/chat/completions", json={**body, "session_id": session}).json()
                sources.append(reply["x_megacontext"]["source"])
        assert "restored" in sources[5:]
        # Sessions leave in the background, after the reply that made one too many.
        wait_until(lambda: gauge(address, "megacontext_sessions_resident") <= 3)
        assert len({http.get(f"/v1/sessions/{session}").json()["tokens"] for session in made}) == 1


def test_memory_holds_a_bounded_number_of_tokens(model_dir, tmp_path):
    """Idle sessions leave while all of those in memory are too long together, but for one; what is asked comes back."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_resident_tokens=1500)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        made = [http.post("/v1/sessions", json={}).json()["id"] for _ in range(3)]
        tokens = [http.post(f"/v1/sessions/{one}/ingest", content=TEXT * 4).json()["tokens"] for one in made]
        assert 750 < tokens[0] < 100_000
        wait_until(lambda: gauge(address, "megacontext_sessions_resident") == 1)
        assert gauge(address, "megacontext_sessions_resident_tokens") == tokens[0]
        assert [http.get(f"/v1/sessions/{one}").json()["tokens"] for one in made] == tokens


def test_sessions_that_nobody_uses_leave_memory(model_dir, tmp_path):
    """After idle_seconds they do, slab and all, and go on when they are asked."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", idle_seconds=0.4)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        session = http.post("/v1/sessions", json={}).json()["id"]
        body = {"model": MODEL, "max_tokens": 2, "session_id": session, "messages": [{"role": "user", "content": "Hi"}]}
        first = http.post("/v1/chat/completions", json=body).json()["x_megacontext"]
        wait_until(lambda: gauge(address, "megacontext_sessions_resident") == 0)
        again = http.post("/v1/chat/completions", json=body).json()["x_megacontext"]
        assert again["source"] == "restored"
        assert again["tokens"] > first["tokens"]


def test_what_would_bring_a_session_back_keeps_it_in_memory(model_dir, tmp_path):
    """A request that needs the session in memory is use of it, though it only looks; one that the store answers is
    none."""
    with (
        ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server,
        httpx.Client(base_url=f"{server.address}/v1/sessions", timeout=60) as http,
    ):
        session, other = (http.post("", json={}).json()["id"] for _ in range(2))
        http.post(f"/{session}/ingest", content=TEXT)
        http.get(f"/{other}/focus")
        residents = state_in(server).host.residents
        (slot,) = [each for each in residents if each.session is not None and each.session.id == session]
        reads = {"": False, "/messages": False, "/export": False}
        looks = {"/focus": True, "/text?start=0&end=9": True, "/focus/stream?limit=1": True, "/ingest": True}
        for path, counts in (reads | looks).items():
            slot.used = 0.0
            assert http.get(f"/{session}{path}").status_code == 200
            assert (slot.used > 0) == counts, path
            assert (list(residents)[-1] is slot) == counts, path
            http.get(f"/{other}/focus")


def test_many_at_once_load_a_session_once(model_dir, tmp_path):
    """Requests that wake one session at the same time all get it, one after the other."""
    store = tmp_path / "s.sqlite"
    with running(settings_for(model_dir, store)) as address:
        session = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]
        httpx.post(f"{address}/v1/sessions/{session}/ingest", content=TEXT)
    with running(settings_for(model_dir, store)) as address, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda i: httpx.post(f"{address}/v1/sessions/{session}/ingest", json={"text": f" word{i}"}), range(8)
            )
        )
        assert [answer.status_code for answer in answers] == [200] * 8
        totals = sorted(answer.json()["tokens"] for answer in answers)
        assert len(set(totals)) == 8
        assert httpx.get(f"{address}/v1/sessions/{session}").json()["tokens"] == totals[-1]
