"""The keys and values of one active session: what is cached, repair to a new layout, and room for decoded tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import MegaContextError
from mc_core.kv.attention_ledger import AttentionLedger
from mc_core.kv.layout import LEVEL_SHIFT, Layout
from mc_core.kv.recent import Kept, Shelf, segments_of
from mc_core.kv.repair import Cached, Chunk, RepairMode, RepairPlan, plan_repair
from mc_core.kv.slab import SlabPool
from mc_core.kv.slot_attention import CausalAttention, DecodeAttention, SegmentAttention
from mc_core.kv.static_decode import StaticDecodes
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import Rotary, Rotation, turn
from mc_core.positions.policies import Policy

WIDTH_STEP = 64
"""Attention reads a slab up to its highest used slot, rounded up to this, so that shapes repeat."""


@dataclass(frozen=True)
class KVModel:
    """What computing keys and values needs, the same for all sessions. static: for decode steps of fixed shapes."""

    decoder: Decoder
    rotary: Rotary
    policy: Policy
    pool: SlabPool
    mode: RepairMode
    chunk_tokens: int = 256
    static: StaticDecodes | None = None

    def rotation(
        self,
        levels: NDArray[np.int8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        ranks: NDArray[np.int64],
    ) -> Rotation:
        """(cos, sin) [T, head_dim / 2] of units by the position policy."""
        positions, sigma, turns = self.policy.placement(levels, starts, ends, ranks)
        device = self.pool.device
        return self.rotary.table(
            torch.from_numpy(positions).to(device),
            torch.from_numpy(sigma).to(device) if sigma.any() else None,
            torch.from_numpy(turns).to(device) if self.rotary.level_channels else None,
        )

    def positions(
        self,
        levels: NDArray[np.int8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        ranks: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Positions of units, for biases that fall with distance."""
        return self.policy.placement(levels, starts, ends, ranks)[0]


class ChangedError(MegaContextError):
    """A slab was changed while it was copied."""


@dataclass(frozen=True)
class Units:
    """What a slab knows of its units, in rank order: in which slot each is, what it stands for (see ``Layout``), and
    whether it is exact. All [n], int64."""

    slots: NDArray[np.int64]
    identity: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    entry: NDArray[np.int64]
    segment_start: NDArray[np.int64]
    exact: NDArray[np.int64]

    @property
    def levels(self) -> NDArray[np.int8]:
        return (self.identity >> LEVEL_SHIFT).astype(np.int8)

    def before(self, position: int) -> Units:
        """Those that stay if the history is cut at ``position``."""
        keep = _before(position, self.ends, self.identity, self.entry)
        return Units(*(getattr(self, each.name)[:keep] for each in fields(self)))


def _before(position: int, ends: NDArray[np.int64], identity: NDArray[np.int64], entry: NDArray[np.int64]) -> int:
    """How many units, in rank order, stay if the history is cut at ``position``."""
    # All behind the first of them goes too: what is read last of all before a question may be old.
    later = np.flatnonzero(ends > position)
    keep = int(later[0]) if len(later) else len(ends)
    if keep < len(ends) and identity[keep] >> LEVEL_SHIFT:
        # Of a gist that is cut all vectors go, those of its part before the cut too.
        keep = int(np.argmax(entry == entry[keep]))
    return keep


@dataclass(frozen=True)
class Left:
    """What a slab still holds of the session that had it before: units, and the numbers of its history's blocks then
    (``session/trail.py``)."""

    tenant: str
    blocks: NDArray[np.int64]
    units: Units


class SessionKV:
    """One slab row. Call ``begin`` with a new layout, then ``run`` on each chunk in order; then decode.

    shelf: takes the history that leaves the slab, and gives it back; None = nothing is kept. ``version``: another one
    with each change; ``saved``: the one that a file has. ``filling``: another thread writes into the slab. ``left``:
    until something is written into it.
    """

    def __init__(self, model: KVModel, row: int, shelf: Shelf | None = None) -> None:
        self.model, self.row, self._shelf = model, row, shelf
        slots = model.pool.slots
        self._identity = np.zeros(slots, np.int64)
        self._starts = np.zeros(slots, np.int64)
        self._ends = np.zeros(slots, np.int64)
        self._entry = np.full(slots, -1, np.int64)
        self._segment_start = np.full(slots, -1, np.int64)
        self._computed = np.zeros(slots, bool)
        self._exact = np.zeros(slots, bool)
        self._slot = np.zeros(slots, np.int64)
        self._free = np.ones(slots, bool)
        self._rank_of_slot = np.full(slots, -1, np.int64)
        self._n = self.version = 0
        self.saved: int | None = None
        self.filling = False
        self.left: Left | None = None
        self._layout: Layout | None = None
        self._approximate = 0
        self._ledger: AttentionLedger | None = None
        self._for_reply = False  # whether a reply is drawn from the last unit of the layout

    def __len__(self) -> int:
        """Units in the slab, computed or about to be."""
        return self._n

    @property
    def room(self) -> int:
        """Slots that are free."""
        return self.model.pool.slots - self._n

    def raw_starts(self) -> NDArray[np.int64]:
        """Places in the history of the units that are tokens of it, in rank order."""
        return self._starts[: self._n][self._identity[: self._n] >> LEVEL_SHIFT == 0]

    @property
    def width(self) -> int:
        """Slots that attention has to read."""
        used = np.flatnonzero(~self._free)
        return self._rounded(int(used[-1]) + 1 if len(used) else 1)

    def _rounded(self, width: int) -> int:
        return min(self.model.pool.slots, -(-width // WIDTH_STEP) * WIDTH_STEP)

    def cached(self) -> Cached:
        n = self._n
        return Cached(
            self._identity[:n],
            self._segment_start[:n],
            self._computed[:n],
            self._exact[:n],
        )

    def begin(self, layout: Layout, *, need_last: bool, refresh: bool = False) -> RepairPlan:
        """Plan the repair to ``layout``, free what goes, move what stays, and reserve slots for what comes.

        ``block`` repair of a base that was trained with the block mask is always exact, as with ``refresh``.
        """
        model = self.model
        self.version += 1
        self.left = None
        self._settle()
        self._for_reply = need_last
        plan = plan_repair(
            model.mode,
            self.cached(),
            layout,
            chunk_tokens=model.chunk_tokens,
            need_last=need_last,
            refresh=refresh or (model.mode == "block" and model.decoder.config.block_mask),
            held=None if self._shelf is None else self._shelf.held(layout.identity, layout.segment_start),
        )
        # Taken out first: what is put in may push out what is wanted.
        taken = self._take(layout, plan.restored)
        self._keep_all_but(plan.kept_old)
        n, kept_slots = len(layout), self._slot[plan.kept_old]
        exact = self._exact[plan.kept_old] & (plan.kept_new < plan.approximate)
        dropped = np.setdiff1d(self._slot[: self._n], kept_slots)
        self._free[:] = True
        self._free[kept_slots] = False
        missing = np.ones(n, bool)
        missing[plan.kept_new] = False
        fresh = np.flatnonzero(self._free)[: int(missing.sum())]
        slot = np.empty(n, np.int64)
        slot[plan.kept_new], slot[missing] = kept_slots, fresh
        self._free[fresh] = False
        self._slot[:n] = slot
        self._identity[:n], self._starts[:n], self._ends[:n] = layout.identity, layout.starts, layout.ends
        self._entry[:n], self._segment_start[:n] = layout.entry, layout.segment_start
        self._computed[:n] = ~missing
        self._exact[:n] = False
        self._exact[plan.kept_new] = exact
        self._n, self._layout, self._approximate = n, layout, plan.approximate
        self._rank_of_slot[:] = -1
        self._rank_of_slot[kept_slots] = plan.kept_new
        self._invalidate(np.union1d(dropped, fresh))
        self._bring_back(layout, plan.restored, taken)
        moved = np.union1d(plan.kept_new[plan.kept_old != plan.kept_new], plan.restored)
        if len(moved) and not self.model.policy.absolute:
            levels, starts, ends = layout.levels[moved], layout.starts[moved], layout.ends[moved]
            self._turn_to_place(self._slot[moved], levels, starts, ends, moved)
        return plan

    def run(self, chunk: Chunk, embeddings: Tensor) -> Tensor:
        """Compute the units of a chunk from their input embeddings [T, d] -> final hidden states [T, d]."""
        assert self._layout is not None
        self.version += 1
        layout, ranks, model = self._layout, chunk.ranks, self.model
        slots = torch.from_numpy(self._slot[ranks]).to(model.pool.device)
        place = model.rotation(layout.levels[ranks], layout.starts[ranks], layout.ends[ranks], ranks)
        self._rank_of_slot[self._slot[ranks]] = ranks
        if model.policy.has_bias:
            positions = model.positions(layout.levels[ranks], layout.starts[ranks], layout.ends[ranks], ranks)
            model.pool.positions[self.row, slots] = torch.from_numpy(positions).to(model.pool.device)
        attention: SegmentAttention | CausalAttention
        if chunk.kind == "segment":
            attention = self._segment_attention(layout, ranks, slots, place)
        else:
            attention = self._causal_attention(ranks, slots, place)
        hidden = model.decoder(embeddings[None], attention)[0]
        model.pool.bias[self.row, slots] = 0.0
        self._computed[ranks] = True
        self._exact[ranks] = ranks < self._approximate
        if chunk.kind == "segment":
            self._exact[ranks] = True
        return hidden

    def append(self, token_index: int) -> tuple[int, int]:
        """Make room for one decoded token of the tail -> (slot, rank)."""
        if self._n >= self.model.pool.slots:
            raise ValueError(f"the slab's {self.model.pool.slots} slots are full; a refocus is due")
        self.version += 1
        rank, slot = self._n, int(np.argmax(self._free))
        self._free[slot] = False
        self._slot[rank], self._rank_of_slot[slot] = slot, rank
        self._identity[rank], self._starts[rank], self._ends[rank] = token_index, token_index, token_index + 1
        self._entry[rank] = self._segment_start[rank] = -1
        self._computed[rank] = True
        self._exact[rank] = rank == 0 or self._exact[rank - 1]
        self._n += 1
        return slot, rank

    def read_on(self, token_index: int, embeddings: Tensor) -> Tensor:
        """Read tokens of the tail at once, from ``token_index`` of the history on, by their input embeddings [T, d] ->
        final hidden states [T, d]. If it fails, ``rewind`` takes it back."""
        model, count = self.model, len(embeddings)
        first = self._n
        for index in range(token_index, token_index + count):
            self.append(index)
        ranks = np.arange(first, self._n)
        slots = torch.from_numpy(self._slot[ranks]).to(model.pool.device)
        levels, starts, ends = np.zeros(count, np.int8), self._starts[ranks], self._ends[ranks]
        if model.policy.has_bias:
            positions = model.positions(levels, starts, ends, ranks)
            model.pool.positions[self.row, slots] = torch.from_numpy(positions).to(model.pool.device)
        attention = self._causal_attention(ranks, slots, model.rotation(levels, starts, ends, ranks))
        hidden = model.decoder(embeddings[None], attention)[0]
        model.pool.bias[self.row, slots] = 0.0
        return hidden

    def rewind(self, position: int) -> None:
        """Forget every unit that covers tokens at or after ``position``: those tokens may come back different."""
        self._settle()
        n = self._n
        keep = _before(position, self._ends[:n], self._identity[:n], self._entry[:n])
        if keep == n:
            return
        self.version += 1
        gone = self._slot[keep : self._n]
        self._free[gone] = True
        self._rank_of_slot[gone] = -1
        self._invalidate(gone)
        self._n = keep

    def measure(self) -> None:
        """Sum up from now on what the tokens of a reply pay the units that they see."""
        config, pool = self.model.decoder.config, self.model.pool
        self._ledger = AttentionLedger(config.num_layers, pool.slots, pool.device)

    @property
    def ledger(self) -> AttentionLedger | None:
        """Where that is noted, if it is."""
        return self._ledger

    def measured(self) -> AttentionLedger | None:
        """What was summed up; from now on nothing is."""
        self._settle()
        ledger, self._ledger = self._ledger, None
        return ledger

    def _settle(self) -> None:
        if self._ledger is not None:
            self._ledger.settle(self._identity[: self._n], self._slot[: self._n])

    def release(self, *, keep: bool = False) -> None:
        """Give the slab back. keep: the session will go on with another one."""
        self.version += 1
        self._ledger = None
        if keep:
            self._keep_all_but(np.empty(0, np.int64))
        self.model.pool.release(self.row)

    def units(self) -> Units | None:
        """A copy of what is known of the units, None if some are not computed."""
        return self._units(self._n) if self._computed[: self._n].all() else None

    def computed_units(self) -> Units:
        """The same of those before the first that is not computed."""
        return self._units(int(np.argmin(np.append(self._computed[: self._n], False))))

    def _units(self, n: int) -> Units:
        columns = (self._slot, self._identity, self._starts, self._ends, self._entry, self._segment_start, self._exact)
        return Units(*(column[:n].astype(np.int64) for column in columns))

    def copy(self, units: Units, version: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys, not rotated where places move, and values of the units of each layer, [kv_heads, n, head_dim] each, in
        host memory. For any thread: ChangedError if they are not those of ``version`` any more."""
        pool = self.model.pool
        slots = torch.from_numpy(units.slots).to(pool.device)
        for layer in range(pool.config.num_layers):
            both = pool.read_layer(layer, self.row, slots)
            if self.version != version:
                raise ChangedError("the slab was changed meanwhile")
            yield both

    def fill(self, units: Units, keys: Tensor, values: Tensor) -> None:
        """Be as the slab was of which ``units`` and ``copy`` told; for an empty slab, and any thread.

        keys, values: of all layers, [layers, kv_heads, n, head_dim].
        """
        self.left = None
        pool, every = self.model.pool, np.arange(len(units.slots))
        pool.put_back(self.row, torch.from_numpy(units.slots).to(pool.device), keys, values, slice(None))
        if pool.unrotated is not None:
            self._turn_to_place(units.slots, units.levels, units.starts, units.ends, every)
        self._hold(units)

    def share(self, units: Units, row: int) -> None:
        """Begin as the slab in ``row``, whose first units these are; for an empty slab, also of that row."""
        pool = self.model.pool
        self.left = None
        if row != self.row:
            pool.copy(row, self.row, torch.from_numpy(units.slots).to(pool.device))
        self._hold(units)

    def _hold(self, units: Units) -> None:
        """Know what the slab's slots have been filled with."""
        pool, n, every = self.model.pool, len(units.slots), np.arange(len(units.slots))
        self.version += 1
        slots = torch.from_numpy(units.slots).to(pool.device)
        if self.model.policy.has_bias:
            at = self.model.positions(units.levels, units.starts, units.ends, every)
            pool.positions[self.row, slots] = torch.from_numpy(at).to(pool.device)
        self._slot[:n], self._identity[:n], self._entry[:n] = units.slots, units.identity, units.entry
        self._starts[:n], self._ends[:n] = units.starts, units.ends
        self._segment_start[:n], self._exact[:n], self._computed[:n] = units.segment_start, units.exact, True
        self._free[units.slots], self._rank_of_slot[units.slots], self._n = False, every, n
        pool.bias[self.row, slots] = 0.0

    def _keep_all_but(self, staying: NDArray[np.int64]) -> None:
        """Put the history that leaves the slab on the shelf: of each segment, all that is computed."""
        if self._shelf is None:
            return
        pool, computed = self.model.pool, self._computed[: self._n]
        leaving = computed.copy()
        leaving[staying] = False
        for name, low, high in segments_of(self._identity[: self._n], self._segment_start[: self._n]):
            if leaving[low:high].any():
                high = low + int(np.count_nonzero(computed[low:high]))
                slots = torch.from_numpy(self._slot[low:high]).to(pool.device)
                self._shelf.put(name, Kept(*pool.read(self.row, slots), end=int(self._ends[high - 1])))

    def _take(self, layout: Layout, ranks: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Kept, slice]]:
        """Take units from the shelf -> of each segment its ranks, and what part they are of what was kept."""
        taken = []
        if self._shelf is not None and len(ranks):
            for name, low, high in segments_of(layout.identity, layout.segment_start):
                own = ranks[np.searchsorted(ranks, low) : np.searchsorted(ranks, high)]
                if len(own):
                    part = slice(int(own[0]) - low, int(own[-1]) + 1 - low)
                    taken.append((own, self._shelf.take(name, high - low), part))
        return taken

    def _bring_back(
        self, layout: Layout, ranks: NDArray[np.int64], taken: Sequence[tuple[NDArray[np.int64], Kept, slice]]
    ) -> None:
        """Put units into the slots that are reserved for them; their keys are to be turned to place yet."""
        if not len(ranks):
            return
        pool = self.model.pool
        for own, kept, part in taken:
            slots = torch.from_numpy(self._slot[own]).to(pool.device)
            pool.put_back(self.row, slots, kept.keys, kept.values, part)
        slots = torch.from_numpy(self._slot[ranks]).to(pool.device)
        if self.model.policy.has_bias:
            at = self.model.positions(layout.levels[ranks], layout.starts[ranks], layout.ends[ranks], ranks)
            pool.positions[self.row, slots] = torch.from_numpy(at).to(pool.device)
        pool.bias[self.row, slots] = 0.0
        self._rank_of_slot[self._slot[ranks]] = ranks
        self._computed[ranks] = self._exact[ranks] = True

    def _invalidate(self, slots: NDArray[np.int64]) -> None:
        if len(slots):
            self.model.pool.bias[self.row, torch.from_numpy(slots).to(self.model.pool.device)] = -torch.inf

    def _turn_to_place(
        self,
        slot: NDArray[np.int64],
        levels: NDArray[np.int8],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        ranks: NDArray[np.int64],
    ) -> None:
        """Rotate kept keys to their new places, from the unrotated copy: no error adds up over many moves."""
        pool = self.model.pool
        assert pool.unrotated is not None
        slots = torch.from_numpy(slot).to(pool.device)
        place = self.model.rotation(levels, starts, ends, ranks)
        source = pool.unrotated[:, self.row].index_select(2, slots)
        pool.keys[:, self.row].index_copy_(2, slots, turn(source, place))

    def _segment_attention(
        self, layout: Layout, ranks: NDArray[np.int64], slots: Tensor, place: Rotation
    ) -> SegmentAttention:
        model, segment = self.model, layout.segment_start
        device, dtype = model.pool.device, model.decoder.dtype
        # Block 0, and what is there already of the segments that are to be completed.
        there = self._computed[: self._n] & ((segment == 0) | np.isin(segment, segment[ranks]))
        there[ranks] = False
        seen = np.flatnonzero(there)
        keys = np.concatenate([seen, ranks])
        own_or_first = (segment[keys] == segment[ranks][:, None]) | (segment[keys] == 0)
        mask = self._additive(own_or_first & (keys <= ranks[:, None]), dtype)
        if model.policy.has_bias:
            mask = mask[:, None] + self._distance_bias(layout, ranks, keys, dtype)
        local = seen_local = None
        if not model.policy.absolute:
            local = model.rotary.table(torch.from_numpy(layout.local[ranks]).to(device))
            seen_local = model.rotary.table(torch.from_numpy(layout.local[seen]).to(device))
        seen_slots = torch.from_numpy(self._slot[seen]).to(device)
        return SegmentAttention(model.pool, self.row, slots, place, local or place, mask, seen_slots, seen_local)

    def _causal_attention(self, ranks: NDArray[np.int64], slots: Tensor, place: Rotation) -> CausalAttention:
        model, seen = self.model, (self._rank_of_slot >= 0) & (self._rank_of_slot <= ranks[-1])
        # No further than the highest slot that is seen: a repair from scratch fills slots in order.
        width = self._rounded(int(np.flatnonzero(seen)[-1]) + 1)
        rank_of_slot = self._rank_of_slot[:width]
        visible = seen[:width] & (rank_of_slot <= ranks[:, None])
        mask = self._additive(visible, model.decoder.dtype)
        if model.policy.has_bias:
            at_slots = model.pool.positions[self.row]
            mask = mask[:, None] + model.policy.bias(at_slots[slots], at_slots[:width]).to(mask.dtype)
        drawn = self._for_reply and ranks[-1] == self._n - 1
        return CausalAttention(model.pool, self.row, slots, place, mask, self._ledger if drawn else None)

    def _distance_bias(
        self, layout: Layout, queries: NDArray[np.int64], keys: NDArray[np.int64], dtype: torch.dtype
    ) -> Tensor:
        def positions(ranks: NDArray[np.int64]) -> Tensor:
            at = self.model.positions(layout.levels[ranks], layout.starts[ranks], layout.ends[ranks], ranks)
            return torch.from_numpy(at).to(self.model.pool.device)

        return self.model.policy.bias(positions(queries), positions(keys)).to(dtype)

    def _additive(self, visible: NDArray[np.bool_], dtype: torch.dtype) -> Tensor:
        """[T, S] bool -> [1, T, S], 0 or -inf."""
        mask = torch.zeros(visible.shape, dtype=dtype, device=self.model.pool.device)
        return mask.masked_fill_(torch.from_numpy(~visible).to(mask.device), -torch.inf)[None]


def decode_step(model: KVModel, sessions: list[SessionKV], token_indices: list[int], ids: Tensor) -> Tensor:
    """Read one token of each session (``ids`` [B], at ``token_indices`` of its history) -> hidden states [B, d].

    Sessions may come in any order; the result is in theirs. If it fails, ``rewind`` takes it back.
    """
    pool, device = model.pool, model.pool.device
    order = sorted(range(len(sessions)), key=lambda i: sessions[i].row)
    places = [sessions[i].append(token_indices[i]) for i in order]
    rows = np.array([sessions[i].row for i in order], np.int64)
    slots = torch.tensor([slot for slot, _ in places], device=device)
    ranks = np.array([rank for _, rank in places], np.int64)
    starts = np.array([token_indices[i] for i in order], np.int64)
    levels = np.zeros(len(order), np.int8)
    cos, sin = model.rotation(levels, starts, starts + 1, ranks)
    at = torch.from_numpy(rows).to(device)
    low, high = int(rows[0]), int(rows[-1]) + 1
    pool.bias[at, slots] = 0.0
    permutation = torch.tensor(order, device=device)
    measured = [(place, int(rows[place]) - low, sessions[i].ledger) for place, i in enumerate(order)]
    ledgers = [(place, row, ledger) for place, row, ledger in measured if ledger is not None]
    # What is measured, or biased by distance, has other inputs in each step.
    static = None if model.static is None or ledgers or model.policy.has_bias else model.static.covering(low, high)
    if static is not None:
        hidden = static(at, slots, ids[permutation], (cos, sin))
        return torch.empty_like(hidden).index_copy_(0, permutation, hidden)
    width = max(session.width for session in sessions)
    mask = pool.bias[low:high, None, :width].to(model.decoder.dtype)
    if model.policy.has_bias:
        positions = torch.from_numpy(model.positions(levels, starts, starts + 1, ranks)).to(device)
        pool.positions[at, slots] = positions
        mask = mask[:, None] + _decode_bias(model, positions, rows - low, low, high, width).to(mask.dtype)
    decoding = None if high - low == len(rows) else at - low
    attention = DecodeAttention(
        pool, pool.places(at, slots), (cos[:, None], sin[:, None]), mask, low, decoding, ledgers
    )
    hidden = model.decoder(model.decoder.embed(ids[permutation])[:, None], attention)[:, 0]
    return torch.empty_like(hidden).index_copy_(0, permutation, hidden)


def _decode_bias(model: KVModel, positions: Tensor, rows: NDArray[np.int64], low: int, high: int, width: int) -> Tensor:
    """Distance bias [R, heads, 1, width] of rows low .. high; rows that do not decode get zeros."""
    heads = model.decoder.config.num_heads
    bias = torch.zeros(high - low, heads, 1, width, dtype=positions.dtype, device=positions.device)
    for position, row in zip(positions, rows, strict=True):
        bias[row] = model.policy.bias(position[None], model.pool.positions[low + row, :width])
    return bias
