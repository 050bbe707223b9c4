"""/v1/conversations through the official client: a session as a list of items, whoever brings them."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from mc_core.engine import jobs
from redis_server import shared_redis
from server.auth import OPEN_TENANT
from support import ForkedServer, ServerThread, running, settings_for, state_in, write_model
from test_conversation import FORGETFUL, MOVED, TEXTS
from test_responses import WRITING
from test_responses_tools import CALLING

MODEL = "tiny"
JSON = {"Content-Type": "application/json"}
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
REPLY: dict[str, Any] = {"model": MODEL, "max_output_tokens": 6, "temperature": 0, "extra_body": WRITING}
SAID: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "input_text", "text": "What is"}, {"type": "input_text", "text": " it?"}]},
    {"role": "assistant", "content": "Let me look."},
    {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"at":1}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "42"},
]


@contextmanager
def client_of(address: str, key: str = "none") -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=8, timeout=120) as client:
        yield client


def listed(client: openai.OpenAI, id: str, **options: Any) -> list[dict[str, Any]]:
    """All items, oldest first, read page by page in either order."""
    order = options.setdefault("order", "asc")
    items: list[Any] = [item.to_dict() for item in client.conversations.items.list(id, **options)]
    return items if order == "asc" else items[::-1]


def said(item: dict[str, Any]) -> tuple[Any, ...]:
    """What an item says, as it is sent or as it is listed."""
    if item.get("type", "message") == "function_call":
        return ("call", item["call_id"], item["name"], item["arguments"])
    if item.get("type") == "function_call_output":
        return ("output", item["call_id"], item["output"])
    content = item["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return ("system" if item["role"] == "developer" else item["role"], text)


def test_a_conversation_is_a_session(client: openai.OpenAI, http: httpx.Client) -> None:
    """What is made with one API is found, changed, gone on with, forked and deleted with the other."""
    made = client.conversations.create(metadata={"topic": "it"}, items=SAID)
    assert made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id) == made
    assert client.conversations.update(made.id, metadata={"topic": "that"}).metadata == {"topic": "that"}
    session = http.get(f"/v1/sessions/{made.id}").json()
    assert (session["id"], session["metadata"], session["created"]) == (made.id, {"topic": "that"}, made.created_at)
    assert session["tokens"] == http.get(f"/v1/sessions/{made.id}/focus").json()["tokens"] > 0
    messages = http.get(f"/v1/sessions/{made.id}/messages").json()
    assert [one["role"] for one in messages["data"]] == ["system", "user", "assistant", "tool"]
    assert messages["complete"] is True
    branch = http.post(f"/v1/sessions/{made.id}/fork", json={}).json()["id"]
    assert listed(client, branch) == listed(client, made.id)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "And?"}], "max_tokens": 3}
    reply = http.post("/v1/chat/completions", json=chat, headers={"X-Session-ID": branch}).json()
    last = listed(client, branch)[-2:]
    assert [said(item) for item in last] == [
        ("user", "And?"),
        ("assistant", reply["choices"][0]["message"]["content"]),
    ]
    for item in last:
        assert client.conversations.items.retrieve(item["id"], conversation_id=branch).to_dict() == item
    assert client.conversations.delete(made.id).deleted
    for gone in (client.conversations.retrieve, client.conversations.items.list, client.conversations.delete):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    assert listed(client, branch)[-2:] == last


def test_items_are_told_as_they_were_given(client: openai.OpenAI) -> None:
    """Each is one item of the list, under the id that its creation told, and is retrieved by that."""
    id = client.conversations.create().id
    assert listed(client, id) == []
    added = client.conversations.items.create(id, items=SAID)
    assert [said(item.to_dict()) for item in added.data] == [said(item) for item in SAID]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[-1].id, False)
    assert listed(client, id) == [item.to_dict() for item in added.data]
    for item in added.data:
        assert client.conversations.items.retrieve(item.id, conversation_id=id) == item


def test_a_response_leaves_its_items_under_their_own_ids(client: openai.OpenAI) -> None:
    """What a response in a conversation read and wrote is listed there as the response lists it."""
    client = client.with_options(max_retries=8)
    id = client.conversations.create(items=SAID[:1]).id
    given = [{"role": "user", "content": "One"}, *SAID[2:], {"role": "user", "content": "Two"}]
    response = client.responses.create(conversation=id, input=given, **REPLY)
    assert response.conversation is not None
    assert response.conversation.id == id
    read = [item.to_dict() for item in client.responses.input_items.list(response.id, order="asc")]
    assert listed(client, id)[1:] == [*read, *(item.to_dict() for item in response.output)]


def test_a_branch_has_the_items_that_it_shares(client: openai.OpenAI) -> None:
    """Behind an earlier response, what came before is listed under the ids that it had, and found by them."""
    client = client.with_options(max_retries=8)
    id = client.conversations.create(items=SAID).id
    one = client.responses.create(conversation=id, input="Hello", **REPLY)
    shared = listed(client, id)
    client.responses.create(conversation=id, input="And then?", **REPLY)
    other = client.responses.create(previous_response_id=one.id, input="And now?", **REPLY)
    told: Any = other.to_dict()["x_megacontext"]
    branch = listed(client, told["session_id"])
    assert branch[: len(shared)] == shared
    assert [said(item)[0] for item in branch[len(shared) :]] == ["user", "assistant"]
    for item in branch:
        assert client.conversations.items.retrieve(item["id"], conversation_id=told["session_id"]).to_dict() == item
    assert listed(client, id)[: len(shared)] == shared


def test_calls_of_a_response_are_items(roomy: str) -> None:
    """A reply that calls a function is listed call by call, and is answered by an item of the output."""
    with client_of(roomy) as client:
        id = client.conversations.create().id
        response = client.responses.create(conversation=id, input="What is the weather?", **CALLING)
        (call,) = [item for item in response.output if item.type == "function_call"]
        assert listed(client, id)[1:] == [item.to_dict() for item in response.output]
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
        client.conversations.items.create(id, items=[output])
        after = client.responses.create(conversation=id, input="So?", tools=CALLING["tools"], **REPLY)
        kinds = [said(item)[0] for item in listed(client, id)]
        assert kinds == ["user", "call", "output", "user", "assistant"]
        assert after.usage is not None
        # The tools that its beginning tells of stand as they stood.
        read: Any = response.to_dict()["x_megacontext"]
        assert after.usage.input_tokens_details.cached_tokens > read["tokens"]


@contextmanager
def life(model: Path, store: Path) -> Iterator[openai.OpenAI]:
    with running(settings_for(model, store, max_queue=8)) as address, client_of(address) as client:
        yield client


class Wanderer:
    """A client that does to a conversation whatever may be done, and to a plain list the same."""

    def __init__(self, rng: random.Random, calls: bool) -> None:
        self.rng, self.calls = rng, calls
        self.items: list[dict[str, Any]] = []
        self.ids: list[str] = []

    def some(self) -> list[Any]:
        """Items to send. A call follows its own message, or one of somebody else."""
        rng, items = self.rng, list[Any]()
        if not self.items and rng.random() < 0.5:
            items.append({"role": "system", "content": "You keep the lighthouse."})
        for _ in range(rng.randint(1, 3)):
            roles = ["user", "assistant", *(["call", "output", "system"] if self.calls else [])]
            role, text = rng.choice(roles), rng.choice(TEXTS)
            if role in ("call", "output"):
                number = f"call_{rng.randrange(9)}"
                if role == "output":
                    items.append({"type": "function_call_output", "call_id": number, "output": text})
                elif items or not self.items or said(self.items[-1])[0] not in ("assistant", "call"):
                    items.append({"type": "function_call", "call_id": number, "name": "f", "arguments": "{}"})
            else:
                items.append({"role": role, "content": text})
        return items or [{"role": "user", "content": "Hm"}]

    def act(self, client: openai.OpenAI, id: str) -> None:
        rng = self.rng
        match rng.choice(["add", "add", "respond", "respond", "chat", "delete", "delete", "refused"]):
            case "add":
                new = self.some()
                added = client.conversations.items.create(id, items=new)
                self.items += new
                self.ids += [item.id for item in added.data]
            case "respond":
                new = [*self.some(), {"role": "user", "content": rng.choice(TEXTS)}]
                response = client.responses.create(conversation=id, input=new, **REPLY)
                self.items += [*new, *(item.to_dict() for item in response.output)]
                read: Any = client.responses.input_items.list(response.id, order="asc")
                self.ids += [*(item.id for item in read), *(item.id for item in response.output)]
            case "chat":
                message: Any = {"role": "user", "content": f"{rng.random()}?"}
                chat = client.chat.completions.create(
                    model=MODEL, messages=[message], max_tokens=4, extra_body={**WRITING, "session_id": id}
                )
                self.items += [message, {"role": "assistant", "content": chat.choices[0].message.content}]
                self.ids += [item["id"] for item in listed(client, id)[-2:]]
            case "delete" if self.items:
                client.conversations.items.delete(self.ids.pop(), conversation_id=id)
                self.items.pop()
            case "refused" if len(self.items) > 1:
                with pytest.raises(openai.BadRequestError) as refused:
                    client.conversations.items.delete(rng.choice(self.ids[:-1]), conversation_id=id)
                assert (refused.value.code, refused.value.param) == ("item_not_last", "item_id")

    def check(self, client: openai.OpenAI, id: str) -> None:
        """The law: the items are those of the plain list, under the ids that they had from the first."""
        found = listed(client, id, limit=self.rng.randint(1, 7), order=self.rng.choice(["asc", "desc"]))
        assert [said(item) for item in found] == [said(item) for item in self.items]
        assert [item["id"] for item in found] == self.ids
        if found:
            one = self.rng.choice(found)
            assert client.conversations.items.retrieve(one["id"], conversation_id=id).to_dict() == one


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("template", ["chatml", "forgetful", "moved"])
def test_a_conversation_is_a_plain_list(
    model_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, template: str, seed: int
) -> None:
    """Adding, answering, chatting, deleting from the end and a restart do to a conversation what they do to a list."""
    others = {"forgetful": FORGETFUL, "moved": MOVED}
    model = model_dir if template == "chatml" else write_model(tmp_path / MODEL, template=others[template])
    wanderer = Wanderer(random.Random(seed), calls=template == "chatml")
    with life(model, tmp_path / "s.sqlite") as client:
        id = client.conversations.create().id
        for _ in range(9):
            wanderer.act(client, id)
            wanderer.check(client, id)
    with life(model, tmp_path / "s.sqlite") as client:
        for _ in range(4):
            wanderer.check(client, id)
            wanderer.act(client, id)
        if template == "chatml":
            asked: Any = [{"role": "user", "content": "Who are you?"}]
            there = client.responses.create(conversation=id, input=asked, **REPLY)
            whole: Any = [*wanderer.items, *asked]
            alone = client.responses.create(input=whole, store=False, **REPLY)
            assert there.usage is not None
            assert alone.usage is not None
            assert (there.output_text, there.usage.input_tokens) == (alone.output_text, alone.usage.input_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_items_outlive_kill_nine(model_dir: Path, tmp_path: Path, kind: str) -> None:
    """After kill -9 a conversation has the items that were acknowledged, each under its id, and goes on."""
    store: Path | str = tmp_path / "s.sqlite"
    if kind == "redis":
        store = f"{shared_redis().url}?namespace={tmp_path.name}:"
    with ForkedServer(model_dir, store) as server, client_of(server.address) as client:
        id = client.conversations.create(metadata={"a": "b"}, items=SAID).id
        client.responses.create(conversation=id, input="Hello", **REPLY)
        client.conversations.items.create(id, items=SAID[1:2])
        before = listed(client, id)
        assert len(before) == 8
        server.stop()
    with ForkedServer(model_dir, store) as server, client_of(server.address) as client:
        assert client.conversations.retrieve(id).metadata == {"a": "b"}
        assert listed(client, id) == before
        for item in before:
            assert client.conversations.items.retrieve(item["id"], conversation_id=id).to_dict() == item
        response = client.responses.create(conversation=id, input="Go on", **REPLY)
        assert [item["id"] for item in listed(client, id)[-1:]] == [response.output[0].id]


@pytest.mark.slow
def test_items_under_way_at_a_kill_are_all_there_or_none(tmp_path: Path) -> None:
    """Killed with -9 at any moment, a conversation has the items that were acknowledged, and those under way whole or
    not at all; with a template that writes earlier messages anew, so that what is added also cuts."""
    model, rng = write_model(tmp_path / MODEL, template=FORGETFUL), random.Random(7)
    id, sent, told = "", 0, list[tuple[Any, ...]]()
    for _ in range(8):
        with ForkedServer(model, tmp_path / "s.sqlite") as server, client_of(server.address) as client:
            id = id or client.conversations.create().id
            found = [said(item) for item in listed(client, id, limit=100)]
            assert found[: len(told)] == told
            assert len(found) in (len(told), len(told) + 6)
            told = found
            timer = threading.Timer(rng.uniform(0.0, 0.4), server.stop)
            timer.start()
            alive = True
            while alive:
                roles = ["user", "assistant"] * 3
                new: list[Any] = [{"role": role, "content": f"{sent} said t {role}"} for role in roles]
                sent += 1
                try:
                    client.with_options(max_retries=0).conversations.items.create(id, items=new)
                    told += [said(item) for item in new]
                except openai.APIConnectionError:
                    alive = False
            timer.join()
    assert len(told) > 50


def test_lists_tell_what_was_cut_by_a_turn_that_never_came(model_dir: Path, tmp_path: Path) -> None:
    """Where a server ended between a turn's cut and the turn, lists have what stood there before anybody speaks."""
    with ServerThread(settings_for(model_dir, tmp_path / "s.sqlite")) as server, client_of(server.address) as client:
        id = client.conversations.create(items=SAID).id
        before, state = listed(client, id), state_in(server)
        session = state.host.peek(id, OPEN_TENANT)
        assert session is not None
        told = httpx.get(f"{server.address}/v1/sessions/{id}").json()["tokens"]

        def cut() -> Any:
            """The engine's steps up to the store's first answer, as if the machine had stopped there."""
            session.cut(session.tokens - 60)
            session.append(np.arange(3, 9, dtype=np.int32))
            return next(jobs.commit(state.engine.core, session))

        state.engine.call(cut).result().future.result()
        session.broken = True
        page = state.store.notes(id, OPEN_TENANT, prefix="msg:").result()
        assert len(page.notes) < 4
        assert listed(client, id) == before
        assert httpx.get(f"{server.address}/v1/sessions/{id}").json()["tokens"] == told


def test_messages_of_one_text_are_told_apart(tmp_path: Path) -> None:
    """Where a template writes a reply otherwise once another one follows, replies of the same text keep their places,
    and none is lost from the list, whatever the next turns write anew."""
    model = write_model(tmp_path / MODEL, template=FORGETFUL)
    items: list[Any] = [{"role": role, "content": "What to say"} for role in ["user", "assistant"] * 3]
    with life(model, tmp_path / "s.sqlite") as client:
        id = client.conversations.create().id
        for number in range(1, 4):
            client.conversations.items.create(id, items=items)
            client.responses.create(conversation=id, input="Hm", **REPLY)
            assert [said(item) for item in listed(client, id)][-8:-2] == [said(item) for item in items]
            assert len(listed(client, id)) == 8 * number
        messages = httpx.get(f"{client.base_url!s}sessions/{id}/messages").json()["data"]
        assert all(one["start"] < one["end"] == other["start"] for one, other in pairwise(messages))


def test_requests_at_once_add_their_items_one_after_the_other(client: openai.OpenAI) -> None:
    """Whatever comes at once, the items of one request stand together, and none is lost."""
    client = client.with_options(max_retries=8)
    id = client.conversations.create().id

    def add(number: int) -> list[str]:
        if number % 4 == 3:
            response = client.responses.create(conversation=id, input=f"{number}", **REPLY)
            read: Any = client.responses.input_items.list(response.id)
            return [item.id for item in (*read, *response.output)]
        return [item.id for item in client.conversations.items.create(id, items=SAID[1:]).data]

    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(add, range(8)))
    found = [item["id"] for item in listed(client, id)]
    assert sorted(found) == sorted(id for part in parts for id in part)
    for part in parts:
        at = found.index(part[0])
        assert found[at : at + len(part)] == part


def test_tenants_see_their_own_conversations_alone(model_dir: Path, tmp_path: Path) -> None:
    """Another key's conversation is none, whatever is done to it."""
    settings = settings_for(model_dir, tmp_path / "s.sqlite", api_key=["ann-key-1", "bob-key-2"])
    with running(settings) as address, client_of(address, "ann-key-1") as ann, client_of(address, "bob-key-2") as bob:
        made = ann.conversations.create(items=SAID)
        item = listed(ann, made.id)[-1]["id"]
        for call in (
            lambda: bob.conversations.retrieve(made.id),
            lambda: bob.conversations.update(made.id, metadata={}),
            lambda: bob.conversations.delete(made.id),
            lambda: bob.conversations.items.create(made.id, items=SAID),
            lambda: bob.conversations.items.list(made.id),
            lambda: bob.conversations.items.retrieve(item, conversation_id=made.id),
            lambda: bob.conversations.items.delete(item, conversation_id=made.id),
            lambda: bob.responses.create(conversation=made.id, input="Hi", **REPLY),
        ):
            with pytest.raises(openai.NotFoundError) as refused:
                call()
            assert refused.value.code == "session_not_found"
        assert len(listed(ann, made.id)) == len(SAID)


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "", {"items": [{"role": "user", "content": "a"}] * 21}, "items"),
        ("POST", "", {"items": [{"type": "item_reference", "id": "msg_1"}]}, "items.0"),
        ("POST", "", {"metadata": {"k": 1}}, "metadata.k"),
        ("POST", "", {"name": "x"}, "name"),
        ("POST", "/ID", {}, "metadata"),
        ("POST", "/ID/items", {"items": []}, "items"),
        ("POST", "/ID/items", {"items": [{"role": "user", "content": "\ud800"}]}, None),
        ("POST", "/ID/items", {"items": [{"role": "system", "content": "It rained. " * 400}]}, "items"),
        ("GET", "/ID/items?limit=101", None, "limit"),
        ("GET", "/ID/items?after=msg_of_nobody", None, "after"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, session: str, method: str, path: str, body: Any, param: str | None
) -> None:
    """400, and the field at fault; nothing is added."""
    address = "/v1/conversations" + path.replace("ID", session)
    refused = http.request(method, address, content=None if body is None else json.dumps(body), headers=JSON)
    assert refused.status_code == 400, refused.text
    assert param is None or refused.json()["error"]["param"].startswith(param)
    assert http.get(f"/v1/conversations/{session}/items").json()["data"] == []


def test_an_item_that_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    """Ids of other conversations, of deleted items and of nothing: 404, to retrieve or to delete."""
    ids = [client.conversations.create(items=SAID).id for _ in range(2)]
    other = listed(client, ids[1])[-1]["id"]
    client.conversations.items.delete(other, conversation_id=ids[1])
    for id, item in ((ids[0], other), (ids[1], other), (ids[0], "msg_1"), (ids[0], "msg_00000000" + "0" * 16)):
        for call in (client.conversations.items.retrieve, client.conversations.items.delete):
            with pytest.raises(openai.NotFoundError) as refused:
                call(item, conversation_id=id)
            assert refused.value.code == "item_not_found"


def test_an_ingested_text_is_no_item_and_stays(client: openai.OpenAI, http: httpx.Client) -> None:
    """It stands behind the last item, which then cannot be deleted, until further items can."""
    id = client.conversations.create(items=SAID[:2]).id
    before = listed(client, id)
    http.post(f"/v1/sessions/{id}/ingest", content="It rained. " * 9)
    assert listed(client, id) == before
    with pytest.raises(openai.BadRequestError) as refused:
        client.conversations.items.delete(before[-1]["id"], conversation_id=id)
    assert refused.value.code == "item_not_last"
    behind = client.conversations.items.create(id, items=SAID[1:2])
    client.conversations.items.delete(behind.last_id, conversation_id=id)
    assert listed(client, id) == before
    assert [one["role"] for one in http.get(f"/v1/sessions/{id}/messages").json()["data"]][-1] == "document"


def test_half_a_character_spoils_no_list(http: httpx.Client, session: str) -> None:
    """A chat may say half of a surrogate pair: lists show what the model read in its place."""
    said: Any = {"role": "user", "content": "a\ud800b"}
    body = {"model": MODEL, "session_id": session, "max_tokens": 2, "messages": [said]}
    asked = http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert asked.status_code == 200, asked.text
    assert http.get(f"/v1/sessions/{session}/messages").json()["data"][0]["content"] == "a\ufffdb"
    items = http.get(f"/v1/conversations/{session}/items?order=asc").json()["data"]
    assert items[0]["content"][0]["text"] == "a\ufffdb"


@pytest.mark.parametrize("limit", [1 << 18, 100])
def test_what_is_retrieved_can_be_gone_on_from(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A response whose items are deleted from its conversation, which then goes on otherwise, is followed as it was, or
    is gone: also one whose messages are too long to be kept beside the history."""
    monkeypatch.setattr("server.turns.conversation.MAX_WINDOW", limit)
    client = client.with_options(max_retries=8)
    id = client.conversations.create(items=[{"role": "user", "content": "Before"}]).id
    response = client.responses.create(conversation=id, input="x " * 100, **REPLY)
    for item in listed(client, id)[:0:-1]:
        client.conversations.items.delete(item["id"], conversation_id=id)
    client.conversations.items.create(id, items=[{"role": "user", "content": "y " * 150}])
    go_on: Any = {"input": "Go on", "previous_response_id": response.id, **REPLY}
    if limit == 100:
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError):
            client.responses.create(**go_on)
        return
    assert client.responses.retrieve(response.id).output_text == response.output_text
    said_so_far: list[Any] = [("user", "Before"), ("user", "x " * 100), ("assistant", response.output_text)]
    whole: list[Any] = [{"role": role, "content": text} for role, text in [*said_so_far, ("user", "Go on")]]
    there, alone = client.responses.create(**go_on), client.responses.create(input=whole, store=False, **REPLY)
    assert there.usage is not None
    assert alone.usage is not None
    assert (there.output_text, there.usage.input_tokens) == (alone.output_text, alone.usage.input_tokens)


def test_a_list_that_is_sent_again_keeps_its_items(client: openai.OpenAI) -> None:
    """Of a conversation that is sent whole each time, also with another end, what was there keeps its ids, and what is
    new is found by those that its response tells."""
    client = client.with_options(max_retries=8)
    messages: list[Any] = [{"role": "user", "content": "Who keeps the lighthouse, and since when? " * 4}]
    one = client.responses.create(input=messages, **REPLY)
    messages += [{"role": "assistant", "content": one.output_text}, {"role": "user", "content": "Why?"}]
    before: list[dict[str, Any]] = []
    for ending in ([], ["Ann."], ["Ben."]):
        end: list[Any] = [{"role": "user", "content": text} for text in ending]
        response = client.responses.create(input=[*messages, *end], **REPLY)
        told: Any = response.to_dict()["x_megacontext"]
        items = listed(client, told["session_id"])
        assert [said(item) for item in items[:-1]] == [said(item) for item in [*messages, *end]]
        assert items[-1] == response.output[0].to_dict()
        assert items[: len(before)] == before
        before = items[:1]
        for item in items:
            found = client.conversations.items.retrieve(item["id"], conversation_id=told["session_id"])
            assert found.to_dict() == item
