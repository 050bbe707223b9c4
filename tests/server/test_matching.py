"""Without a session id, the server finds the session that a list of messages continues: a cache, never a guess."""

import concurrent.futures

import httpx
import pytest

from support import running, settings_for

MODEL = "tiny"


class Talk:
    """A client that keeps the whole list of messages, as clients without sessions do."""

    def __init__(self, http, **headers):
        self.http, self.headers, self.messages = http, headers, []

    def say(self, text, **options):
        """Send everything -> (session id, cached tokens, all prompt tokens)."""
        self.messages.append({"role": "user", "content": text})
        body = {"model": MODEL, "messages": self.messages, "max_tokens": 6, "seed": 1, **options}
        reply = self.http.post("/v1/chat/completions", json=body, headers=self.headers).json()
        self.messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
        usage = reply["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return reply["x_megacontext"]["session_id"], cached, usage["prompt_tokens"]


def fork(talk):
    other = Talk(talk.http, **talk.headers)
    other.messages = list(talk.messages)
    return other


@pytest.fixture
def talk(http, request):
    started = Talk(http)
    # Its own first message, so that no other test's session is a prefix.
    started.messages.append({"role": "system", "content": f"This is {request.node.name}."})
    return started


def test_a_conversation_stays_in_one_session(talk):
    """Each turn reads only what is new, however long the list that the client sends."""
    first, cached, size = talk.say("One")
    assert cached == 0
    for text in ("Two", "Three", "Four"):
        session, cached, longer = talk.say(text)
        assert session == first
        assert cached >= size
        assert longer > cached
        size = longer


def test_going_back_leaves_a_branch(talk):
    """A client that goes back to an earlier message shares the history up to there; either branch can go on."""
    talk.say("One")
    earlier = fork(talk)
    session, _, _ = talk.say("Two")
    talk.say("Three")
    branch, cached, size = earlier.say("Another two")
    assert branch != session
    assert 32 <= cached < size
    for client, home in ((talk, session), (earlier, branch)):
        before = client.http.get(f"/v1/sessions/{home}").json()["tokens"]
        again, cached, _ = client.say("Four")
        assert again == home
        assert before - 20 <= cached <= before


@pytest.mark.parametrize("change", ["system", "user", "assistant", "role"])
def test_another_history_is_another_session(talk, change):
    """A single changed character or role before the end makes it another conversation, which shares what it can."""
    first, _, size = talk.say("One")
    if change == "role":
        talk.messages[0]["role"] = "user"
    else:
        message = next(m for m in talk.messages if m["role"] == change)
        message["content"] += "."
    session, cached, _ = talk.say("Two")
    assert session != first
    # A beginning shorter than a block is not worth sharing.
    assert cached == 0 if change in ("system", "role") else 32 <= cached < size + 6


def test_named_sessions_are_never_taken(http, session):
    """A session that a client made and named is not found by its messages."""
    body = {"model": MODEL, "max_tokens": 3, "session_id": session, "messages": [{"role": "user", "content": "named"}]}
    reply = http.post("/v1/chat/completions", json=body).json()
    more = [*body["messages"], {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}]
    more.append({"role": "user", "content": "more"})
    other = http.post("/v1/chat/completions", json={"model": MODEL, "max_tokens": 3, "messages": more}).json()
    assert other["x_megacontext"]["session_id"] != session
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_two_at_once_do_not_share_a_session(talk):
    """Two requests that continue the same history at once each get a session of their own, and a whole reply."""
    talk.say("One")
    both = [fork(talk), fork(talk)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda i: both[i].say("Two", max_tokens=40, ignore_eos=True, seed=i), range(2)))
    assert answers[0][0] != answers[1][0]
    # Both go on from there, each in its own session.
    for one, (session, _, size) in zip(both, answers, strict=True):
        again, cached, _ = one.say("Three")
        assert again == session
        assert cached >= size


def test_a_restart_keeps_the_matches(model_dir, tmp_path):
    """The server finds a conversation again after a restart, for the same key alone."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key="a,b")
    mine, yours = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
    with running(settings) as address, httpx.Client(base_url=address) as http:
        talk = Talk(http, **mine)
        first, _, size = talk.say("One")
    with running(settings) as address, httpx.Client(base_url=address) as http:
        stranger = Talk(http, **yours)
        stranger.messages = list(talk.messages)
        assert stranger.say("Two")[1] == 0
        talk.http = http
        session, cached, _ = talk.say("Two")
        assert session == first
        assert cached >= size


def test_implicit_sessions_are_bounded(model_dir, tmp_path):
    """The oldest sessions that no client named are deleted beyond the limit; named ones stay."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_implicit_sessions=10)
    with running(settings) as address, httpx.Client(base_url=address) as http:
        named = http.post("/v1/sessions", json={}).json()["id"]
        for i in range(130):
            body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": f"Number {i}"}]}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
        left = http.get("/v1/sessions", params={"limit": 1000}).json()["data"]
        assert len([session for session in left if session["implicit"]]) <= 10 + 64
        assert named in [session["id"] for session in left]
