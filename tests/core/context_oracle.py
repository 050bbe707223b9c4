"""Working contexts, the slow and obvious way: the oracle of the context and allocator tests."""

from __future__ import annotations

from functools import cache

from mc_core.context.plan import Node
from mc_core.context.working_context import WorkingContext


def assert_laws(wc: WorkingContext, limit: int | None = None) -> None:
    """Entries are whole nodes that tile [0, N) in order within the budget; pins, tail and open block are raw."""
    k, n = wc.block_size, wc.num_tokens
    at, cost = 0, 0
    tail = max(0, n - wc.recent_tokens) // k * k
    pins = [(0, k), *wc.protection.pins]
    for level, index in nodes(wc):
        span = k ** max(level, 1)
        start, end = index * span, min((index + 1) * span, n)
        assert start == at, f"a gap or an overlap at token {at}"
        if level:
            assert end == (index + 1) * span, "an incomplete node"
            assert end <= tail, "a gist in the tail"
            assert not any(start < (-(-b // k) * k) and a // k * k < end for a, b in pins), "a gist over a pin"
        cost += 1 if level else end - start
        at = end
    assert at == n
    assert cost == wc.cost <= (wc.budget if limit is None else limit)
    wc.check()


def nodes(wc: WorkingContext) -> list[Node]:
    return list(zip(wc.levels.tolist(), wc.indices.tolist(), strict=True))


def least_nodes(start: int, end: int, block_size: int) -> int:
    """Fewest complete nodes that tile blocks [start, end), by dynamic programming."""

    @cache
    def best(at: int) -> int:
        if at == end:
            return 0
        options, width = [], 1
        while at % width == 0 and at + width <= end:
            options.append(1 + best(at + width))
            width *= block_size
        return min(options)

    return best(start)
