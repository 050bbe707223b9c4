"""The budget that nobody named: as large as the model's window, the machine's memory and its speed allow.

While a history fits into it, the model sees all of it, as with any other server; so a small one costs answers where a
large one costs time and memory alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mc_core.bundle.bundle import Bundle
from mc_core.engine.core import largest_budget, slots_of, window_of
from mc_core.focus.focus_config import FocusConfig
from mc_core.models.attention import FullAttention
from mc_core.models.rotary import Rotary
from server.free_memory import free_memory
from server.settings import Settings

LEAST, STEP = 1_024, 1_024
"""Tokens. No less unless the window is smaller; and what memory or speed limits goes by steps, so that a start finds
what the one before it found."""
SHARE = 0.75
"""Of the memory that is free, for all slabs together; they are filled as sessions use them, and few are ever full."""
PATIENCE = 300.0
"""Seconds in which the model shall be able to read a context that is full."""
TRIAL_TOKENS, TRIAL_SECONDS = 64, 1.0


@dataclass(frozen=True)
class Choice:
    """A budget W in tokens, and why it is no larger."""

    budget: int
    reason: str


def chosen_budget(settings: Settings, bundle: Bundle) -> Choice:
    """What was asked for, else what the bundle was made with, else the largest that window, memory and speed allow.

    A base that attends by blocks was trained with little in view, and is served so.
    """
    asked, made_with = settings.budget, bundle.focus.get("budget")
    if asked != "auto":
        return Choice(asked, "as asked for")
    if made_with is not None:
        return Choice(int(made_with), "as the bundle was made")
    if repair_of(settings, bundle) == "block":
        most = largest_budget(window_of(bundle.decoder.config), bundle.block_size, framed=False)
        return Choice(min(FocusConfig.budget, most), "as bases with the block mask are trained")
    return _largest(settings, bundle)


def repair_of(settings: Settings, bundle: Bundle) -> str:
    """How keys and values are repaired."""
    return bundle.repair if settings.repair == "auto" else settings.repair


def slot_bytes(settings: Settings, bundle: Bundle) -> int:
    """Memory of one slot of a slab: keys and values of all layers, keys a second time where they move."""
    config, positions = bundle.decoder.config, bundle.positions if settings.positions == "auto" else settings.positions
    copies = 3 if positions == "compact" and repair_of(settings, bundle) != "exact" else 2
    size = bundle.decoder.dtype.itemsize
    return copies * config.num_layers * config.num_kv_heads * config.head_dim * size + size + 8


def _largest(settings: Settings, bundle: Bundle) -> Choice:
    window, size, framed = window_of(bundle.decoder.config), bundle.block_size, bundle.frames is not None
    whole = largest_budget(window, size, framed)
    bytes_each, free = slot_bytes(settings, bundle), free_memory(bundle.device)
    holds = int(SHARE * free / settings.max_sessions / bytes_each)
    limits = [
        (whole, f"the model's window is {window:,} tokens"),
        (_floored(largest_budget(holds, size, framed)), f"{free / 1e9:.1f} GB of memory are free"),
    ]
    if bundle.device.type == "cpu" and min(limits)[0] > LEAST:
        speed = reading_speed(bundle)
        limits.append((_floored(int(PATIENCE * speed)), f"this machine reads about {speed:,.0f} tokens a second"))
    budget, why = min(limits)
    if budget < min(LEAST, whole):
        budget, why = min(LEAST, whole), f"the least there is, though {why}"
    most = settings.max_sessions * bytes_each * slots_of(budget, size, framed) / 1e9
    taken = "as they are used" if bundle.device.type == "cpu" else "from the start"
    return Choice(budget, f"{why}; {settings.max_sessions} slabs take up to {most:.1f} GB, {taken}")


def _floored(tokens: int) -> int:
    return tokens // STEP * STEP


@torch.inference_mode()
def reading_speed(bundle: Bundle) -> float:
    """Tokens a second that the model reads of a short text: the best of what a second leaves time for."""
    decoder = bundle.decoder
    ids = torch.arange(TRIAL_TOKENS, device=decoder.device) % decoder.config.vocab_size
    places = torch.arange(TRIAL_TOKENS, device=decoder.device, dtype=torch.float64)
    attention = FullAttention(Rotary(decoder.config, decoder.device).table(places))
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < TRIAL_SECONDS / 2:
        started = time.perf_counter()
        decoder(decoder.embed(ids)[None], attention)
        best = min(best, time.perf_counter() - started)
    return TRIAL_TOKENS / best
