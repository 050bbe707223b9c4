"""Attention over slabs: a chunk of history segments, a chunk that sees all that precedes it, a batched decode step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.kv.attention_ledger import AttentionLedger
from mc_core.kv.slab import SlabPool
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.rotary import Rotation, rotate_wide, widen


def attend_slots(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention without copying a key.

    q [B, T, heads, D] rotated; keys, values [B, kv_heads, S, D]; mask as ``group_mask`` makes it -> [B, T, heads, D].
    The query heads of a group become further query rows of their key-value head.
    """
    batch, length, heads, dim = q.shape
    kv_heads = keys.shape[1]
    groups = heads // kv_heads
    if length == 1:
        out = F.scaled_dot_product_attention(q.view(batch, kv_heads, groups, dim), keys, values, attn_mask=mask)
        return out.reshape(batch, length, heads, dim)
    grouped = q.view(batch, length, kv_heads, groups, dim).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, groups * length, dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    out = out.view(batch, kv_heads, groups, length, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, length, heads, dim)


def group_mask(mask: Tensor, config: DecoderConfig) -> Tensor:
    """An additive mask [B, T, S] or [B, heads, T, S] over the query rows of ``attend_slots``; one serves all layers."""
    groups = config.num_heads // config.num_kv_heads
    if mask.dim() == 4:
        return mask.reshape(mask.shape[0], config.num_kv_heads, groups * mask.shape[2], mask.shape[3])
    return mask.repeat(1, groups, 1)[:, None]


class SegmentAttention:
    """Encode history segments of one session: each unit sees its segment so far, and block 0."""

    def __init__(
        self,
        pool: SlabPool,
        row: int,
        slots: Tensor,
        place: Rotation,
        local: Rotation,
        mask: Tensor,
        seen: Tensor,
        seen_local: Rotation | None,
    ) -> None:
        """slots [T]; place, local [T, D/2]: where the units stand, where they are encoded.

        seen, seen_local: slots [F] of block 0 and of what the slab has of the segments, and where those are encoded;
        None where that is where they stand. mask [1, T, F + T] additive, over these and then the chunk's own.
        """
        self.pool, self.row, self.slots, self.seen = pool, row, slots, seen
        self.place, self.local = widen(place, mask.dtype), widen(local, mask.dtype)
        self.seen_local = None if seen_local is None else widen(seen_local, mask.dtype)
        self.mask = group_mask(mask, pool.config)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.pool.write(layer, self.row, self.slots, k[0], rotate_wide(k, self.place)[0], v[0])
        seen_v = self.pool.values[layer, self.row].index_select(1, self.seen)[None].to(q.dtype)
        own_k, own_v = rotate_wide(k, self.local).transpose(1, 2), v.transpose(1, 2)
        keys, values = torch.cat([self._seen_keys(layer, q.dtype), own_k], dim=2), torch.cat([seen_v, own_v], dim=2)
        return attend_slots(rotate_wide(q, self.local), keys, values, self.mask)

    def _seen_keys(self, layer: int, dtype: torch.dtype) -> Tensor:
        """[1, kv_heads, F, D], turned to where they were encoded."""
        slab = self.pool.unrotated if self.seen_local is not None else self.pool.keys
        assert slab is not None
        keys = slab[layer, self.row].index_select(1, self.seen).to(dtype)
        if self.seen_local is None:
            return keys[None]
        return rotate_wide(keys.transpose(0, 1), self.seen_local).transpose(0, 1)[None]


class CausalAttention:
    """Compute units of one session that see every valid slot of lower rank, and themselves."""

    def __init__(
        self,
        pool: SlabPool,
        row: int,
        slots: Tensor,
        place: Rotation,
        mask: Tensor,
        ledger: AttentionLedger | None = None,
    ) -> None:
        """mask additive, [1, T, S] or [1, heads, T, S] over the first S slots of the slab. ledger: for what the last
        unit pays."""
        self.length, self.ledger = len(slots), ledger
        self.pool, self.row, self.slots, self.width = pool, row, slots, mask.shape[-1]
        self.place, self.mask = widen(place, mask.dtype), group_mask(mask, pool.config)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.pool.write(layer, self.row, self.slots, k[0], rotate_wide(k, self.place)[0], v[0])
        keys = self.pool.keys[layer, self.row, :, : self.width][None].to(q.dtype)
        values = self.pool.values[layer, self.row, :, : self.width][None].to(q.dtype)
        query = rotate_wide(q, self.place)
        if self.ledger is not None:
            self.ledger.note(layer, query[0, -1], keys[0], self.mask[0, :, self.length - 1 :: self.length])
        return attend_slots(query, keys, values, self.mask)


class DecodeAttention:
    """One new token for each of B sessions, against their slabs.

    The slabs of rows ``low`` to ``high`` are read as one view, without a copy; a row in between that does not
    decode now costs its share of the arithmetic, and its result is dropped.
    """

    def __init__(
        self,
        pool: SlabPool,
        places: Tensor,
        place: Rotation,
        mask: Tensor,
        low: int,
        rows: Tensor | None = None,
        ledgers: Sequence[tuple[int, int, AttentionLedger]] = (),
    ) -> None:
        """places: where the tokens go, of ``SlabPool.places``; place [B, 1, D/2]; mask additive [R, 1, S] or
        [R, heads, 1, S] for the slabs low .. low + R; rows [B]: which of these decode, None = all of them.
        ledgers: of some sessions, with their place among the B, and their row behind ``low``."""
        self.ledgers = ledgers
        self.pool, self.low, self.high = pool, low, low + mask.shape[0]
        seen = (slice(None), slice(self.low, self.high), slice(None), slice(mask.shape[-1]))
        self.keys, self.values = pool.keys[seen].unbind(0), pool.values[seen].unbind(0)
        self.place, self.mask = widen(place, mask.dtype), group_mask(mask, pool.config)
        self.rows, self.places = rows, places

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.pool.write_places(layer, self.places, k, rotate_wide(k, self.place), v)
        keys, values = self.keys[layer].to(q.dtype), self.values[layer].to(q.dtype)
        query = rotate_wide(q, self.place)
        for place, row, ledger in self.ledgers:
            ledger.note(layer, query[place, 0], keys[row], self.mask[row])
        if self.rows is None:
            return attend_slots(query, keys, values, self.mask)
        spread = query.new_zeros((self.high - self.low, *query.shape[1:]))
        spread[self.rows] = query
        return attend_slots(spread, keys, values, self.mask)[self.rows]
