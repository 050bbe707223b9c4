"""Decode steps of fixed shapes, which a GPU records once and replays (CUDA graphs).

A step of a small model is a thousand kernels, each of which takes the GPU less time than the host takes to launch it. A
recorded step is one launch. What it reads stands at fixed addresses: slabs and weights do anyway, and what is new of a
step (ids, places, rotations) is copied there. A step computes all rows of a range of slabs; what a row that does not
decode computes goes to a slot that nothing reads. Without a GPU the same code runs unrecorded, in tests.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from mc_core.kv.slab import SlabPool
from mc_core.kv.slot_attention import DecodeAttention
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import Rotation

logger = logging.getLogger(__name__)

WARM_UP = 3
"""Runs before a recording, in which libraries choose kernels and take their workspaces (as torch's notes ask for)."""


class StaticDecodes:
    """The steps recorded so far, one for each range of slabs: ranges are powers of two long, and start at multiples of
    that, so that there are few. They share the memory of what they compute in between."""

    def __init__(self, decoder: Decoder, pool: SlabPool) -> None:
        self._decoder, self._pool = decoder, pool
        self._steps: dict[tuple[int, int], StaticDecode] = {}
        self._memory = torch.cuda.graph_pool_handle() if pool.device.type == "cuda" else None
        self._broken = False

    def covering(self, low: int, high: int) -> StaticDecode | None:
        """The step of a range that holds the rows [low, high); None if it would compute more than twice as many."""
        size = 1
        while low // size != (high - 1) // size:
            size *= 2
        if size > 2 * (high - low) or self._broken:
            return None
        start = low // size * size
        end = min(start + size, self._pool.rows)
        if (start, end) not in self._steps:
            step = StaticDecode(self._decoder, self._pool, start, end)
            try:
                if self._memory is not None:
                    step.record(self._memory)
            except RuntimeError:
                # A kernel that can't be recorded costs speed, never a reply.
                logger.warning("decode steps can't be recorded on this GPU; they run unrecorded", exc_info=True)
                self._broken = True
                return None
            self._steps[start, end] = step
        return self._steps[start, end]


class StaticDecode:
    """One step of the slabs ``start`` to ``end``."""

    def __init__(self, decoder: Decoder, pool: SlabPool, start: int, end: int) -> None:
        self._decoder, self._pool, self.start, self.end = decoder, pool, start, end
        rows = torch.arange(start, end, device=pool.device)
        self._unread = pool.places(rows, torch.full_like(rows, pool.slots)).view(end - start, -1)
        self._ids = torch.zeros_like(rows)
        self._places = self._unread.clone()
        shape = (end - start, 1, pool.config.head_dim // 2)
        self._cos, self._sin = torch.ones(shape, device=pool.device), torch.zeros(shape, device=pool.device)
        self._hidden: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, rows: Tensor, slots: Tensor, ids: Tensor, place: Rotation) -> Tensor:
        """One token of each of B sessions: rows, slots, ids [B]; place [B, D/2] -> hidden states [B, d]."""
        at = rows - self.start
        self._ids.index_copy_(0, at, ids)
        self._places.copy_(self._unread).index_copy_(0, at, self._pool.places(rows, slots).view(len(rows), -1))
        self._cos.index_copy_(0, at, place[0][:, None])
        self._sin.index_copy_(0, at, place[1][:, None])
        if self._graph is None:
            hidden = self._compute()
        else:
            self._graph.replay()
            assert self._hidden is not None
            hidden = self._hidden
        return hidden.index_select(0, at)

    def record(self, memory: Any) -> None:
        """Have the GPU record the step; nothing of any slab that can be read changes. RuntimeError if it can't be.

        memory: of ``torch.cuda.graph_pool_handle``.
        """
        stream = torch.cuda.Stream(self._pool.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._pool.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._compute()
        torch.cuda.current_stream(self._pool.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Sessions are restored on other threads meanwhile; what they allocate is no part of this.
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self._hidden = self._compute()
        self._graph = graph

    def _compute(self) -> Tensor:
        pool = self._pool
        mask = pool.bias[self.start : self.end, None, :].to(self._decoder.dtype)
        attention = DecodeAttention(pool, self._places.flatten(), (self._cos, self._sin), mask, self.start)
        return self._decoder(self._decoder.embed(self._ids)[:, None], attention)[:, 0]
