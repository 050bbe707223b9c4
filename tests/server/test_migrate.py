"""``megacontext sessions migrate``: sessions of one tokenizer go on with a model of another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner, Result

from mc_core.context.message_index import MessageIndex
from mc_core.models.tokenizer import Tokenizer
from mc_core.session.cut_end import CUT_OFF
from redis_server import shared_redis
from server.cli import app
from server.migrate.translate import Language, translate
from server.migrate.under_way import UnderWay
from server.stores.sqlite import SqliteStore
from support import PROSE, ServerThread, settings_for, state_in, write_model

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
HEADERS = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Another way to write messages than the first model's: other control tokens, one at the beginning of all."""
LOG = " ".join(PROSE)
SAID = ["Hello, keeper of the light!", "Größe 東京 🙂 <|im_end|> is only text."]


def write_other(folder: Path) -> Path:
    """A model of the same shape that spells text byte by byte."""
    write_model(folder, template=HEADERS)
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    control = ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator([], trainers.BpeTrainer(special_tokens=control, initial_alphabet=alphabet))
    trained.save(str(folder / "tokenizer.json"))
    told = {"eos_token": "<|eot_id|>", "chat_template": HEADERS}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "first"), write_other(folder / "second")


@pytest.fixture(scope="module")
def languages(folders: tuple[Path, Path]) -> tuple[Language, Language]:
    return tuple(map(language_of, folders))  # type: ignore[return-value]


def language_of(folder: Path) -> Language:
    return Language.of(Tokenizer.load(folder))


def served(folder: Path, store: Path | str) -> ServerThread:
    return ServerThread(settings_for(folder, store, budget=640))


def client_of(server: ServerThread) -> httpx.Client:
    return httpx.Client(base_url=server.address, timeout=120)


def ask(http: httpx.Client, messages: list[dict[str, str]], **others: Any) -> dict[str, Any]:
    body = {"model": "first", "messages": messages, "max_tokens": 3, "temperature": 0, **others}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def migrate(store: Path | str, folders: tuple[Path, Path], work: Path, *options: str) -> Result:
    models = ["--from-model", str(folders[0]), "--model", str(folders[1])]
    url = str(store) if "://" in str(store) else f"sqlite:///{store}"
    return RUNNER.invoke(app, ["sessions", "migrate", url, *models, "--folder", str(work), *options])


def tell(folder: Path, store: Path | str) -> dict[str, Any]:
    """Fill a store of the first model -> what it has: a session with a system message, an ingested text, turns and a
    pin, and a chat that named no session."""
    with served(folder, store) as server, client_of(server) as http:
        named = http.post("/v1/sessions", json={"system": "You keep the light.", "keep": True}).json()["id"]
        http.post(f"/v1/sessions/{named}/ingest", json={"text": LOG, "title": "Log"})
        for text in SAID:
            ask(http, [user(text)], session_id=named)
        start = messages(http, named)[2]["start"]
        http.post(f"/v1/sessions/{named}/focus", json={"pin": [{"start": start, "end": start + 4}]})
        first = ask(http, [user("Plain.")])
        return {
            "named": named,
            "messages": messages(http, named),
            "chat": [user("Plain."), first["choices"][0]["message"]],
            "plain": first["x_megacontext"]["session_id"],
            "pin": pinned(http, named),
        }


@pytest.fixture(scope="module")
def told(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file of the first model, and what it has."""
    store = tmp_path_factory.mktemp("told") / "s.sqlite"
    return store, tell(folders[0], store)


@pytest.fixture(scope="module")
def migrated(
    folders: tuple[Path, Path], told: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The same after a migration that nothing disturbed."""
    folder = tmp_path_factory.mktemp("migrated")
    store = copy_of(told[0], folder)
    assert migrate(store, folders, folder / "work").exit_code == 0
    return content(store)


def content(store: Path) -> dict[str, Any]:
    """All that a file has, by session."""
    opened, found = SqliteStore(store), {}
    try:
        for tenant, name in opened.everything().result():
            record = opened.record(name, tenant).result()
            lasting = ("tenant", "model", "tokenizer", "tokens", "metadata", "implicit", "keep", "ttl")
            shape = ("gist_dim", "gist_keys", "key_dim", "state", "prefixes")
            rows = opened.read_span_range(name, 0, record.blocks).result()
            gists = opened.read_gist_range(name, 1, 0, record.blocks).result()
            found[name] = {one: getattr(record, one) for one in (*lasting, *shape)} | {
                "ids": [*rows.ids.ravel().tolist(), *record.tail.tolist()],
                "gists": len(gists.indices),
                "notes": opened.notes(name, tenant, limit=1000).result().notes,
            }
        return found
    finally:
        opened.close()


def messages(http: httpx.Client, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"/v1/sessions/{session}/messages").json()["data"]
    return found


def pinned(http: httpx.Client, session: str) -> list[Any]:
    return list(http.get(f"/v1/sessions/{session}/focus").json()["pins"])


def copy_of(store: Path, folder: Path) -> Path:
    target = folder / "s.sqlite"
    target.write_bytes(store.read_bytes())
    return target


def text_of(http: httpx.Client, session: str, message: dict[str, Any]) -> str:
    place = {"start": message["start"], "end": message["end"]}
    return str(http.get(f"/v1/sessions/{session}/text", params=place).json()["text"])


def assert_migrated(folder: Path, store: Path | str, told: dict[str, Any]) -> None:
    with served(folder, store) as server, client_of(server) as http:
        named, before = told["named"], told["messages"]
        after = messages(http, named)
        same = ("id", "role", "content", "title", "kind", "created")
        assert [[one[name] for name in same] for one in after] == [[one[name] for name in same] for one in before]
        info = http.get(f"/v1/sessions/{named}").json()
        assert (info["keep"], info["implicit"], info["tokens"]) == (True, False, after[-1]["end"])
        for one in after:
            text = LOG if one["role"] == "document" else one["content"]
            # A place of a message has what the template writes around it, and the next one's cut may be at its end.
            assert text in text_of(http, named, one), one
        pins = state_in(server).host.peek(named, "open").wc.protection.pins  # type: ignore[union-attr]
        assert pins[0][0] == 0, "the system message"
        assert len(pinned(http, named)) == len(told["pin"])
        again = ask(http, [*told["chat"], user("And now?")], model="second")
        assert again["x_megacontext"]["session_id"] == told["plain"], "found by its messages"
        assert ask(http, [user("Who are you?")], session_id=named, model="second")["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
def test_sessions_go_on_with_another_tokenizer(
    folders: tuple[Path, Path],
    told: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law: a server with another tokenizer says so, in its log at the start, in lists and in answers, which name both
    and the way out; after that all that was said stands in the new model's tokens: messages with their ids, texts,
    pins, chats that name no session. Another run says that nothing is left to do."""
    store: Path | str = copy_of(told[0], tmp_path)
    had = told[1]
    if kind == "redis":
        store = f"{shared_redis().url}?namespace={tmp_path.name}:"
        had = tell(folders[0], store)
    with served(folders[1], store) as server, client_of(server) as http:
        body = {"model": "second", "messages": [user("Hi")], "session_id": had["named"]}
        new = http.post("/v1/sessions", json={}).json()["id"]
        listed = {one["id"]: one.get("other_tokenizer") for one in http.get("/v1/sessions").json()["data"]}
        assert listed == {had["named"]: True, had["plain"]: True, new: None}
        table = RUNNER.invoke(app, ["sessions", "list", "--url", server.address]).output
        assert table.count("of another tokenizer") == 2
        assert http.get(f"/v1/sessions/{had['named']}").json()["other_tokenizer"] is True
        http.delete(f"/v1/sessions/{new}")
        refused = http.post("/v1/chat/completions", json=body).json()["error"]["message"]
        assert "'first'" in refused
        assert "'second'" in refused
        assert "megacontext sessions migrate" in refused
    assert "the store has 2 sessions of another tokenizer" in caplog.text
    done = migrate(store, folders, tmp_path / "work", "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert {row["session"] for row in rows} == {had["named"], had["plain"]}
    assert all(row["failed"] is None and row["after"] > row["before"] for row in rows)
    assert not (tmp_path / "work").exists()
    again = migrate(store, folders, tmp_path / "work")
    counts = f"sessions looked at: 2, of them in the tokens of {folders[0]}: 0; there is nothing to migrate\n"
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", counts)
    assert_migrated(folders[1], store, had)


class Killed(BaseException):
    """Where the process would end."""


def die(*_: object, **__: object) -> None:
    raise Killed


def ids_in(store: Path) -> set[str]:
    opened = SqliteStore(store)
    try:
        return {session for _, session in opened.everything().result()}
    finally:
        opened.close()


def interrupt(monkeypatch: pytest.MonkeyPatch, call: str, store: Path, folders: tuple[Path, Path], work: Path) -> None:
    """At the first such call, with nothing that is tidied up after it: as kill -9 does."""

    def killed(*_: object, **__: object) -> None:
        patch.setattr(SqliteStore, "delete", die)
        patch.setattr(UnderWay, "mark", die)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, call, killed)
        with pytest.raises(Killed):
            migrate(store, folders, work)


CALLS = ("reshape", "delete", "create", "write_spans", "commit", "release")


@pytest.mark.parametrize("killed", [False, True], ids=["error", "kill"])
@pytest.mark.parametrize("call", CALLS)
def test_what_was_interrupted_is_taken_up(
    folders: tuple[Path, Path],
    told: tuple[Path, dict[str, Any]],
    migrated: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    killed: bool,
) -> None:
    """Law: wherever it is interrupted, also twice, and whether it can tidy up or not, what it leaves in the store is no
    session of its own, and another run ends with what an undisturbed one ends with."""
    store = copy_of(told[0], tmp_path)
    if killed:
        interrupt(monkeypatch, call, store, folders, tmp_path / "work")
        with served(folders[1], store):
            pass  # which lets go of what has lived long enough
    else:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(SqliteStore, call, die)
                with pytest.raises(Killed):
                    migrate(store, folders, tmp_path / "work")
    done = migrate(store, folders, tmp_path / "work")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "work").exists()
    assert content(store) == migrated


def test_a_file_is_of_one_store(
    folders: tuple[Path, Path], told: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: what an interrupted migration keeps of one store is never put into another one that has the same folder."""
    (tmp_path / "two").mkdir()
    one, two = copy_of(told[0], tmp_path), tmp_path / "two" / "s.sqlite"
    SqliteStore(two).close()
    interrupt(monkeypatch, "create", one, folders, tmp_path / "work")
    done = migrate(two, folders, tmp_path / "work")
    assert done.exit_code == 0, done.output
    assert "of another store" in done.output
    assert ids_in(two) == set()
    monkeypatch.chdir(tmp_path)
    assert migrate(Path("s.sqlite"), folders, tmp_path / "work").exit_code == 0, "the same store by another path"
    assert not (tmp_path / "work").exists()
    assert_migrated(folders[1], one, told[1])


def test_a_store_that_is_refused_leaves_no_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Law: beside a file that is no store, and in the folder for files, nothing is left that was not there."""
    foreign = tmp_path / "s.sqlite"
    foreign.write_bytes(b"no database" * 1000)
    assert migrate(foreign, folders, tmp_path / "work").exit_code == 1
    assert list(tmp_path.iterdir()) == [foreign]


@pytest.mark.parametrize("call", ["reshape", "release"])
def test_what_its_owner_deleted_stays_deleted(
    folders: tuple[Path, Path],
    told: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """Law: a session that is seen after an interruption, the old one or the new one, and is deleted, never comes back;
    nothing of it is kept."""
    store, work = copy_of(told[0], tmp_path), tmp_path / "work"
    interrupt(monkeypatch, call, store, folders, work)
    (begun,) = {one for name in ("named", "plain") for one in [told[1][name]] if list(work.rglob(f"*{one}*"))}
    with served(folders[call == "release"], store) as server, client_of(server) as http:
        assert http.delete(f"/v1/sessions/{begun}").status_code < 300
    done = migrate(store, folders, work)
    assert done.exit_code == 0, done.output
    assert f"{begun}: was deleted" in done.output
    assert ids_in(store) == {told[1]["named"], told[1]["plain"]} - {begun}
    assert not work.exists()


def test_a_turn_that_was_cut_off_is_told(
    folders: tuple[Path, Path], told: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a session that a crash left between the two commits of a turn stays, and is told with the way out; the
    others are done, and so is this one after that."""
    store, named = copy_of(told[0], tmp_path), told[1]["named"]
    cut_off(store, named)
    done = migrate(store, folders, tmp_path / "work")
    assert done.exit_code == 1
    assert f"{named}: failed: a crash cut off a turn" in done.output
    assert f"{told[1]['plain']}: " in done.output
    with served(folders[0], store) as server, client_of(server) as http:
        assert messages(http, named) == told[1]["messages"]
    assert migrate(store, folders, tmp_path / "work").exit_code == 0
    assert_migrated(folders[1], store, told[1])


def cut_off(store: Path, session: str) -> None:
    """As a turn leaves it that is to write the last tokens anew, after the first of its commits."""
    opened = SqliteStore(store)
    ((tenant, _),) = [one for one in opened.everything().result() if one[1] == session]
    record = opened.open(session, tenant, "test").result().record
    end = {"ids": [], "prefixes": [list(one) for one in record.prefixes], "sources": record.state.get("sources", [])}
    opened.commit(replace(record, state={**record.state, CUT_OFF: end}), beyond="keep").result()
    opened.close()


def test_a_session_that_cannot_be_written_stays(
    folders: tuple[Path, Path], told: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: one that fails is told, stays as it was, and the others are done."""
    store = copy_of(told[0], tmp_path)
    real = SqliteStore.notes

    def broken(self: SqliteStore, session: str, *arguments: Any, **named: Any) -> Any:
        if session == told[1]["named"]:
            raise OSError("the disk says no")
        return real(self, session, *arguments, **named)

    monkeypatch.setattr(SqliteStore, "notes", broken)
    done = migrate(store, folders, tmp_path / "work")
    assert done.exit_code == 1
    assert f"{told[1]['named']}: failed: the disk says no" in done.output
    assert f"{told[1]['plain']}: " in done.output
    monkeypatch.undo()
    with served(folders[0], store) as server, client_of(server) as http:
        assert messages(http, told[1]["named"]) == told[1]["messages"]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str | None, str]]:
    """Messages by role, and texts of no message."""
    role = st.sampled_from([None, "system", "user", "assistant"])
    said = st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=12)
    return draw(st.lists(st.tuples(role, said), max_size=6))


@settings(max_examples=60, deadline=None)
@given(history=histories(), data=st.data())
def test_text_and_places_stand_where_they_stood(
    languages: tuple[Language, Language], history: list[tuple[str | None, str]], data: st.DataObject
) -> None:
    """Law: in the new tokens there are the same messages and texts, and the same stands before a place, but for a
    character that the place cuts; there and back again is what it was."""
    first, second = languages
    ids = np.concatenate([first.begin, *(spelled(first, role, said) for role, said in history)]).astype(np.int32)
    wanted = data.draw(st.lists(st.integers(0, len(ids)), max_size=5))
    there = translate(first, second, ids, wanted)
    assert contents(second, there.ids) == contents(first, ids)
    assert contents(first, translate(second, first, there.ids, ()).ids) == contents(first, ids)
    cut = {place for start, end, *_ in frames(first, ids) for place in range(start + 1, end)}
    for place in set(wanted) - cut:
        before = contents(first, ids[:place])
        assert contents(second, there.ids[: there.places[place]]) == [*before[:-1], before[-1].rstrip("\ufffd")]


def spelled(language: Language, role: str | None, said: str) -> Any:
    ids = language.tokenizer.encode_more(said)
    if role is None:
        return ids
    assert language.format is not None
    kind = next(kind for kind in language.format.kinds if kind.role == role)
    return np.concatenate([kind.opening, ids, kind.closing])


def frames(language: Language, ids: Any) -> list[tuple[int, int, int, bool]]:
    assert language.format is not None
    index = MessageIndex(language.format)
    index.append(ids)
    return list(index.frames())


def contents(language: Language, ids: Any) -> list[str]:
    """What stands between the frames."""
    edges = [0, *(place for start, end, *_ in frames(language, ids) for place in (start, end)), len(ids)]
    pieces = zip(edges[::2], edges[1::2], strict=True)
    skipped = len(language.begin)
    return [language.tokenizer.decode(ids[max(start, skipped) : end], False) for start, end in pieces]
