"""Settings of the focus: the budget, what is protected, and how far a refocus may go."""

from __future__ import annotations

from dataclasses import dataclass

from mc_core.errors import ConfigError
from mc_core.focus.lens import lens_spec
from mc_core.tree.tree_config import BLOCK_SIZES

ALLOCATORS = ("greedy", "stochastic_greedy", "bandit")

PROMISED_TOKENS = 10_000_000
"""Histories up to this length must fit any budget that is accepted, wherever their end falls."""


@dataclass(frozen=True)
class FocusConfig:
    """Costs and lengths are in tokens; scores, thresholds and prices are on the lens's scale of 0 to 1.

    budget: W, the most that a working context costs. recent_tokens: the newest that always stand raw.
    expand_threshold: a gain must exceed it to be acted on. collapse_threshold: by how much a gain must exceed the harm
    of each collapse that makes room for it, so that close scores do not swap back and forth.
    edits_per_iteration (N_diff) x iterations: places that a refocus opens at most; the descent to one run of target
    blocks is one. cooldown: refocuses in which an entry is not put back to the level that it came from.
    refocus_interval: tokens decoded between refocuses, kept free in the budget; 0 stands for block_size.
    lens_interval: the lens is asked at a turn's start and at every so-manyth refocus of the reply; the others go on
    from what it said. temperature, top_k: of ``stochastic_greedy``. look_ahead: places that the lens proposes in all
    history, and neighbours: blocks on both sides of each. hops: how often a turn's first refocus goes on to what the
    places that it opened name in turn. repair_price: utility of recomputing the whole context; an edit is charged the
    share behind it. fill: spare budget goes to the newest history up to this utilization. narrow, sure, wide: for a
    history that doesn't fit as a whole. Where the lens's best find is worth ``sure``, all that is worth less than
    ``narrow`` of it is put away, and nothing is filled; else the newest history gets ``wide`` tokens of the budget at
    most. narrow 0: nothing is put away until its room is needed. best_last: where the lens is as ``sure``, its best
    find is read right before the question, and not in order of time.
    """

    budget: int = 1024
    block_size: int = 32
    recent_tokens: int = 128
    expand_threshold: float = 0.1
    collapse_threshold: float = 0.1
    edits_per_iteration: int = 4
    iterations: int = 2
    cooldown: int = 2
    refocus_interval: int = 0
    lens_interval: int = 4
    lens: str = "lexical"
    allocator: str = "greedy"
    temperature: float = 0.1
    top_k: int = 8
    look_ahead: int = 8
    neighbours: int = 1
    hops: int = 3
    repair_price: float = 0.0
    fill: float = 0.95
    wide: int = 1024
    sure: float = 0.6
    narrow: float = 0.0
    best_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"block_size must be one of {_listed(BLOCK_SIZES)}, got {self.block_size}")
        if self.refocus_interval == 0:
            object.__setattr__(self, "refocus_interval", self.block_size)
        self._check_ranges()
        if self.refocus_interval < self.block_size:
            raise ConfigError(
                f"refocus_interval must be at least block_size {self.block_size} (refocuses fall on block borders), "
                f"got {self.refocus_interval}"
            )
        least = least_budget(self.block_size, self.recent_tokens, self.refocus_interval)
        if self.budget < least:
            raise ConfigError(
                f"budget must be at least {least} for block_size {self.block_size}, recent_tokens "
                f"{self.recent_tokens} and refocus_interval {self.refocus_interval}, so that a history of "
                f"{PROMISED_TOKENS:,} tokens fits; got {self.budget}"
            )

    def _check_ranges(self) -> None:
        for name in ("edits_per_iteration", "iterations", "lens_interval", "top_k"):
            _check(name, getattr(self, name), 1, None)
        for name in (
            "recent_tokens",
            "refocus_interval",
            "look_ahead",
            "neighbours",
            "hops",
            "wide",
            "seed",
            "repair_price",
        ):
            _check(name, getattr(self, name), 0, None)
        for name in ("expand_threshold", "collapse_threshold", "fill", "sure", "narrow"):
            _check(name, getattr(self, name), 0, 1)
        _check("cooldown", self.cooldown, 0, 127)
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")
        lens_spec(self.lens)
        if self.allocator not in ALLOCATORS:
            raise ConfigError(f"allocator must be one of {_listed(ALLOCATORS)}, got {self.allocator!r}")


def least_budget(
    block_size: int, recent_tokens: int, reserve: int, num_tokens: int = PROMISED_TOKENS, gist_cost: int = 1
) -> int:
    """The most that the coarsest context of up to ``num_tokens`` can cost, with ``reserve`` and block 0 pinned.

    Block 0 keeps the first nodes from merging, and so does the end: up to 2 (K - 1) nodes a level stay single.
    """
    cover, span = 0, block_size
    while span <= num_tokens:
        cover += min(2 * (block_size - 1), num_tokens // span)
        span *= block_size
    longest_tail = recent_tokens + block_size - 1
    return block_size + cover * gist_cost + longest_tail + reserve


def hardest_length(block_size: int, num_tokens: int = 0) -> int:
    """The length of history, at least ``num_tokens``, whose end leaves the most nodes single; see ``least_budget``."""
    top = block_size
    while top * block_size <= PROMISED_TOKENS:
        top *= block_size
    return (max(num_tokens, PROMISED_TOKENS) // top + 1) * top - 1


def _check(name: str, value: float, low: float, high: float | None) -> None:
    # Written so that NaN fails too.
    if not (value >= low and (high is None or value <= high)):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(f"{name} must be {limit}, got {value}")


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)
