"""Attention over slabs: a chunk of history segments, a chunk that sees all that precedes it, a batched decode step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.kv.slab import SlabPool
from mc_core.models.rotary import Rotation, rotate


def attend_slots(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention without copying a key.

    q [B, T, heads, D] rotated; keys, values [B, kv_heads, S, D]; mask additive, [B, T, S] or [B, heads, T, S]
    -> [B, T, heads, D]. The query heads of a group become further query rows of their key-value head.
    """
    batch, length, heads, dim = q.shape
    kv_heads, slots = keys.shape[1], keys.shape[2]
    groups = heads // kv_heads
    grouped = q.view(batch, length, kv_heads, groups, dim).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, groups * length, dim)
    if mask.dim() == 3:
        mask = mask[:, None, None].expand(batch, 1, groups, length, slots)
        mask = mask.reshape(batch, 1, groups * length, slots)
    else:
        mask = mask.reshape(batch, kv_heads, groups * length, slots)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    out = out.view(batch, kv_heads, groups, length, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, dim)


class SegmentAttention:
    """Encode whole history segments of one session: each unit sees its segment so far, and block 0."""

    def __init__(
        self, pool: SlabPool, row: int, slots: Tensor, place: Rotation, local: Rotation, mask: Tensor, first: Tensor
    ) -> None:
        """slots [T]; place, local [T, D/2]: where the units stand, where they are encoded; first: slots of block 0.

        mask [1, T, F + T] additive, over block 0's F units and then the chunk's own.
        """
        self.pool, self.row, self.slots, self.first = pool, row, slots, first
        self.place, self.local, self.mask = place, local, mask

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.pool.write(layer, self.row, self.slots, k[0], rotate(k, self.place)[0], v[0])
        own_k, own_v = rotate(k, self.local).transpose(1, 2), v.transpose(1, 2)
        # Block 0 stands where it was encoded under every policy, so its rotated keys serve as they are.
        first_k = self.pool.keys[layer, self.row].index_select(1, self.first)[None].to(q.dtype)
        first_v = self.pool.values[layer, self.row].index_select(1, self.first)[None].to(q.dtype)
        keys, values = torch.cat([first_k, own_k], dim=2), torch.cat([first_v, own_v], dim=2)
        return attend_slots(rotate(q, self.local), keys, values, self.mask)


class CausalAttention:
    """Compute units of one session that see every valid slot of lower rank, and themselves."""

    def __init__(self, pool: SlabPool, row: int, slots: Tensor, place: Rotation, mask: Tensor) -> None:
        """mask additive, [1, T, S] or [1, heads, T, S] over the first S slots of the slab."""
        self.pool, self.row, self.slots, self.place, self.mask = pool, row, slots, place, mask
        self.width = mask.shape[-1]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.pool.write(layer, self.row, self.slots, k[0], rotate(k, self.place)[0], v[0])
        keys = self.pool.keys[layer, self.row, :, : self.width][None].to(q.dtype)
        values = self.pool.values[layer, self.row, :, : self.width][None].to(q.dtype)
        return attend_slots(rotate(q, self.place), keys, values, self.mask)


class DecodeAttention:
    """One new token for each of B sessions, against their slabs.

    The slabs of rows ``low`` to ``high`` are read as one view, without a copy; a row in between that does not
    decode now costs its share of the arithmetic, and its result is dropped.
    """

    def __init__(self, pool: SlabPool, rows: Tensor, slots: Tensor, place: Rotation, mask: Tensor, low: int) -> None:
        """rows, slots [B]; place [B, 1, D/2]; mask additive [R, 1, S] or [R, heads, 1, S] for rows low .. low + R."""
        self.pool, self.rows, self.slots, self.place, self.mask = pool, rows, slots, place, mask
        self.low, self.high, self.width = low, low + mask.shape[0], mask.shape[-1]
        self.dense = mask.shape[0] == len(rows)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pool = self.pool
        turned = rotate(k, self.place)
        self._write(pool.keys[layer], turned)
        self._write(pool.values[layer], v)
        if pool.unrotated is not None:
            self._write(pool.unrotated[layer], k)
        keys = pool.keys[layer, self.low : self.high, :, : self.width].to(q.dtype)
        values = pool.values[layer, self.low : self.high, :, : self.width].to(q.dtype)
        query = rotate(q, self.place)
        if self.dense:
            return attend_slots(query, keys, values, self.mask)
        spread = query.new_zeros((self.high - self.low, *query.shape[1:]))
        spread[self.rows - self.low] = query
        return attend_slots(spread, keys, values, self.mask)[self.rows - self.low]

    def _write(self, slab: Tensor, units: Tensor) -> None:
        slab[self.rows, :, self.slots] = units[:, 0].to(slab.dtype)
