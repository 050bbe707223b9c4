"""The list of a session's messages is its client's conversation, whatever the client does."""

import contextlib
import random
from io import StringIO
from itertools import pairwise

import httpx
import pytest
from rich.console import Console

from clients.megacontext_client import MegaContext
from clients.terminal import Terminal
from mc_core.notes import Note
from server.auth import OPEN_TENANT
from server.templates.chat_template import Message
from support import write_model
from test_conversation import MODEL, SYSTEM, TEMPLATES, TEXTS, Server

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp(request.param) / MODEL, template=TEMPLATES[request.param])


def listed(http, session, **options):
    """All messages, read page by page."""
    found, after = [], None
    while True:
        params = {"limit": 3, **options} | ({"after": after} if after else {})
        page = http.get(f"/v1/sessions/{session}/messages", params=params)
        assert page.status_code == 200, page.text
        found += page.json()["data"]
        after = page.json()["next"]
        assert page.json()["has_more"] == (after is not None)
        if after is None:
            return found


def said(messages):
    return [(one["role"], one.get("title") if one["role"] == "document" else one["content"]) for one in messages]


def check(server, session, expected):
    """The law: the list is the plain list, its places follow each other, and with them it tells all of the history."""
    found = listed(server.http, session)
    assert said(found) == said(expected)
    assert said(listed(server.http, session, order="desc")) == said(expected)[::-1]
    info = server.http.get(f"/v1/sessions/{session}").json()
    page = server.http.get(f"/v1/sessions/{session}/messages").json()
    assert page["complete"] is True
    assert all(one["end"] == other["start"] for one, other in pairwise(found))
    assert [found[0]["start"], found[-1]["end"]] == [0, info["tokens"]] if found else info["tokens"] == 0
    assert len({one["id"] for one in found}) == len(found)
    return found


def asked(server, messages, **options):
    answer = server.ask(messages, **options)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["x_megacontext"]["session_id"], {
        "role": "assistant",
        "content": body["choices"][0]["message"]["content"],
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_chat_that_names_no_session_is_listed_as_its_client_has_it(model, tmp_path, seed):
    """Going on, asking anew, editing, going back, a restart: the session that answers lists the client's messages."""
    rng = random.Random(seed)
    branches = [[]]
    for life in range(2):
        with Server(model, tmp_path / "s.sqlite") as server:
            often = server.state.bundle.tokenizer.encode("t")[0]
            for step in range(8):
                messages = [dict(message) for message in rng.choice(branches)]
                if not messages and rng.random() < 0.7:
                    messages = [{"role": "system", "content": SYSTEM}]
                if messages and rng.random() < 0.5:
                    messages = messages[: rng.randrange(len(messages)) + 1]
                    messages[-1]["content"] += rng.choice(["", "\n", " indeed"])
                if life + step and rng.random() < 0.3:
                    messages += [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]
                if not messages or messages[-1]["role"] != "user":
                    messages.append({"role": "user", "content": rng.choice(TEXTS)})
                options = {"seed": rng.randrange(100), "logit_bias": {str(often): 6.0}}
                session, reply = asked(server, messages, **options)
                branches.append([*messages, reply])
                check(server, session, branches[-1])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_named_session_is_listed_as_a_plain_list(model, tmp_path, seed):
    """Turns of new or of all messages, ingests, undo, rewinds, forks and restarts do to a session's list what they do
    to a plain list, and each session's list is its own."""
    rng = random.Random(seed)
    store = tmp_path / "s.sqlite"
    chats: dict[str, list[dict]] = {}

    def begin(server):
        system = "You answer in one short sentence." if rng.random() < 0.5 else None
        made = server.http.post("/v1/sessions", json={"system": system} if system else {}).json()
        chats[made["id"]] = [{"role": "system", "content": system}] if system else []

    def turn(server, name):
        new = [{"role": "user", "content": rng.choice(TEXTS)}]
        if rng.random() < 0.2:
            # Another question than any before: a list that begins as the session does would be taken for all of it.
            asking = {"role": "user", "content": f"{rng.random()}?"}
            new = [asking, {"role": "assistant", "content": "I t see."}, {"role": "user", "content": "And?"}]
        plain = all(one["role"] != "document" for one in chats[name])
        sent = [*chats[name], *new] if plain and rng.random() < 0.4 else new
        often = server.state.bundle.tokenizer.encode("t")[0]
        options = {"seed": rng.randrange(100), "logit_bias": {str(often): 6.0}}
        _, reply = asked(server, sent, session_id=name, **options)
        chats[name] += [*new, reply]

    def ingest(server, name):
        title = rng.choice([None, "A title"])
        params = {"title": title} if title else {}
        server.http.post(f"/v1/sessions/{name}/ingest", content="It rained. " * 9, params=params)
        chats[name].append({"role": "document", "title": title})

    def undo(server, name):
        answer = server.http.post(f"/v1/sessions/{name}/undo")
        users = [i for i, one in enumerate(chats[name]) if one["role"] == "user"]
        assert answer.status_code == (200 if users else 409)
        if users:
            del chats[name][users[-1] :]

    def rewind(server, name):
        found = listed(server.http, name)
        if not found:
            return
        number = rng.randrange(len(found))
        end = found[number]["end"]
        body = rng.choice([{"message_id": found[number]["id"]}, {"position": end}])
        answer = server.http.post(f"/v1/sessions/{name}/rewind", json=body)
        assert answer.json() == {"tokens": end}
        # A system message that the template writes into a question ends where that begins.
        kept = [place for place, one in enumerate(found) if one["end"] <= end]
        assert kept == list(range(len(kept)))
        chats[name] = chats[name][: len(kept)]

    def fork(server, name):
        found = listed(server.http, name)
        body, kept = {}, len(found)
        if found and rng.random() < 0.7:
            number = rng.randrange(len(found))
            body = {"message_id": found[number]["id"], "metadata": {"branch": number}}
            kept = sum(one["end"] <= found[number]["end"] for one in found)
        made = server.http.post(f"/v1/sessions/{name}/fork", json=body)
        assert made.status_code == 201, made.text
        assert made.json()["metadata"] == body.get(
            "metadata", server.http.get(f"/v1/sessions/{name}").json()["metadata"]
        )
        chats[made.json()["id"]] = chats[name][:kept]

    for _ in range(2):
        with Server(model, store) as server:
            begin(server)
            for _ in range(12):
                act = rng.choice([turn, turn, turn, turn, ingest, undo, rewind, fork, fork])
                name = rng.choice(list(chats))
                act(server, name)
                for session in {name, next(reversed(chats))}:
                    check(server, session, chats[session])
            for session, expected in chats.items():
                check(server, session, expected)


def test_what_was_rewound_goes_on_as_if_it_had_never_been(tmp_path, tmp_path_factory):
    """After an undo the next turn, in new messages alone or in all of them, reads what it would have read without the
    undone ones; the same holds for a fork before them."""
    model = write_model(tmp_path_factory.mktemp("chatml") / MODEL)
    with Server(model, tmp_path / "s.sqlite") as server:
        first = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXTS[0]}]
        last = [{"role": "user", "content": TEXTS[3]}]
        told = {}
        for way in ("plain", "undo", "all", "fork"):
            name = server.http.post("/v1/sessions", json={}).json()["id"]
            _, reply = asked(server, first, session_id=name, temperature=0)
            if way != "plain":
                asked(server, [{"role": "user", "content": TEXTS[2]}], session_id=name, temperature=0)
                if way == "fork":
                    place = listed(server.http, name)[2]
                    body = {"message_id": place["id"]}
                    name = server.http.post(f"/v1/sessions/{name}/fork", json=body).json()["id"]
                else:
                    server.http.post(f"/v1/sessions/{name}/undo")
            sent = [*first, reply, *last] if way == "all" else last
            asked(server, sent, session_id=name, temperature=0)
            told[way] = server.read(server.history(name))
        assert len(set(told.values())) == 1


def test_sessions_from_before_there_were_lists_tell_what_they_know(tmp_path, tmp_path_factory):
    """The list of an older session begins with the messages that are open when it goes on, and says that it is not
    complete; a completion in a session is no message, and the list says so, too."""
    model = write_model(tmp_path_factory.mktemp("chatml") / MODEL)
    with Server(model, tmp_path / "s.sqlite") as server:
        name = server.http.post("/v1/sessions", json={}).json()["id"]
        for text in ("One", "Two"):
            _, reply = asked(server, [{"role": "user", "content": text}], session_id=name)
        session = server.state.host.peek(name, OPEN_TENANT)

        def forget() -> None:
            del session.chat["told"]

        server.state.engine.call(forget).result()
        server.state.engine.commit(session).result()
        for note in server.state.store.notes(name, OPEN_TENANT).result().notes:
            server.state.store.delete_note(name, OPEN_TENANT, note.key).result()
        assert server.http.get(f"/v1/sessions/{name}/messages").json()["complete"] is False
        _, last = asked(server, [{"role": "user", "content": "Three"}], session_id=name)
        page = server.http.get(f"/v1/sessions/{name}/messages").json()
        assert (said(page["data"]), page["complete"]) == (
            [("user", "Two"), ("assistant", reply["content"]), ("user", "Three"), ("assistant", last["content"])],
            False,
        )
        other = server.http.post("/v1/sessions", json={}).json()["id"]
        body = {"model": MODEL, "prompt": "It was", "session_id": other, "max_tokens": 3}
        assert server.http.post("/v1/completions", json=body).status_code == 200
        page = server.http.get(f"/v1/sessions/{other}/messages").json()
        assert (page["data"], page["complete"]) == ([], False)


def test_an_ingest_in_parts_is_one_text_of_the_list(tmp_path, tmp_path_factory):
    """A text that comes in parts, also in several requests, is listed once; another one is listed by itself."""
    model = write_model(tmp_path_factory.mktemp("chatml") / MODEL)
    with Server(model, tmp_path / "s.sqlite") as server:
        name = server.http.post("/v1/sessions", json={}).json()["id"]
        address, text = f"/v1/sessions/{name}/ingest", "It rained on the keeper. " * 20
        offset = 0
        for part in (text, text):
            params = {"partial": True, "offset": offset, "title": "Rain"}
            offset = server.http.post(address, content=part, params=params).json()["offset"]
        server.http.post(address, content=text, params={"title": "Rain"})
        found = listed(server.http, name)
        assert [(one["role"], one["title"], one["kind"], one["content"]) for one in found] == [
            ("document", "Rain", "document", None)
        ] * 2
        assert found[0]["end"] == found[1]["start"]
        assert server.http.get(f"/v1/sessions/{name}/messages").json()["complete"] is True


def test_calls_of_tools_and_their_answers_are_listed(tmp_path, tmp_path_factory):
    """What an assistant called and what the tool answered are in the list as the client sent them."""
    model = write_model(tmp_path_factory.mktemp("chatml") / MODEL)
    with Server(model, tmp_path / "s.sqlite") as server:
        call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "the sea"}'}}
        told = [
            {"role": "user", "content": "What is there?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "Waves", "tool_call_id": "call_1"},
        ]
        name = server.http.post("/v1/sessions", json={}).json()["id"]
        for _ in range(2):
            _, reply = asked(server, told, session_id=name)
            told += [reply, {"role": "user", "content": "And now?"}]
        found = listed(server.http, name)
        assert said(found) == [(one["role"], one["content"] or "") for one in told[:-1]]
        assert (found[1]["tool_calls"], found[2]["tool_call_id"]) == ([call], "call_1")
        assert server.http.get(f"/v1/sessions/{name}/messages").json()["complete"] is True


def test_clients_do_all_of_this(tmp_path, tmp_path_factory):
    """The Python client and the terminal chat list, rewind, undo, fork, cancel and change what they say."""
    model = write_model(tmp_path_factory.mktemp("chatml") / MODEL)
    with Server(model, tmp_path / "s.sqlite") as server, MegaContext(str(server.http.base_url)) as client:
        session = client.create_session()
        for text in ("One", "Two", "Three"):
            client.chat(session.id, text, max_tokens=4)
        found = list(client.messages(session.id, page_size=2))
        assert [one.content for one in found if one.role == "user"] == ["One", "Two", "Three"]
        assert [one.id for one in client.messages(session.id, newest_first=True)] == [one.id for one in found][::-1]
        fork = client.fork(session.id, message_id=found[1].id, metadata={"a": 1})
        assert (fork.tokens, fork.metadata) == (found[1].end, {"a": 1})
        assert client.rewind(session.id, message_id=found[3].id) == found[3].end
        assert client.undo(session.id) == found[1].end
        changed = client.update(session.id, {"b": 2}, ttl=60)
        assert (changed.metadata, changed.keep, changed.ttl, changed.sequence) == ({"b": 2}, False, 60, 6)
        assert changed.expires is not None
        assert changed.expires >= changed.raw["updated"] + 60
        kept = client.update(session.id, keep=True)
        assert (kept.keep, kept.expires, kept.sequence) == (True, None, 7)
        assert client.cancel(session.id) is False
        lines = iter(["Four", "/undo", "/fork", "Five"])
        shown = StringIO()
        with contextlib.suppress(StopIteration):
            Terminal(
                client, session.id, Console(file=shown, width=200), {"max_tokens": 4}, read=lambda _: next(lines)
            ).run()
        assert f"{found[1].end} tokens left" in shown.getvalue()
        assert [one.role for one in client.messages(session.id)] == ["user", "assistant"]
        branch = next(iter(client.sessions())).id
        assert f"session {branch} goes on where {session.id} stays" in shown.getvalue()
        assert [one.content for one in client.messages(branch) if one.role == "user"] == ["One", "Five"]


def test_a_cancelled_turn_is_told_so_and_leaves_nothing(tmp_path, tmp_path_factory):
    """A cancel ends the turn that runs, whose reader is told, and nothing of it stays; without one it says so."""
    model = write_model(tmp_path_factory.mktemp("chatml") / MODEL)
    with Server(model, tmp_path / "s.sqlite") as server:
        name = server.http.post("/v1/sessions", json={}).json()["id"]
        address = f"/v1/sessions/{name}/cancel"
        assert server.http.post(address).json() == {"id": name, "cancelled": False}
        assert server.http.post("/v1/sessions/nobody/cancel").status_code == 404
        body = {"model": MODEL, "session_id": name, "messages": [{"role": "user", "content": "Go on"}], "stream": True}
        body |= {"max_tokens": 100_000, "ignore_eos": True}
        with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            next(lines)
            with httpx.Client(base_url=server.http.base_url) as other:
                assert other.post(address).json() == {"id": name, "cancelled": True}
            rest = list(lines)
        assert any("turn_cancelled" in line for line in rest)
        assert said(listed(server.http, name)) == []
        assert server.http.get(f"/v1/sessions/{name}").json()["tokens"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "rewind", {}, 400, "position"),
        ("POST", "rewind", {"position": 0, "message_id": "msg_0"}, 400, "position"),
        ("POST", "rewind", {"message_id": "msg_nobody"}, 404, None),
        ("POST", "fork", {"position": 10**9}, 400, "position"),
        ("POST", "fork", {"position": 0, "message_id": "msg_0"}, 400, "position"),
        ("POST", "fork", {"message_id": "msg_00000000ffffffffffffffff"}, 404, None),
        ("POST", "fork", {"metadata": {"x": "y" * 20_000}}, 400, "metadata"),
        ("POST", "undo", None, 409, None),
        ("PATCH", "", {"ttl": -1}, 400, "ttl"),
        ("PATCH", "", {"metadata": {"x": "y" * 20_000}}, 400, "metadata"),
        ("GET", "messages?after=x", None, 400, "after"),
        ("GET", "messages?limit=0", None, 400, "limit"),
        ("GET", "messages?order=up", None, 400, "order"),
    ],
)
def test_what_cannot_be_done_is_named(http, session, method, path, body, status, param):
    """Bad requests are answered with the field at fault, and change nothing; of a session that is not there, 404."""
    before = http.get(f"/v1/sessions/{session}").json()
    answer = http.request(method, f"/v1/sessions/{session}/{path}".rstrip("/"), json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert http.get(f"/v1/sessions/{session}").json() == before
    gone = http.request(method, f"/v1/sessions/nobody/{path}".rstrip("/"), json=body)
    assert gone.status_code in (400, 404)


def test_metadata_is_replaced(http, session):
    """PATCH replaces the metadata, durably, and nothing else."""
    before = http.get(f"/v1/sessions/{session}").json()
    for metadata in ({"a": 1, "b": [2]}, {"c": "ü"}, {}):
        changed = http.patch(f"/v1/sessions/{session}", json={"metadata": metadata})
        assert (changed.status_code, changed.json()["metadata"]) == (200, metadata)
        seen = http.get(f"/v1/sessions/{session}").json()
        assert {**seen, "metadata": {}, "sequence": 0, "updated": 0} == {**before, "sequence": 0, "updated": 0}


def test_a_message_too_long_for_a_note_is_listed_without_its_text() -> None:
    """A list holds messages of any length; what a note can't take is left to the history."""
    from server.turns.message_notes import Listed, Place

    note = Listed.of(3, Place(5, 9, True).with_id(3), Message("user", "é" * (1 << 21))).note()
    assert isinstance(note, Note)
    assert Listed.read(note).content is None
    assert Listed.read(note).role == "user"
