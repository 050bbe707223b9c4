"""The budget that nobody named: of the model's window, the machine's memory, and its speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import server.budget
import server.free_memory
from mc_core.bundle.bundle import Bundle, load_bundle
from mc_core.engine.core import build_core, largest_budget, slots_of
from mc_core.focus.focus_config import FocusConfig
from server.budget import LEAST, PATIENCE, SHARE, chosen_budget, slot_bytes
from server.build import engine_config, focus_of, frames_of, template_of
from server.free_memory import free_memory
from server.settings import BUNDLED_MODEL, Settings
from tests.support import write_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A stock base with a window of 8,192 tokens, with its frames."""
    made = load_bundle(write_model(tmp_path_factory.mktemp("model"), block_mask=False))
    decoder = made.decoder
    decoder.config = replace(decoder.config, max_position_embeddings=8_192)
    return replace(made, frames=frames_of(Settings(), made, template_of(made, "tiny", None)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the machine has; tests change it."""
    has = {"free": 1e12, "speed": 1e6}
    monkeypatch.setattr(server.budget, "free_memory", lambda device: int(has["free"]))
    monkeypatch.setattr(server.budget, "reading_speed", lambda bundle: has["speed"])
    return has


@given(slots=st.integers(1, 20_000), size=st.sampled_from([16, 32, 64]), framed=st.booleans())
def test_no_larger_budget_fits(slots: int, size: int, framed: bool) -> None:
    """Law: of all budgets in whole blocks, the largest is named whose slab takes no more slots."""
    fits = [budget for budget in range(0, slots, size) if slots_of(budget, size, framed) <= slots]
    assert largest_budget(slots, size, framed) == max(fits, default=0)


def test_the_window_decides_where_there_is_room(bundle: Bundle, machine: dict[str, float]) -> None:
    """With memory and speed for it, the budget is the model's whole window, less what stands beside it."""
    choice = chosen_budget(Settings(), bundle)
    assert choice.budget == largest_budget(8_192, 32, framed=True) == 7_648
    assert "window is 8,192 tokens" in choice.reason
    focus, why = focus_of(Settings(), bundle)
    assert (focus.budget, why) == (choice.budget, choice.reason)


@settings(max_examples=60)
@given(free=st.floats(1e6, 1e10), speed=st.floats(0.1, 200), sessions=st.integers(1, 64))
def test_memory_and_speed_are_kept(bundle: Bundle, free: float, speed: float, sessions: int) -> None:
    """Law: slabs take no more than their share, and a full context is read in time, unless it is the least there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.budget, "free_memory", lambda device: int(free))
        patch.setattr(server.budget, "reading_speed", lambda bundle: speed)
        chosen = Settings(max_sessions=sessions)
        budget = chosen_budget(chosen, bundle).budget
    assert LEAST <= budget <= 7_648
    if budget > LEAST:
        slabs = sessions * slots_of(budget, 32, framed=True) * slot_bytes(chosen, bundle)
        assert slabs <= SHARE * free
        assert budget / speed <= PATIENCE


@pytest.mark.parametrize("repair", ["exact", "incremental"])
def test_bytes_of_a_slot_are_those_of_the_slabs(bundle: Bundle, repair: str) -> None:
    """Law: what is reckoned with is what an engine allocates."""
    chosen = Settings(repair=repair, max_sessions=3)  # type: ignore[arg-type]
    core = build_core(bundle, FocusConfig(budget=512), engine_config(chosen), None, repair=repair)  # type: ignore[arg-type]
    pool = core.runner.pool
    assert pool.slots == slots_of(512, 32, framed=True)
    assert pool.bytes() == 3 * pool.slots * slot_bytes(chosen, bundle)


def test_what_was_asked_for_goes_first(bundle: Bundle, machine: dict[str, float]) -> None:
    """A budget that was named counts, then the bundle's own; one with the block mask has what it was trained with."""
    machine["free"] = 0
    own = replace(bundle, manifest=replace(bundle.manifest, focus={"budget": 2_048}))
    assert chosen_budget(Settings(budget=4_096), own).budget == 4_096
    assert chosen_budget(Settings(), own).budget == 2_048
    assert chosen_budget(Settings(), bundle).budget == LEAST
    assert chosen_budget(Settings(), load_bundle(BUNDLED_MODEL)).budget == 1_024


def test_a_window_smaller_than_the_least(
    bundle: Bundle, machine: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose window is small gets the largest budget that it allows, however little memory there is."""
    machine["free"] = 0
    monkeypatch.setattr(bundle.decoder, "config", replace(bundle.decoder.config, max_position_embeddings=1_024))
    assert chosen_budget(Settings(), bundle).budget == largest_budget(1_024, 32, framed=True) < LEAST


def test_limits_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free is what the tightest limit above the process leaves; cached files that nobody touches count as free."""
    monkeypatch.setattr(server.free_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(server.free_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(server.free_memory, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "meminfo").write_text("MemTotal:  64 kB\nMemAvailable:    9000 kB\n")
    cpu = torch.device("cpu")
    assert free_memory(cpu) == 9_000 * 1024
    (tmp_path / "own").write_text("9:cpuset:/\n0::/pod/box\n")
    for group, most in (("pod", "5000"), ("pod/box", "max")):
        folder = tmp_path / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("1500\n")
        (folder / "memory.stat").write_text("anon 1000\ninactive_file 200\n")
    assert free_memory(cpu) == 5_000 - 1_500 + 200
    (tmp_path / "own").write_text("4:memory:/box\n")
    old = tmp_path / "cgroup" / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("2000\n")
    (old / "memory.usage_in_bytes").write_text("2500\n")
    assert free_memory(cpu) == 0
