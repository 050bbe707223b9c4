"""Builds several trees at once, for training batches, on a bounded pool of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mc_core.errors import ConfigError
from mc_core.tree.ids import Ids
from mc_core.tree.tree import MegaContextTree


class TreeBuilder:
    """``workers`` threads at most; the result is the same as building one after the other."""

    def __init__(self, make: Callable[[], MegaContextTree], workers: int = 1) -> None:
        """make: an empty tree. Its networks are shared by the threads, so they must be in eval mode."""
        if workers < 1:
            raise ConfigError(f"workers must be at least 1, got {workers}")
        self._make, self.workers = make, workers

    def build(self, histories: Sequence[Ids]) -> list[MegaContextTree]:
        """One tree a history, in order. An error of any of them is raised once the others are done."""
        if self.workers == 1 or len(histories) < 2:
            return [self._build(ids) for ids in histories]
        with ThreadPoolExecutor(min(self.workers, len(histories)), "tree-builder") as pool:
            return list(pool.map(self._build, histories))

    def _build(self, ids: Ids) -> MegaContextTree:
        tree = self._make()
        tree.append(ids)
        return tree
