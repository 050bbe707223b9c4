"""Slabs as files, through the engine: sessions wake as warm as they went, and never with what is no longer theirs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_lab import Lab, MakeLab, Reply, random_ids
from mc_core.engine.engine_config import EngineConfig
from mc_core.kv.session_kv import SessionKV
from mc_core.session.session import Session


def with_files(folder: Path) -> EngineConfig:
    return EngineConfig(max_sessions=2, kv_folder=folder, recent_kv_bytes=0, share_kv=False)


def asked(lab: Lab, session: Session, seed: int) -> tuple[list[int], int]:
    """The ids of a reply, and how many units it computed before it."""
    reply = lab.ask(session, random_ids(20, seed), 40)
    assert reply.finished is not None
    return reply.ids, reply.finished.context.kv_recomputed


@pytest.mark.parametrize("repair", ["exact", "block", "incremental"])
def test_a_session_wakes_as_if_it_had_stayed(make_lab: MakeLab, tmp_path: Path, repair: str) -> None:
    """Whoever lost its slab, its memory, or its server replies as one that stayed, and computes what that computes."""
    names = ("stayed", "restored")
    with make_lab(with_files(tmp_path / "kv"), repair=repair) as lab:
        stayed, restored = (lab.session(name, 900) for name in names)
        assert asked(lab, stayed, 0) == asked(lab, restored, 0)
        for turn in (1, 2):
            lab.engine.release(restored).result()
            restored = lab.reopen("restored")
            assert asked(lab, stayed, turn) == asked(lab, restored, turn)
        expected = asked(lab, stayed, 3)
        lab.engine.release(restored).result()
    with make_lab(with_files(tmp_path / "kv"), repair=repair) as lab:
        assert asked(lab, lab.reopen("restored"), 3) == expected


def test_what_was_cut_and_written_anew_is_computed(make_lab: MakeLab, tmp_path: Path) -> None:
    """A file serves as far as the history is the one that it is of, token by token: after a rewind and as many other
    tokens, and after it was lost as a whole, replies are those of a server without files."""
    replies: list[list[Reply]] = []
    for folder in (None, tmp_path / "kv"):
        config = EngineConfig(max_sessions=1, kv_folder=folder, recent_kv_bytes=0)
        with make_lab(config, repair="exact") as lab:
            name = f"session-{folder is None}"
            session = lab.session(name, 900)
            found = [lab.ask(session, random_ids(20), 8)]
            lab.engine.release(session).result()
            for cut in (500, 37, 901):
                session = lab.reopen(name)
                tokens = session.tokens
                lab.engine.rewind(session, cut).result()
                lab.engine.ingest(session, random_ids(tokens - cut, cut)).result()
                lab.engine.commit(session).result()
                found.append(lab.ask(session, random_ids(20, cut), 8))
                lab.engine.release(session).result()
            session = lab.reopen(name)
            for path in (tmp_path / "kv").glob("*"):
                path.write_bytes(b"\0" * 1000)
            found.append(lab.ask(session, random_ids(20, 3), 8))
            replies.append(found)
    plain, kept = replies
    assert [reply.ids for reply in plain] == [reply.ids for reply in kept]
    spared = [_computed(one) - _computed(other) for one, other in zip(plain, kept, strict=True)]
    assert spared[0] == spared[-1] == 0
    assert 64 <= spared[1] <= 500
    assert 0 < spared[2] <= 37
    assert spared[3] > 64


def _computed(reply: Reply) -> int:
    assert reply.finished is not None
    return reply.finished.context.kv_recomputed


def test_a_file_that_fails_half_way_is_as_none(
    make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails once units are in the slab, none of them stays: the reply is that of a server without files."""
    fill = SessionKV.fill

    def failing(kv: SessionKV, *arguments: Any) -> None:
        fill(kv, *arguments)
        raise MemoryError

    monkeypatch.setattr(SessionKV, "fill", failing)
    replies = []
    for folder in (None, tmp_path / "kv"):
        config = EngineConfig(max_sessions=2, kv_folder=folder, recent_kv_bytes=0)
        with make_lab(config, repair="incremental") as lab:
            name = f"session-{folder is None}"
            session = lab.session(name, 900)
            asked(lab, session, 0)
            lab.engine.release(session).result()
            replies.append(asked(lab, lab.reopen(name), 1))
    assert list((tmp_path / "kv").glob("*.safetensors"))
    assert replies[0] == replies[1]


def test_an_idle_slab_is_written_in_a_while(make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs that others may take are written soon, and others late; of idle ones one that has a file is given away
    first."""
    monkeypatch.setattr("mc_core.engine.engine.SAVE_SOON", 0.0)
    monkeypatch.setattr("mc_core.engine.engine.SAVE_LATE", 1e9)
    with make_lab(with_files(tmp_path / "kv"), repair="incremental") as lab:
        session, other = (lab.session(name, 300, seed) for seed, name in enumerate(("a", "b")))
        lab.ask(session, random_ids(20), 8)
        keeper = lab.engine.core.keeper
        assert keeper is not None
        for _ in range(5):
            lab.engine.call(lambda: None).result()
        assert not keeper.busy
        assert not list((tmp_path / "kv").glob("*.safetensors"))
        lab.ask(other, random_ids(20), 8)
        while not all(each.kv is not None and keeper.is_saved(each.kv) for each in (session, other)):
            lab.engine.call(lambda: None).result()
        monkeypatch.setattr("mc_core.engine.engine.SAVE_SOON", 1e9)
        lab.ask(other, random_ids(20), 8)
        lab.ask(session, random_ids(20, 1), 8)
        assert session.kv is not None
        keeper.save(session).result()  # type: ignore[union-attr]
        lab.ask(lab.session("c", 300, 2), random_ids(20), 8)
        assert session.kv is None
        assert other.kv is not None


def test_what_is_not_to_be_kept_leaves_no_file(make_lab: MakeLab, tmp_path: Path) -> None:
    """Sessions that live in memory alone, that are broken or deleted: nothing of them is in the folder afterwards."""
    with make_lab(with_files(tmp_path / "kv")) as lab:
        passing = lab.factory.create("passing", "tenant", model="tiny", durable=False)
        lab.ask(passing, random_ids(20), 4)
        lab.engine.release(passing).result()
        session = lab.session("session", 100)
        lab.ask(session, random_ids(20), 4)
        lab.engine.release(session, keep=False).result()
        assert not list((tmp_path / "kv").glob("*.safetensors"))
        session = lab.reopen("session")
        lab.ask(session, random_ids(20, 1), 4)
        keeper = lab.engine.core.keeper
        assert keeper is not None
        lab.engine.release(session).result()
        assert len(list((tmp_path / "kv").glob("*.safetensors"))) == 1
        keeper.drop("tenant", "session").result()
        assert not list((tmp_path / "kv").glob("*.safetensors"))


def test_a_folder_that_cannot_be_written_harms_nobody(
    make_lab: MakeLab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Turns end as ever, sessions come back, and the log says once what is wrong; who deleted it gets it back."""
    folder = tmp_path / "kv"
    with make_lab(with_files(folder)) as lab:
        shutil.rmtree(folder)
        folder.touch()
        session = lab.session("session", 100)
        for seed in range(2):
            assert lab.ask(session, random_ids(20, seed), 4).error is None
            lab.engine.release(session).result()
            session = lab.reopen("session")
        assert len([each for each in caplog.records if "can't be written" in each.message]) == 1
        assert np.all(session.tokens > 100)
        folder.unlink()
        lab.ask(session, random_ids(20, 2), 4)
        lab.engine.release(session).result()
        assert len(list(folder.glob("*.safetensors"))) == 1


def test_a_stop_does_not_wait_for_files(make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops has leases to give back: past a while no slab is written any more."""
    monkeypatch.setattr("mc_core.engine.engine.SAVE_AT_STOP", 0.0)
    with make_lab(with_files(tmp_path / "kv")) as lab:
        session = lab.session("session", 100)
        assert lab.ask(session, random_ids(20), 4).error is None
        lab.engine.drain(0.0)
        lab.engine.release(session).result()
        assert not list((tmp_path / "kv").glob("*.safetensors"))
