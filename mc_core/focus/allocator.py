"""Allocators by name."""

from __future__ import annotations

from mc_core.errors import ConfigError
from mc_core.focus.allocator_base import Allocator, PlanReport
from mc_core.focus.allocator_kinds import BanditAllocator, StochasticGreedyAllocator
from mc_core.focus.focus_config import ALLOCATORS, FocusConfig

KINDS: dict[str, type[Allocator]] = {
    kind.kind: kind for kind in (Allocator, StochasticGreedyAllocator, BanditAllocator)
}

__all__ = ["Allocator", "PlanReport", "make_allocator"]


def make_allocator(config: FocusConfig) -> Allocator:
    """The allocator that ``config.allocator`` names; it serves one session."""
    if config.allocator not in KINDS:
        raise ConfigError(f"allocator must be one of {', '.join(ALLOCATORS)}, got {config.allocator!r}")
    return KINDS[config.allocator](config)
