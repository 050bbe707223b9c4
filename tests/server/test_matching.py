"""Without a session id, the server finds the session that a list of messages continues: a cache, never a guess."""

import concurrent.futures
import json
import logging
from dataclasses import replace

import httpx
import pytest

from mc_core.models.tokenizer import Tokenizer
from mc_core.session.cut_end import CUT_OFF
from mc_core.session.factory import SessionFactory
from server.stores.sqlite import SqliteStore
from support import ServerThread, add_lensnet, running, settings_for, state_in, wait_until, write_model

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
    """Law: of the sessions that no client named a key keeps the newest ones up to its limit; named ones stay."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_implicit_sessions=10)
    with running(settings) as address, httpx.Client(base_url=address) as http:
        named = http.post("/v1/sessions", json={}).json()["id"]
        made = []
        for i in range(25):
            body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": f"Number {i}"}]}
            made.append(http.post("/v1/chat/completions", json=body).json()["x_megacontext"]["session_id"])

        def left(implicit):
            page = http.get("/v1/sessions", params={"limit": 1000, "implicit": implicit}).json()
            return [session["id"] for session in page["data"]]

        wait_until(lambda: left(True) == made[-1:-11:-1])
        assert left(False) == [named]


def leave(http, messages, cancel=False, **headers):
    """Begin a chat without an end, and go away, or cancel it, once it speaks."""
    body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 10**6, "ignore_eos": True}
    with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as stream:
        lines = stream.iter_lines()
        while '"content":"' not in next(lines):
            pass
        if cancel:
            http.post("/v1/requests/cancel", json={"idempotency_key": headers["Idempotency-Key"]})
            assert '"code":"turn_cancelled"' in "".join(lines)


def test_chats_that_are_not_stored_leave_no_session(model_dir, tmp_path):
    """Law: a chat that is left or cancelled leaves no session, neither a new one nor a branch, so it pushes out none; a
    response in the background that was cancelled stays, and so does an empty session that a client made."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", max_implicit_sessions=4)
    with running(settings) as address, httpx.Client(base_url=address, timeout=60) as http:
        named = http.post("/v1/sessions", json={}).json()["id"]
        home, _, _ = Talk(http).say(DOCUMENT)
        asked = {"model": MODEL, "input": "Go on", "background": True, "max_output_tokens": 10**6, "ignore_eos": True}
        response = http.post("/v1/responses", json=asked).json()["id"]
        http.post(f"/v1/responses/{response}/cancel")
        for i in range(8):
            leave(http, [{"role": "user", "content": f"{DOCUMENT} So?" if i % 2 else f"Number {i}"}])
        leave(http, [{"role": "user", "content": "Hello"}], cancel=True, **{"Idempotency-Key": "once"})
        leave(http, [{"role": "user", "content": "So?"}], **{"X-Session-ID": named})
        wait_until(lambda: len(http.get("/v1/sessions").json()["data"]) == 3)
        assert {home, named} < {session["id"] for session in http.get("/v1/sessions").json()["data"]}
        assert http.get(f"/v1/responses/{response}").json()["status"] == "cancelled"


DOCUMENT = "The keeper of the lighthouse counted the waves, and told nobody about the number 4711. " * 60


def test_what_two_chats_have_in_common_is_shared(talk):
    """Another question in the same long message, a changed last reply, and the first question asked anew: each is a
    branch of what is there already, to the token, and the older branches stay."""
    document = f"{talk.messages[0]['content']} {DOCUMENT}"
    del talk.messages[0]
    home, cached, size = talk.say(f"{document} How many waves?")
    assert cached == 0
    assert size > 1000
    other = Talk(talk.http)
    away, cached, _ = other.say(f"{document} Which number?")
    assert away != home
    assert size - 32 < cached < size
    anew = Talk(talk.http)
    third, cached, again = anew.say(f"{document} How many waves?", seed=2)
    assert third not in (home, away)
    # The last token is read: it asks for the reply.
    assert (cached, again) == (size - 1, size)
    edited = fork(talk)
    edited.messages[-1] = {**talk.messages[-1], "content": talk.messages[-1]["content"] + "\n"}
    assert edited.say("Go on")[1] >= size
    for client, session in ((talk, home), (other, away)):
        session_again, cached, _ = client.say("And then?")
        assert session_again == session
        assert cached >= size - 32


def test_a_branch_lives_alone(talk):
    """Branches share what the store holds, and go on when the session they came from is deleted."""
    home, _, _ = talk.say(DOCUMENT)
    branch = Talk(talk.http)
    branch.messages = [*talk.messages[:1]]
    away, cached, _ = branch.say(f"{DOCUMENT} So?")
    assert away != home
    assert cached > 1000
    assert talk.http.delete(f"/v1/sessions/{home}").status_code == 200
    again, cached, size = branch.say("Really?")
    assert again == away
    assert cached > size - 50
    ingested = talk.http.post(f"/v1/sessions/{away}/ingest", json={"text": DOCUMENT}).json()
    position = ingested["tokens"] - ingested["tokens_added"] - 500
    assert talk.http.post(f"/v1/sessions/{away}/rewind", json={"position": position}).json() == {"tokens": position}


@pytest.mark.parametrize("change", ["ingest", "completion", "rewind"])
def test_a_list_of_messages_is_all_that_its_model_sees(talk, change):
    """What else was done to the session of a plain chat stays there: its list goes on behind what it holds itself."""
    home, _, _ = talk.say("One and two and three")
    tokens = talk.http.get(f"/v1/sessions/{home}").json()["tokens"]
    if change == "ingest":
        talk.http.post(f"/v1/sessions/{home}/ingest", json={"text": DOCUMENT})
    elif change == "completion":
        talk.http.post("/v1/completions", json={"model": MODEL, "prompt": "So", "session_id": home, "max_tokens": 2})
    else:
        talk.http.post(f"/v1/sessions/{home}/rewind", json={"position": tokens - 9})
    away, cached, longer = talk.say("Four")
    assert away != home
    assert (0 if change == "rewind" else 32) <= cached <= tokens
    assert longer < tokens + 40


def test_a_busy_session_is_shared_as_it_was_committed(talk):
    """While one turn runs, another one that continues the same history shares what was committed before it."""
    home, _, size = talk.say(DOCUMENT)
    body = {"model": MODEL, "stream": True, "max_tokens": 400, "ignore_eos": True}
    body["messages"] = [*talk.messages, {"role": "user", "content": "Write on"}]
    with talk.http.stream("POST", "/v1/chat/completions", json=body) as running_turn:
        lines = running_turn.iter_lines()
        next(lines)
        away, cached, _ = talk.say("Two")
    assert away != home
    assert cached >= size


@pytest.fixture
def stranger(tmp_path):
    """A model of the same name and shape, whose tokenizer can't read what the other one wrote."""
    folder = write_model(tmp_path / "other" / MODEL)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["added_tokens"][0]["lstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


def test_a_session_of_another_tokenizer_is_no_dead_end(model_dir, stranger, tmp_path, caplog):
    """Its chat gets another session, and who names it is told of both tokenizers and what writes it anew, which is no
    fault of the server's: nothing goes to its log."""
    store = tmp_path / "s.sqlite"
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address) as http:
        talk = Talk(http)
        lost, _, _ = talk.say(DOCUMENT)
    with running(settings_for(stranger, store)) as address, httpx.Client(base_url=address) as http:
        talk.http = http
        session, cached, _ = talk.say("Two")
        assert session != lost
        assert cached == 0
        assert talk.say("Three")[0] == session
        body = {"model": MODEL, "session_id": lost, "messages": [{"role": "user", "content": "Hi"}]}
        for answer in (http.post("/v1/chat/completions", json=body), http.get(f"/v1/sessions/{lost}/focus")):
            assert (answer.status_code, answer.headers["X-Should-Retry"]) == (409, "false")
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("session_mismatch", "invalid_request_error")
            for told in (lost, *(Tokenizer.load(folder).fingerprint[:12] for folder in (model_dir, stranger))):
                assert error["message"].count(told) == 1
            assert "megacontext sessions migrate" in error["message"]
        assert http.delete(f"/v1/sessions/{lost}").status_code == 200
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def cut_off(store, session):
    """As a crash leaves a session between the two commits of a turn that writes the last token anew."""
    opened = SqliteStore(store)
    ((tenant, _),) = [one for one in opened.everything().result() if one[1] == session]
    record = opened.open(session, tenant, "test").result().record
    tokens, ids = record.tokens - 1, record.tail[-1:].tolist()
    end = {"ids": ids, "prefixes": record.prefixes, "sources": record.state.get("sources", []), "pins": []}
    kept = [prefix for prefix in record.prefixes if prefix[1] <= tokens]
    state = {**record.state, CUT_OFF: end}
    cut = replace(record, tokens=tokens, tail=record.tail[:-1], prefixes=kept, state=state)
    opened.commit(cut, beyond="keep").result()
    opened.close()


@pytest.mark.parametrize("kind", ["tokenizer", "block_size"])
def test_what_is_said_of_a_session_that_cannot_be_read_is_kept(model_dir, stranger, tmp_path, kind):
    """Metadata and how long it is kept can be changed, as If-Match allows, and the session goes on with them where it
    can be read, as it was; also one whose end a crash cut off, which comes back."""
    store = tmp_path / "s.sqlite"
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address) as http:
        session = http.post("/v1/sessions", json={"ttl": 900}).json()["id"]
        http.post(f"/v1/sessions/{session}/ingest", content=DOCUMENT)
        messages = http.get(f"/v1/sessions/{session}/messages").json()
        text = http.get(f"/v1/sessions/{session}/text?start=0&end=99").json()
        hurt = http.post(f"/v1/sessions/{session}/fork", json={}).json()["id"]
        whole = http.get(f"/v1/sessions/{hurt}/messages").json()
        assert len(whole["data"]) == 1
    cut_off(store, hurt)
    changed = (stranger, {}) if kind == "tokenizer" else (model_dir, {"block_size": 16})
    url = f"/v1/sessions/{session}"
    with (
        ServerThread(settings_for(changed[0], store, **changed[1])) as server,
        httpx.Client(base_url=server.address) as http,
    ):
        before = http.get(url)
        fields = {"keep": True, "ttl": 0, "metadata": {"note": "kept"}}
        assert http.patch(url, json=fields, headers={"If-Match": '"999"'}).status_code == 412
        assert http.get(url).json() == before.json()
        told = http.patch(url, json=fields, headers={"If-Match": before.headers["etag"]})
        assert told.status_code == 200
        assert told.json() == http.get(url).json()
        assert told.headers["etag"] == http.get(url).headers["etag"] != before.headers["etag"]
        assert (told.json()["keep"], told.json()["metadata"]) == (True, {"note": "kept"})
        assert "ttl" not in told.json()
        talk = http.post(f"/v1/conversations/{session}", json={"metadata": {"note": "again"}}).json()
        assert (talk["id"], talk["metadata"]) == (session, {"note": "again"})
        for answer in (http.get(f"{url}/focus"), http.post(f"{url}/rewind", json={"position": 9})):
            assert answer.json()["error"]["code"] == "session_mismatch"
        assert http.patch(f"/v1/sessions/{hurt}", json=fields).status_code == 200
        state = state_in(server)
        fence = state.store.open(session, state.keys.tenant(None, None), "another server").result().fence
        state.store.release(session, fence).result()
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address) as http:
        assert http.get(url).json()["metadata"] == {"note": "again"}
        assert http.get(f"{url}/messages").json() == messages
        assert http.get(f"{url}/text?start=0&end=99").json() == text
        assert http.get(f"/v1/sessions/{hurt}/messages").json() == whole
        assert http.get(f"/v1/sessions/{hurt}").json()["metadata"] == {"note": "kept"}
        assert http.post(f"{url}/ingest", content="More.").status_code == 200
        assert http.get(url).json()["keep"]


@pytest.mark.parametrize("kind", ["tokenizer", "block_size"])
def test_nothing_is_shared_of_a_session_that_cannot_be_read(model_dir, stranger, tmp_path, caplog, kind):
    """A chat that begins as it does and a reply behind an earlier one make no branch, which nobody could read: all
    that is told, once a request, is told of the session itself."""
    store = tmp_path / "s.sqlite"

    def answer(http, text, before=None, **fields):
        fields |= {} if before is None else {"previous_response_id": before}
        body = {"model": MODEL, "input": text, "max_output_tokens": 4, **fields}
        return http.post("/v1/responses", json=body)

    def sessions(http):
        return {one["id"] for one in http.get("/v1/sessions").json()["data"]}

    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address) as http:
        home, _, _ = Talk(http).say(DOCUMENT)
        first = answer(http, "One").json()["id"]
        second = answer(http, "Two", first).json()["id"]
        before = sessions(http)
        (other,) = before - {home}
    changed = (stranger, {}) if kind == "tokenizer" else (model_dir, {"block_size": 16})
    with running(settings_for(changed[0], store, **changed[1])) as address, httpx.Client(base_url=address) as http:
        for keep in (False, True):
            refused = answer(http, "Three", second, store=keep)
            assert refused.status_code == 409
            assert other in refused.json()["error"]["message"]
        assert sessions(http) == before
        talk = Talk(http)
        talk.messages = [{"role": "user", "content": DOCUMENT}]
        away, cached, _ = talk.say("Two")
        assert (sessions(http), cached) == ({*before, away}, 0)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        (warning,) = [record.getMessage() for record in warnings if record.name != "server.build"]
        assert home in warning


def test_a_session_that_cannot_be_read_is_the_servers_fault(model_dir, tmp_path, monkeypatch):
    """Who names it is told so, once by name, and it can be deleted."""
    store = tmp_path / "s.sqlite"
    with running(settings_for(model_dir, store)) as address:
        lost = httpx.post(f"{address}/v1/sessions", json={}).json()["id"]

    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(SessionFactory, "load", fail)
    with running(settings_for(model_dir, store)) as address, httpx.Client(base_url=address) as http:
        answer = http.get(f"/v1/sessions/{lost}/focus")
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("session_unreadable", "server_error")
        assert error["message"].count(lost) == 1
        assert "secret" not in error["message"]
        assert http.delete(f"/v1/sessions/{lost}").status_code == 200


def test_a_short_chat_with_a_lensnet_goes_on_after_a_restart(tmp_path):
    """A history of less than a block has no gists and no lens keys; its session comes back all the same."""
    folder = write_model(tmp_path / MODEL)
    add_lensnet(folder)
    store = tmp_path / "s.sqlite"
    with running(settings_for(folder, store, lens="hybrid")) as address, httpx.Client(base_url=address) as http:
        talk = Talk(http)
        first, _, size = talk.say("Hi")
        assert size + 6 < 32
    with running(settings_for(folder, store, lens="hybrid")) as address, httpx.Client(base_url=address) as http:
        talk.http = http
        session, cached, _ = talk.say("Two")
        assert cached >= size or session != first
