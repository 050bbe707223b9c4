"""What the model sees of a chat is what its template renders of all messages, however the client gets there."""

import random
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.models.tokenizer import Tokenizer
from server.auth import OPEN_TENANT
from server.state import ServerState
from server.templates.chat_template import ChatTemplate, Message
from server.turns.conversation import Window, agreement, render, system_span
from support import CHATML, ServerThread, settings_for, write_model, write_tokenizer

MODEL = "tiny"
# Earlier replies lose what stands before their last "t", as templates drop what a model thought before it answered.
FORGETFUL = CHATML.replace(
    "message['content']",
    "(message['content'].split('t')[-1] if message.role == 'assistant' and not loop.last"
    " else message['content'] | trim)",
)
# The system message opens the first user message.
FOLDED = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' }}"
    "{% if messages[0].role == 'system' and loop.index0 == 1 %}"
    "{{ '<<SYS>>' + messages[0].content + '<</SYS>>\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# It opens the last one.
MOVED = FOLDED.replace("loop.index0 == 1", "loop.last")
TEMPLATES = {"chatml": CHATML, "forgetful": FORGETFUL, "folded": FOLDED, "moved": MOVED}
TEXTS = ["Who keeps the lighthouse?", " The best of times. ", "4711", "東京 🙂", "It was the age of wisdom. " * 16]
SYSTEM = "You are the keeper of the lighthouse and you answer in one short sentence, please. " * 2


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp(request.param) / MODEL, template=TEMPLATES[request.param])


class Server:
    """A real server, and what its sessions hold."""

    def __init__(self, model: Path, store: Path, **others: object) -> None:
        self._settings = settings_for(model, store, **others)

    def __enter__(self) -> "Server":
        self._thread = ServerThread(self._settings)
        self._thread.__enter__()
        self.state: ServerState = self._thread.server.config.app.state.server
        self.http = httpx.Client(base_url=self._thread.address, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._thread.__exit__()

    def ask(self, messages, **options):
        body = {"model": MODEL, "messages": messages, "max_tokens": 12, **options}
        return self.http.post("/v1/chat/completions", json=body)

    def history(self, session_id: str) -> np.ndarray:
        session = self.state.host.peek(session_id, OPEN_TENANT)
        return self.state.engine.read(session, 0, session.tokens).result()

    def rendered(self, messages) -> np.ndarray:
        plain = [Message(message["role"], message["content"]) for message in messages]
        return self.state.template.ids(plain, first=True, reply=True)

    def read(self, ids) -> str:
        """With control tokens, so that two histories that read the same are the same to the model."""
        return self.state.bundle.tokenizer.decode(ids, skip_special_tokens=False)


def check_reply(server, messages, answer):
    """The law: what stood before the reply is the template's rendering of the whole list -> (session, reply)."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    session = body["x_megacontext"]["session_id"]
    prompt = server.history(session)[: body["usage"]["prompt_tokens"]]
    assert server.read(prompt) == server.read(server.rendered(messages))
    return session, {"role": "assistant", "content": body["choices"][0]["message"]["content"]}


@pytest.mark.parametrize("seed", range(2))
def test_a_wandering_client_always_sees_its_own_list(model, tmp_path, seed):
    """Extending, editing, asking anew, going back to another branch and a restart never change what is rendered."""
    rng = random.Random(seed)
    store = tmp_path / "s.sqlite"
    branches = [[]]
    for life in range(2):
        with Server(model, store) as server:
            # Frequent, so that the forgetful template has something to forget.
            often = server.state.bundle.tokenizer.encode("t")[0]
            for step in range(7):
                if life == step == 0 or rng.random() < 0.15:
                    messages = [{"role": "system", "content": SYSTEM}] if rng.random() < 0.7 else []
                else:
                    messages = [dict(message) for message in rng.choice(branches)]
                    if messages and rng.random() < 0.5:
                        # Back to some earlier reply, as it was or told otherwise.
                        replies = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
                        messages = messages[: rng.choice(replies) + 1] if replies else []
                        if messages and rng.random() < 0.3:
                            messages[-1]["content"] += "\n"
                messages.append({"role": "user", "content": rng.choice(TEXTS)})
                options = {"seed": rng.randrange(100), "logit_bias": {str(often): 6.0}}
                _, reply = check_reply(server, messages, server.ask(messages, **options))
                branches.append([*messages, reply])
                if rng.random() < 0.2:  # the same again
                    check_reply(server, messages, server.ask(messages, seed=rng.randrange(100)))


def test_a_named_session_is_rendered_like_the_whole_list(model, tmp_path):
    """New messages alone lead to what the whole list would have led to, also across a restart."""
    messages, store = [{"role": "system", "content": SYSTEM}], tmp_path / "s.sqlite"
    session = None
    for life in range(2):
        with Server(model, store) as server:
            if session is None:
                session = server.http.post("/v1/sessions", json={"system": SYSTEM}).json()["id"]
            often = server.state.bundle.tokenizer.encode("t")[0]
            for text in TEXTS[:3]:
                new = {"role": "user", "content": text}
                messages.append(new)
                answer = server.ask([new], session_id=session, seed=life, logit_bias={str(often): 6.0})
                assert check_reply(server, messages, answer)[0] == session
                messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    assert "t" in "".join(m["content"] for m in messages if m["role"] == "assistant")


def test_a_system_message_in_the_middle_is_told_however_the_list_is_read(model, tmp_path):
    """A turn that goes on in place, the same again on a branch, and an edited list all show it to the model."""
    with Server(model, tmp_path / "s.sqlite") as server:
        messages = [{"role": "user", "content": TEXTS[0]}]
        messages.append(check_reply(server, messages, server.ask(messages))[1])
        messages += [{"role": "system", "content": "Whisper."}, {"role": "user", "content": "And now?"}]
        edited = [{**messages[0], "content": TEXTS[2]}, *messages[1:]]
        for asked in (messages, messages, edited):
            answer = server.ask(asked)
            session, _ = check_reply(server, asked, answer)
            prompt = server.history(session)[: answer.json()["usage"]["prompt_tokens"]]
            assert server.read(prompt).count("Whisper.") == 1


@pytest.mark.parametrize("named", [False, True])
def test_a_system_message_stays_raw(model, tmp_path, named):
    """However the conversation begins and wherever the template puts it, all of it is in view in every later turn."""
    with Server(model, tmp_path / "s.sqlite") as server:
        messages, options = [{"role": "system", "content": SYSTEM}], {}
        if named:
            options["session_id"] = server.http.post("/v1/sessions", json={}).json()["id"]
        for turn in range(6):
            messages.append({"role": "user", "content": f"{turn}. {TEXTS[4]}"})
            session, reply = check_reply(server, messages, server.ask(messages, **options))
            messages.append(reply)
            text = ""
            for entry in server.http.get(f"/v1/sessions/{session}/focus").json()["entries"]:
                ids = server.history(session)[entry["start"] : entry["end"]]
                text += server.read(ids) if entry["level"] == 0 else "\0"
            assert SYSTEM.strip() in text
        assert "\0" in text, "nothing has collapsed"


@pytest.mark.parametrize("how", ["plain", "named", "created"])
def test_a_system_message_beyond_the_budget_is_told(model, tmp_path, how):
    """400 with its length and the limit, and nothing is left behind: a shorter one can take its place."""
    with Server(model, tmp_path / "s.sqlite") as server:
        options = {}
        messages = [{"role": "system", "content": SYSTEM * 8}, {"role": "user", "content": "Hi"}]
        if how == "named":
            options["session_id"] = server.http.post("/v1/sessions", json={}).json()["id"]
        before = server.http.get("/v1/sessions").json()["data"]
        if how == "created":
            answer = server.http.post("/v1/sessions", json={"system": SYSTEM * 8})
        else:
            answer = server.ask(messages, **options)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("system_too_long", "system" if how == "created" else "messages")
        assert "budget of 384" in error["message"]
        assert "at most 224" in error["message"]
        assert server.http.get("/v1/sessions").json()["data"] == before
        messages[0]["content"] = SYSTEM
        check_reply(server, messages, server.ask(messages, **options))


def test_a_list_that_repeats_a_named_session_continues_it(model, tmp_path):
    """Only what is new is read; a list that leaves the conversation is refused, and changes nothing."""
    with Server(model, tmp_path / "s.sqlite") as server:
        session = server.http.post("/v1/sessions", json={}).json()["id"]
        shots = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]
        messages = [{"role": "system", "content": "You count."}, *shots]
        for text in ("One", "Two", "Three"):
            messages.append({"role": "user", "content": text})
            answer = server.ask(messages, session_id=session)
            messages.append(check_reply(server, messages, answer)[1])
        tokens = server.http.get(f"/v1/sessions/{session}").json()["tokens"]
        more = {"role": "user", "content": "Four"}
        edited = [*messages[:-1], {**messages[-1], "content": "Else"}, more]
        for strange in (messages[:-1], [messages[0], more], edited):
            answer = server.ask(strange, session_id=session)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "messages_differ")
            assert "leave out session_id" in answer.json()["error"]["message"]
            assert answer.headers["X-Should-Retry"] == "false"
        # It is the client that was wrong, and nobody is called for that.
        refused = [
            line for line in server.http.get("/metrics").text.splitlines() if 'turns_total{outcome="refused"' in line
        ]
        assert refused == ['megacontext_turns_total{outcome="refused"} 3.0']
        assert server.http.get(f"/v1/sessions/{session}").json()["tokens"] == tokens
        # New examples, and a single message that was said before, are new.
        for new in ([*shots, more], [more]):
            answer = server.ask(new, session_id=session)
            messages += new
            messages.append(check_reply(server, messages, answer)[1])


def test_other_text_closes_the_window(model, tmp_path):
    """What was said before an ingest, a completion or a rewind stays as it is; the whole list goes on behind it."""
    with Server(model, tmp_path / "s.sqlite") as server:
        session = server.http.post("/v1/sessions", json={}).json()["id"]
        path, messages = f"/v1/sessions/{session}", []
        for change in ("ingest", "completion", "rewind", "none"):
            messages.append({"role": "user", "content": f"Before the {change}"})
            answer = server.ask(messages, session_id=session, seed=3)
            assert answer.status_code == 200, answer.text
            messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
            if change == "ingest":
                server.http.post(f"{path}/ingest", json={"text": "A word between."})
            elif change == "completion":
                body = {"model": MODEL, "prompt": "Once", "max_tokens": 3, "session_id": session}
                server.http.post("/v1/completions", json=body)
            elif change == "rewind":
                tokens = server.http.get(path).json()["tokens"]
                server.http.post(f"{path}/rewind", json={"position": tokens - 1})
                messages = messages[:-2]  # their end is gone, and so is what was known of them
            before = server.history(session)
        again = server.ask([{"role": "user", "content": "And now?"}], session_id=session)
        assert again.status_code == 200
        assert "A word between." in server.read(before)
        assert server.read(before).count("Before the ingest") == 1


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    write_tokenizer(tmp_path_factory.mktemp("words"))
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


PIECES = st.lists(st.sampled_from(["東京", "🙂", "age ", "of wisdom", "e", "\n", "<|im_end|>", "4711"]), max_size=12)


@settings(max_examples=100, deadline=None)
@given(shared=PIECES, old=PIECES, new=PIECES, data=st.data())
def test_histories_agree_as_far_as_they_read_the_same(words, shared, old, new, data):
    """However a text is cut into tokens, what reads the same is kept, to a border of both, and nothing else."""

    def spelled(pieces):
        """Byte by byte, or as the tokenizer does it."""
        parts = []
        for piece in pieces:
            whole = words.encode(piece)
            bytewise = np.concatenate([words.encode(c) for c in piece]) if piece.isascii() else whole
            parts.append(bytewise if data.draw(st.booleans()) else whole)
        return np.concatenate([np.empty(0, np.int32), *parts])

    held, wanted = spelled([*shared, *old]), spelled([*shared, *new])
    kept, taken = agreement(held, wanted, words)
    assert words.decode(held[:kept]) == words.decode(wanted[:taken])
    text = "".join(shared)
    assert len(words.decode(held[:kept])) >= len(text) - max(map(len, shared), default=0)
    if old == new[: len(old)]:
        assert kept == len(held)


def test_text_that_looks_like_a_control_token_is_not_one(words):
    """A history that holds the token and one that holds its spelling differ there."""
    text, token = words.encode("a<|im_end|>"), words.encode_control("a<|im_end|>")
    assert agreement(text, token, words) == (1, 1)


@pytest.mark.parametrize("shape", TEMPLATES)
def test_the_system_message_is_found_wherever_it_stands(shape, tmp_path):
    """Its span holds all of its text and little else, also where long messages stand in front of it."""
    write_tokenizer(tmp_path, TEMPLATES[shape])
    tokenizer = Tokenizer.load(tmp_path)
    template = ChatTemplate(tokenizer, {})
    system = Message("system", SYSTEM)
    talk = [Message("user", TEXTS[4]), Message("assistant", "No."), Message("user", "x")]
    for new in (talk[:1], talk):
        window = Window((), 0, True)
        wanted = render(template, window, [system, *new], system)
        start, end = system_span(template, window, [system, *new], system, wanted)
        text = tokenizer.decode(wanted[start:end], skip_special_tokens=False)
        assert SYSTEM.strip() in text
        assert len(text) < len(SYSTEM) + 40
