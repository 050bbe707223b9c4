"""What this CPU is fast with, found by trial in a fraction of a second: the type of weights, and how many threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.models.linear import Int8Linear, Int8Weight, check_weights

SHAPE = (1536, 576)
"""Outputs and inputs of a layer on trial: of a small model, where a kernel's own cost weighs most."""
LAYERS = 48
"""Together larger than most caches, in int8 too (42 MB), as a model's are: a step waits for memory, of which int8
needs less."""
ROWS = (1, 64)
"""Of a decode step, and of a prefill."""
Layers = Sequence[nn.Module]
GAIN = 1.3
"""How much faster int8 must be, at either number of rows, to be worth what it loses."""


@cache
def choose_weights() -> torch.dtype:
    """``torch.int8`` where this CPU's kernels gain enough by it, else ``torch.float32``.

    One thread tells: several wait for each other where something else has a core, and that at random.
    """
    try:
        check_weights(torch.int8, "cpu")
        layers = float_layers(), int8_layers()
    except ConfigError:
        return torch.float32
    with torch.inference_mode():
        inputs = [torch.randn(rows, SHAPE[1]) for rows in ROWS]
        wide, narrow = (_with_threads(1, each, inputs) for each in layers)
    gains = [slow / fast for slow, fast in zip(wide, narrow, strict=True)]
    return torch.int8 if min(gains) >= GAIN else torch.float32


@cache
def choose_threads(weights: torch.dtype, most: int) -> int:
    """Of ``most`` threads, a half of them, a quarter, ..: the number that is fastest through a step and a prefill.

    Leaves torch's number as it was.
    """
    if most == 1:
        return 1
    layers: Layers = int8_layers() if weights == torch.int8 else float_layers()
    counts = [most >> shift for shift in range(most.bit_length())]
    with torch.inference_mode():
        inputs = [torch.randn(rows, SHAPE[1]) for rows in ROWS]
        took = [_with_threads(count, layers, inputs) for count in counts]
    # A step that all counts take is worth the same whether it is of one row or of many.
    totals = [sum(mine / first for mine, first in zip(times, took[0], strict=True)) for times in took]
    return counts[totals.index(min(totals))]


def float_layers() -> Layers:
    """The layers on trial in float32."""
    return [nn.Linear(SHAPE[1], SHAPE[0], bias=False) for _ in range(LAYERS)]


def int8_layers() -> Layers:
    """The same in int8."""
    weight = Int8Weight.of(torch.randn(SHAPE))
    return [Int8Linear([weight]) for _ in range(LAYERS)]  # each packs a copy


def seconds(layers: Layers, x: Tensor, repeats: int = 5) -> float:
    """The least that a call of all takes: whatever else runs on the machine only adds to it."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for layer in layers:
            layer(x)
        times.append(time.perf_counter() - started)
    return min(times)


def _with_threads(count: int, layers: Layers, inputs: Sequence[Tensor]) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return [seconds(layers, x) for x in inputs]
    finally:
        torch.set_num_threads(before)
