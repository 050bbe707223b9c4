"""KV memory: every active session owns one slab of a fixed number of slots, and never more.

A slab's slots are in no order: a unit's place in the sequence lives in its rotated key. So an edit frees the slots
of what goes and fills free ones, and decode is one shape whatever the history's length.
"""

from __future__ import annotations

import heapq
import math
import mmap

import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.decoder_config import DecoderConfig


class SlabPool:
    """Slabs for ``rows`` sessions of ``slots`` slots each.

    keys and values [layers, rows, kv_heads, slots, head_dim]; keys are rotated for their present place.
    unrotated: the same keys before rotation, kept only when places move (``keep_unrotated``).
    spare: behind the slots, a slot of each slab that nothing reads (``static_decode``).
    bias [rows, slots]: 0 where a slot is valid, -inf elsewhere. positions [rows, slots]: for distance biases.
    """

    def __init__(
        self,
        config: DecoderConfig,
        rows: int,
        slots: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        keep_unrotated: bool = True,
        spare: bool = False,
    ) -> None:
        if rows < 1 or slots < 1:
            raise ConfigError(f"a slab pool needs rows >= 1 and slots >= 1, got {rows} and {slots}")
        self._stride = slots + spare
        shape = (config.num_layers, rows, config.num_kv_heads, self._stride, config.head_dim)
        self.config, self.rows, self.slots = config, rows, slots
        self.device, self.dtype = torch.device(device), dtype
        self.keys = _zeros(shape, self.device, dtype)
        self.values = _zeros(shape, self.device, dtype)
        self.unrotated = _zeros(shape, self.device, dtype) if keep_unrotated else None
        kept = [slab for slab in (self.keys, self.values, self.unrotated) if slab is not None]
        self._flat = [slab.view(config.num_layers, -1, config.head_dim).unbind(0) for slab in kept]
        self.bias = torch.full((rows, slots), -torch.inf, device=device, dtype=dtype)
        self.positions = torch.zeros((rows, slots), device=device, dtype=torch.float64)
        # The lowest free row first: rows that decode together stay neighbours, so a batch is one view.
        self._free = list(range(rows))

    @property
    def free_rows(self) -> int:
        return len(self._free)

    def acquire(self) -> int | None:
        """A free row, or None when all are taken."""
        return heapq.heappop(self._free) if self._free else None

    def release(self, row: int) -> None:
        """Give a row back; nothing of it can be attended to any more."""
        if row in self._free or not 0 <= row < self.rows:
            raise ValueError(f"row {row} is not in use")
        self.bias[row] = -torch.inf
        heapq.heappush(self._free, row)

    def write(self, layer: int, row: int, slots: Tensor, k: Tensor, rotated: Tensor, v: Tensor) -> None:
        """Store units of one session: k, rotated, v [T, kv_heads, head_dim] into ``slots`` [T]."""
        self.keys[layer, row].index_copy_(1, slots, rotated.transpose(0, 1).to(self.dtype))
        self.values[layer, row].index_copy_(1, slots, v.transpose(0, 1).to(self.dtype))
        if self.unrotated is not None:
            self.unrotated[layer, row].index_copy_(1, slots, k.transpose(0, 1).to(self.dtype))

    def read(self, row: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, not rotated where places move, and values of units [T] of one session: copies in host memory,
        [layers, kv_heads, T, head_dim] each. On a GPU they come in the stream's order, and nobody waits for them."""
        keys = self.keys if self.unrotated is None else self.unrotated
        return _to_host(keys[:, row].index_select(2, slots)), _to_host(self.values[:, row].index_select(2, slots))

    def read_layer(self, layer: int, row: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one layer, [kv_heads, T, head_dim] each, once they are there."""
        keys = self.keys if self.unrotated is None else self.unrotated
        return keys[layer, row].index_select(1, slots).cpu(), self.values[layer, row].index_select(1, slots).cpu()

    def put_back(self, row: int, slots: Tensor, keys: Tensor, values: Tensor, part: slice) -> None:
        """Store a part of what ``read`` gave; keys that are to be rotated are not yet.

        The part is cut out on the device: the host must not touch what may be on its way there yet.
        """
        into = self.keys if self.unrotated is None else self.unrotated
        into[:, row].index_copy_(2, slots, keys.to(self.device, non_blocking=True)[:, :, part])
        self.values[:, row].index_copy_(2, slots, values.to(self.device, non_blocking=True)[:, :, part])

    def copy(self, row: int, into: int, slots: Tensor) -> None:
        """Store units [T] of one session in the same slots of another one's slab, layer by layer."""
        for slab in (self.keys, self.values, self.unrotated):
            for layer in slab if slab is not None else ():
                layer[into].index_copy_(1, slots, layer[row].index_select(1, slots))

    def places(self, rows: Tensor, slots: Tensor) -> Tensor:
        """Where one unit of each of B sessions stands in a layer: row and slot [B] -> [B * kv_heads]."""
        heads = torch.arange(self.config.num_kv_heads, device=self.device)
        return ((rows[:, None] * self.config.num_kv_heads + heads) * self._stride + slots[:, None]).flatten()

    def write_places(self, layer: int, places: Tensor, k: Tensor, rotated: Tensor, v: Tensor) -> None:
        """Store one unit of each of B sessions: k, rotated, v [B, 1, kv_heads, head_dim] into ``places``."""
        pairs = zip(self._flat, (rotated, v, k), strict=False)
        for slab, units in pairs:
            flat = slab[layer]
            flat.index_copy_(0, places, units.reshape(-1, flat.shape[-1]).to(self.dtype))

    def bytes(self) -> int:
        """Memory of all slabs."""
        parts = [self.keys, self.values, self.bias, self.positions]
        if self.unrotated is not None:
            parts.append(self.unrotated)
        return sum(part.nbytes for part in parts)


def _to_host(x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """On the CPU the system gives a page of memory when it is first written: slabs that no session had cost none.

    The pages are private where that can be asked for: shared ones would be given to what only reads them, too.
    """
    if device.type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, device=device, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
