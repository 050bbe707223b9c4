"""Keys and values of a slab as a file: what is filled from it is that slab again, and nothing else is ever used."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kv_lab import POLICIES, K, W, edit_at_random, make_model, repair
from mc_core.context.working_context import WorkingContext
from mc_core.kv.kv_file import Head, Shape
from mc_core.kv.kv_folder import KVFolder
from mc_core.kv.layout import layout_of
from mc_core.kv.session_kv import ChangedError, KVModel, SessionKV, Units, decode_step

OF = {"weights": "random"}
BLOCKS, OPENED = np.arange(5), np.arange(3)


def folder_of(path: Path, model: KVModel, limit: int = 1 << 30) -> KVFolder:
    return KVFolder(path, limit, Shape.of(model.pool), model.pool.slots)


def write(folder: KVFolder, kv: SessionKV, owner: tuple[str, str] = ("tenant", "session"), **of: Any) -> Path:
    units = kv.units()
    assert units is not None
    columns = np.stack([getattr(units, each.name) for each in fields(units)])
    folder.write(Head({**OF, **of}, owner, columns, BLOCKS, OPENED), kv.copy(units, kv.version))
    return folder.path(*owner)


def fill(folder: KVFolder, model: KVModel) -> SessionKV:
    file = folder.read("tenant", "session", OF)
    assert file is not None
    kv = SessionKV(model, model.pool.acquire())
    kv.fill(Units(*file.head.columns), file.keys, file.values)
    return kv


def a_slab(model: KVModel, tokens: int = 3 * K) -> SessionKV:
    wc = WorkingContext(K, W, recent_tokens=2 * K)
    wc.extend(tokens, reserve=K)
    kv = SessionKV(model, model.pool.acquire())
    repair(kv, layout_of(wc, hidden_gists=True, segment_blocks=None))
    return kv


@pytest.mark.parametrize(
    ("mode", "policy"), [("exact", "simple"), ("incremental", "compact"), ("block", "compact"), ("block", POLICIES[-1])]
)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vectors=st.sampled_from([0, 1, 4]))
def test_a_slab_that_was_a_file_goes_on_as_the_one_that_stayed(
    tmp_path_factory: pytest.TempPathFactory, mode: str, policy: str, seed: int, vectors: int
) -> None:
    """After any edits, decoded tokens and rewinds, it keeps and computes the same units, to the same hidden states."""
    rng = np.random.default_rng(seed)
    model = make_model(mode, policy, rows=9)
    folder = folder_of(tmp_path_factory.mktemp("kv"), model)
    wc = WorkingContext(K, W, recent_tokens=2 * K, gist_cost=max(1, vectors))
    wc.extend(int(rng.integers(1, 40 * K)), reserve=K)
    segments = 4 if mode == "block" else None
    stayed, woken = (SessionKV(model, model.pool.acquire()) for _ in range(2))
    for _ in range(3):
        layout = layout_of(wc, hidden_gists=not vectors, segment_blocks=segments)
        (hidden, computed), (other, computed_too) = repair(stayed, layout), repair(woken, layout)
        torch.testing.assert_close(other, hidden, atol=1e-5, rtol=1e-5)
        assert computed == computed_too
        for index in range(wc.num_tokens, wc.num_tokens + int(rng.integers(0, 3))):
            decode_step(model, [stayed, woken], [index, index], torch.tensor([5, 5]))
        write(folder, woken)
        woken = fill(folder, model)
        assert all(map(np.array_equal, *(vars(kv.cached()).values() for kv in (stayed, woken))))
        before = wc.num_tokens
        edit_at_random(wc, rng)
        for kv in (stayed, woken):
            kv.rewind(min(before, wc.num_tokens))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_file_that_is_not_as_it_was_written_is_never_used(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One bit anywhere, a cut, more behind it, or no such file at all: nothing of it gets into a slab, and it goes."""
    model = make_model("exact")
    folder = folder_of(tmp_path_factory.mktemp("kv"), model)
    path = write(folder, a_slab(model))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["bit", "cut", "more", "random"]))
    if kind == "bit":
        at = data.draw(st.integers(0, 8 * len(content) - 1))
        content[at // 8] ^= 1 << at % 8
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "more":
        content += data.draw(st.binary(min_size=1, max_size=9))
    else:
        content = bytearray(data.draw(st.binary(max_size=99)))
    path.write_bytes(content)
    assert folder.read("tenant", "session", OF) is None
    # A bit of what its numbers depend on makes it a foreign one, which may be of use to another server.
    assert not path.exists() or kind == "bit"


def test_a_file_of_another_server_or_session_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What its numbers depend on is compared before they are read, and whose it is; the log says what was wrong."""
    caplog.set_level(logging.INFO)
    model = make_model("exact", rows=2)
    folder = folder_of(tmp_path, model)
    kv = a_slab(model)
    write(folder, kv, weights="others")
    assert folder.read("tenant", "session", OF) is None
    assert "of other weights" in caplog.text
    os.replace(write(folder, kv, ("tenant", "other")), folder.path("tenant", "session"))
    assert folder.read("tenant", "session", OF) is None
    assert "of another session" in caplog.text
    small = KVFolder(tmp_path, 1 << 30, folder.shape, len(kv) - 1)
    write(folder, kv)
    assert small.read("tenant", "session", OF) is None
    assert f"it has {len(kv)} units" in caplog.text


def test_files_are_private_and_their_names_tell_nothing(tmp_path: Path) -> None:
    """Only the owner may read them; whatever a tenant or session is called, its file lies in the folder, alone."""
    model = make_model("exact")
    folder = folder_of(tmp_path / "kv", model)
    kv = a_slab(model)
    owners = [("..", "/etc/passwd"), ("", "../../a"), ("a", "b c"), ("a b", "c"), ("a\0", "b"), ("ä" * 300, "x" * 300)]
    paths = {write(folder, kv, owner) for owner in owners}
    assert len(paths) == len(owners)
    assert sorted(folder.owners()) == sorted(owners)
    assert {path.parent for path in paths} == {folder.folder}
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert folder.folder.stat().st_mode & 0o777 == 0o700
    assert set(load_file(next(iter(paths)))) >= {"keys.0", "values.1", "columns"}


def test_a_folder_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    """All files together never take more than the limit, and to read one is to use it; a larger one is not kept."""
    model = make_model("exact", rows=2)
    kv = a_slab(model)
    size = write(folder_of(tmp_path / "other", model), kv).stat().st_size
    folder = folder_of(tmp_path, model, 3 * size + size // 2)
    for number in range(6):
        path = write(folder, kv, ("tenant", str(number)))
        os.utime(path, (number, number))
        assert folder.bytes <= folder.limit
        if number > 0:
            assert folder.read("tenant", "0", OF) is not None
            os.utime(folder.path("tenant", "0"), (number + 0.5, number + 0.5))
    assert sorted(owner[1] for owner in folder.owners()) == ["0", "4", "5"]
    with pytest.raises(OSError, match="larger than all of them"):
        write(folder_of(tmp_path / "small", model, size - 1), kv)
    assert not list((tmp_path / "small").glob("*.safetensors"))


def test_a_disk_that_fills_up_has_fewer_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half of what is left at most, and go before more is written: the store beside them needs the room."""
    model = make_model("exact", rows=2)
    folder, kv = folder_of(tmp_path, model), a_slab(model)
    for number in range(6):
        os.utime(write(folder, kv, ("tenant", str(number))), (number, number))
    disk = SimpleNamespace(free=folder.bytes * 5 // 12)  # two and a half of them
    monkeypatch.setattr("mc_core.kv.kv_folder.shutil.disk_usage", lambda path: disk)
    write(folder, kv, ("tenant", "new"))
    assert sorted(owner[1] for owner in folder.owners()) == ["4", "5", "new"]
    disk.free = 0
    with pytest.raises(OSError, match="no room"):
        write(folder, kv, ("tenant", "newer"))
    assert list(folder.owners()) == []


def test_what_others_put_into_the_folder_stays(tmp_path: Path) -> None:
    """Only what is named as its files are is deleted, or opened: a model's weights are not, and no pipe."""
    model = make_model("exact", rows=2)
    folder, kv = folder_of(tmp_path, model), a_slab(model)
    strange = [tmp_path / name for name in ("model.safetensors", "a.part", "f" * 64 + ".txt")]
    for path in strange:
        path.write_bytes(b"weights")
        os.utime(path, (0, 0))
    os.mkfifo(folder.path("tenant", "pipe"))
    damaged, begun = folder.path("tenant", "damaged"), folder.path("tenant", "begun").with_suffix(".1a.part")
    for path in (damaged, begun):
        path.write_bytes(b"damaged")
        os.utime(path, (0, 0))
    assert list(folder.owners()) == []
    assert not folder.has("tenant", "pipe")
    small = folder_of(tmp_path, model, write(folder, kv).stat().st_size)
    write(small, kv, ("tenant", "other"))
    own = [folder.path("tenant", "pipe"), folder.path("tenant", "other"), tmp_path / "seed"]
    assert sorted(tmp_path.iterdir()) == sorted([*strange, *own])


def test_a_folder_keeps_its_secret(tmp_path: Path) -> None:
    """Whoever opens it again has the same one, of its owner alone; another folder has another one, and one that was cut
    short is of no use."""
    model = make_model("exact")
    first, again, other = (folder_of(tmp_path / name, model).seed for name in ("a", "a", "b"))
    assert first == again != other
    assert len(first) == len(other) == 32
    file = tmp_path / "a" / "seed"
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in (tmp_path / "a").iterdir()) == ["seed"]
    file.write_bytes(first[:5])
    assert len(folder_of(tmp_path / "a", model).seed) == 32


def test_a_slab_that_changes_while_it_is_written_leaves_the_last_file(tmp_path: Path) -> None:
    """Half of one state and half of another is never kept."""
    model = make_model("exact")
    folder = folder_of(tmp_path, model)
    kv = a_slab(model)
    before = write(folder, kv).read_bytes()
    units, version = kv.units(), kv.version
    assert units is not None
    layers = kv.copy(units, version)

    def torn() -> Any:
        yield next(layers)
        decode_step(model, [kv], [3 * K], torch.tensor([1]))
        yield from layers

    head = Head(OF, ("tenant", "session"), np.zeros((8, len(units.slots)), np.int64), BLOCKS, OPENED)
    with pytest.raises(ChangedError):
        folder.write(head, torn())
    assert folder.path("tenant", "session").read_bytes() == before
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
