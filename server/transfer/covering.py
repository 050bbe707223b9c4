"""The state of a session whose history becomes another one: cut, or written in other tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mc_core.context.sources import Sources
from mc_core.context.working_context import WorkingContext
from mc_core.session.cut_end import CUT_OFF

ROOM = 8
"""Budgets that pins may take in other tokens, before it is seen which of them fit."""


def covering(
    state: Mapping[str, Any],
    tokens: int,
    place: Callable[[int], int],
    *,
    block_size: int | None = None,
    chat: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As coarse as can be, with its pins as far as its budget holds them. place: where a token of the old history is in
    the new one, which has ``tokens``. block_size: None for the one that it had. chat: of the conversation."""
    before = WorkingContext.restore(state["context"])
    kept = {name: value for name, value in state.items() if name != CUT_OFF}
    allocator = {name: state["allocator"][name] for name in ("kind", "plans") if name in state["allocator"]}
    sources = [[place(int(start)), *about] for start, *about in state.get("sources", ())]
    return {
        **kept,
        "context": _context(before, tokens, place, block_size or before.block_size).snapshot(),
        "allocator": {**allocator, "arms": {}, "opened": []},
        "chat": dict(chat or {}),
        "ingest_cut": None,
        "sources": Sources.of_json(sources).cut(tokens).json(),
    }


def _context(before: WorkingContext, tokens: int, place: Callable[[int], int], block_size: int) -> WorkingContext:
    pins, chosen = (
        [(place(start), place(end)) for start, end in ranges if place(start) < place(end)]
        for ranges in (before.protection.pins, before.protection.chosen)
    )
    wide = WorkingContext(block_size, ROOM * before.budget, before.recent_tokens, pins, before.gist_cost)
    wide.choose(chosen)
    wide.cover(tokens)
    return wide.under(before.budget, before.recent_tokens, before.gist_cost)
