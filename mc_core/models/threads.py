"""Threads of the CPU: while an engine runs, its thread alone may keep a team of them.

torch computes with OpenMP, whose library (libgomp) gives every thread that computes a team of its own, which stays as
long as that thread does. When all teams together have more threads than the machine has cores, members that wait for
work go to sleep at once, and waking them costs each of a step's hundreds of small products 50 to 100 us: SmolLM2 in
int8 on two cores took 41 ms a token behind a thread that had loaded it, and 29 ms without.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def aside(work: Callable[[], T]) -> T:
    """Compute in a thread that ends with it, and its team too; what it raises is raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="aside") as thread:
        return thread.submit(copy_context().run, work).result()
