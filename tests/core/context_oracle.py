"""Working contexts, the slow and obvious way: the oracle of the context and allocator tests."""

from __future__ import annotations

from functools import cache

from mc_core.context.plan import Node
from mc_core.context.working_context import WorkingContext


def assert_laws(wc: WorkingContext, limit: int | None = None) -> None:
    """Entries are whole nodes that tile [0, N) in order within the budget; pins, tail and open block are raw.

    Where gists cost nothing, no K siblings among them stand together.
    """
    k, n = wc.block_size, wc.num_tokens
    at, cost = 0, 0
    tail = max(0, n - wc.recent_tokens) // k * k
    pins = [(0, k), *wc.protection.pins, *wc.protection.chosen]
    for level, index in nodes(wc):
        span = k ** max(level, 1)
        start, end = index * span, min((index + 1) * span, n)
        assert start == at, f"a gap or an overlap at token {at}"
        if level:
            assert end == (index + 1) * span, "an incomplete node"
            assert end <= tail, "a gist in the tail"
            assert not any(start < (-(-b // k) * k) and a // k * k < end for a, b in pins), "a gist over a pin"
        cost += wc.gist_cost if level else end - start
        at = end
    assert at == n
    assert cost == wc.cost <= (wc.budget if limit is None else limit)
    if not wc.gist_cost:
        standing = set(nodes(wc))
        assert standing == merged(standing, k)
    wc.check()


def merged(standing: set[Node], block_size: int) -> set[Node]:
    """The nodes once all siblings that are gists have given way to their parents, again and again."""
    while True:
        parents = {(level + 1, index // block_size) for level, index in standing if level}
        children = {(up, i): {(up - 1, i * block_size + child) for child in range(block_size)} for up, i in parents}
        whole = {node for node, below in children.items() if below <= standing}
        if not whole:
            return standing
        standing = standing.difference(*(children[node] for node in whole)) | whole


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
