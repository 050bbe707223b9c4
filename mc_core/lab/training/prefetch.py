"""Makes the batches of the next steps in other processes while the present one is learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
EACH = 4
"""Batches that a process makes ahead, at most."""


class _Numbered(Dataset[T], Generic[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> T:
        return self.make(number)


def prefetched(make: Callable[[int], T], first: int, end: int, workers: int) -> Iterator[T]:
    """``make(first)`` .. ``make(end - 1)`` in order, by ``workers`` processes; by this one if that is 0.

    What is made must depend on its number alone, so that the number of processes changes nothing. It must hold no
    tensors but on the CPU. Processes are forked: nothing is copied, and ``make`` may be any callable.
    """
    if workers == 0 or first >= end:
        yield from map(make, range(first, end))
        return
    loader: Any = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=range(first, end),
        num_workers=workers,
        prefetch_factor=EACH,
        collate_fn=_as_it_is,
        multiprocessing_context="fork",
        worker_init_fn=_started,
    )
    yield from loader


def _started(_: int) -> None:
    # Not by file descriptors, of which a process may have a thousand: a batch has up to thirty tensors.
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]


def _as_it_is(made: T) -> T:
    return made
