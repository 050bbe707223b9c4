"""The tree of a session: all its token ids, and the gists of all complete nodes, by level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_core.nets.gist_maker import GistMaker
from mc_core.tree.ids import Blocks, HotIds, Ids
from mc_core.tree.levels import GistLevels
from mc_core.tree.pool import Lod0Cache, Pool
from mc_core.tree.tree_config import Appended, TreeConfig

__all__ = ["Appended", "MegaContextTree", "TreeConfig"]


class MegaContextTree:
    """Append-only except for ``rewind``. Only complete nodes have gists; the open block at the end has none.

    Vectors (gists and lens keys) come with what is appended, unless the tree is not ``whole``: one that was loaded with
    those of its first blocks alone gets the others by ``make``, and then those of new blocks too.
    ``cuts`` counts rewinds: while it stays, ids that were read are those of the history.
    It holds values, not autograd graphs. Its networks must be in eval mode while it is used.
    """

    def __init__(
        self,
        config: TreeConfig,
        gistnet: GistMaker,
        embed: Callable[[Tensor], Tensor],
        key_net: nn.Module | None = None,
    ) -> None:
        """embed: ids [...] -> [..., d]. key_net: block vectors [n, K, d], mask or None -> lens keys [n, keys, dim].

        ConfigError if the networks do not fit the config.
        """
        if gistnet.block_size != config.block_size:
            raise ConfigError(f"block_size of the GistNet is {gistnet.block_size}, of the tree {config.block_size}")
        if config.lens_keys and key_net is None:
            raise ConfigError(f"lens_keys is {config.lens_keys}, but there is no key network")
        self.config, self.gistnet, self.embed, self.key_net = config, gistnet, embed, key_net
        self.dim, self.gist_width = gistnet.dim, gistnet.width
        self._ids = HotIds(config.block_size)
        self._gists = GistLevels(config, gistnet)
        self._keys = Pool((config.lens_keys, config.lens_key_dim), config.gist_dtype, config.device)
        self._cache = Lod0Cache() if config.cache_lod0 else None
        self.whole, self.cuts = True, 0

    @classmethod
    def load(
        cls,
        config: TreeConfig,
        gistnet: GistMaker,
        embed: Callable[[Tensor], Tensor],
        *,
        gists: Sequence[Tensor],
        hot_ids: Ids,
        num_tokens: int,
        keys: Tensor | None = None,
        key_net: nn.Module | None = None,
        made: int | None = None,
    ) -> MegaContextTree:
        """A tree from stored parts, without a GistNet call.

        gists: [n_l, m d] of each level from 1 up; hot_ids: ids from a block border up to ``num_tokens``; keys
        [n_1, keys, dim], see ``block_keys``; a level without nodes may be left out. made: how many blocks, from the
        first on, these vectors are of; None: all. ConfigError if the parts are not those of ``num_tokens`` tokens.
        """
        tree = cls(config, gistnet, embed, key_net)
        k, first = config.block_size, num_tokens - len(hot_ids)
        nodes = num_tokens // k if made is None else made
        if not 0 <= nodes <= num_tokens // k:
            raise ConfigError(f"made must lie in [0, {num_tokens // k}], got {nodes}")
        tree.whole = nodes == num_tokens // k
        if first < 0 or first % k:
            raise ConfigError(f"hot_ids must begin at a block border of {num_tokens} tokens, they begin at {first}")
        shape = (nodes, config.lens_keys, config.lens_key_dim)
        if config.lens_keys and nodes and (keys is None or keys.shape != shape):
            raise ConfigError(f"keys must be {list(shape)}, got {'none' if keys is None else list(keys.shape)}")
        for level, rows in enumerate(gists, start=1):
            if rows.shape != (nodes, tree.gist_width):
                raise ConfigError(f"gists of level {level} must be {[nodes, tree.gist_width]}, got {list(rows.shape)}")
            tree._gists.append(level, rows)
            nodes //= k
        if nodes:
            raise ConfigError(f"gists of level {len(gists) + 1} are missing, there are {nodes}")
        if config.lens_keys and keys is not None:
            tree._keys.append(keys)
        tree._ids = HotIds(k, first)
        tree._ids.append(hot_ids)
        if tree._cache is not None:
            tree._cache = Lod0Cache(tree.num_blocks * k)
        return tree

    # -- sizes ---------------------------------------------------------------------------------------------------

    @property
    def num_tokens(self) -> int:
        return self._ids.length

    @property
    def num_blocks(self) -> int:
        """Complete blocks, which is also the number of LOD1 nodes."""
        return self._ids.length // self.config.block_size

    @property
    def made(self) -> int:
        """Blocks, from the first on, that have vectors, and all nodes that they complete."""
        return self._gists.count(1)

    @property
    def num_levels(self) -> int:
        """The highest level that has a node, 0 if none."""
        return self._gists.highest

    def count(self, level: int) -> int:
        """Complete nodes at ``level``; at level 0 complete blocks."""
        return self.num_blocks if level == 0 else self._gists.count(level)

    def hot_bytes(self) -> dict[str, int]:
        """Memory by part, in bytes, with what is allocated ahead."""
        return {
            "ids": self._ids.nbytes,
            "gists": self._gists.nbytes,
            "lens_keys": self._keys.nbytes,
            "lod0_cache": self._cache.nbytes if self._cache is not None else 0,
        }

    # -- change --------------------------------------------------------------------------------------------------

    def append(self, ids: Ids) -> Appended:
        """Add tokens at the end. GistNet runs once a level for all nodes that this completes, or not at all.

        Whole or not at all: if a network fails, the tree is as before. ConfigError if ids are not a row of integers.
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ConfigError(f"ids must be one row of integers, got {ids.dtype} {list(ids.shape)}")
        before, first = self.num_tokens, self.num_blocks
        self._ids.append(ids)
        if self._cache is not None:
            self._bound_cache()
        if self.num_blocks == first or not self.whole:
            return Appended(first, self.num_blocks - first)
        try:
            return self._complete(first)
        except BaseException:
            self.rewind(before)
            raise

    @torch.no_grad()
    def make(self, ids: Ids) -> int:
        """The vectors of the next blocks that have none, of ids [n, K], and of what they complete -> GistNet calls.

        Whole or not at all. As many at a time as an append brings, they are the same, bit for bit.
        """
        first, size = self.made, self.config.block_size
        vectors = self.embed(self._on_device(ids.reshape(-1)))
        try:
            return self._gists.complete(
                first,
                first + len(ids),
                lambda start, end: vectors[start - first * size : end - first * size],
                self._add_keys,
            )
        except BaseException:
            self._gists.truncate(first)
            self._keys.truncate(min(first, len(self._keys)))
            raise

    def lose(self, blocks: Blocks) -> None:
        """The ids of these blocks are nowhere any more: vectors made from now on count nothing of them."""
        self._gists.lost = np.union1d(self._gists.lost, blocks)

    def rewind(self, position: int) -> None:
        """Cut the history at ``position`` tokens.

        SpanMissingError, and nothing changed, if the ids of the block that is cut are not in memory: restore it first.
        """
        if not 0 <= position <= self.num_tokens:
            raise ConfigError(f"position must lie in [0, {self.num_tokens}], got {position}")
        self._ids.truncate(position)
        self.cuts += 1
        self._gists.lost = self._gists.lost[self._gists.lost < self.num_blocks]
        self._gists.truncate(self.num_blocks)
        self._keys.truncate(min(self.num_blocks, len(self._keys)))
        if self._cache is not None:
            self._cache.truncate(position, self.config.block_size)

    # -- read ----------------------------------------------------------------------------------------------------

    def ids(self, start: int, end: int) -> Ids:
        """Token ids [start, end). SpanMissingError names blocks that are not in memory."""
        return self._ids.range(start, end)

    def block_ids(self, blocks: Blocks) -> Ids:
        """Token ids [n, K] of complete blocks. SpanMissingError names those that are not in memory."""
        return self._ids.blocks(blocks)

    def gists(self, level: int, indices: NDArray[np.int64] | Tensor) -> Tensor:
        """Gists [n, m d] of nodes (level, indices), level >= 1; indices on the host. IndexError if one is not there."""
        host = indices.cpu().numpy() if isinstance(indices, Tensor) else indices
        return self._gists[level].gather(host)

    def gist_vectors(self, level: int, indices: NDArray[np.int64]) -> Tensor:
        """The same, vector by vector [n, m, d]."""
        return self.gists(level, indices).view(len(indices), self.gistnet.vectors, self.dim)

    def gist_range(self, level: int, start: int, end: int) -> Tensor:
        """Gists [end - start, m d] of neighbouring nodes, without a copy; good until the next change."""
        return self._gists[level].view(start, end)

    def lens_keys(self, start: int, end: int) -> Tensor:
        """Lens keys [end - start, keys, dim] of LOD1 nodes, without a copy; good until the next change."""
        return self._keys.view(start, end)

    @torch.no_grad()
    def block_vectors(self, ids: Ids) -> Tensor:
        """Embeddings [n, K, d] of blocks with ids [n, K], of which their gists and lens keys are made."""
        return self.embed(self._on_device(ids)).float()

    @torch.no_grad()
    def block_keys(self, vectors: Tensor) -> Tensor:
        """Lens keys [n, keys, dim] of blocks with ``vectors``, as an append makes them: for ``load``."""
        return self._make_keys(vectors).to(self.config.gist_dtype)

    @torch.no_grad()
    def block_gists(self, vectors: Tensor) -> Tensor:
        """Gists [n, m d] of blocks with ``vectors``, as an append makes them: for ``load``."""
        gists: Tensor = self.gistnet(vectors)
        return gists.to(self.config.gist_dtype)

    @torch.no_grad()
    def parent_gists(self, children: Tensor, known: NDArray[np.bool_]) -> Tensor:
        """Gists [n, m d] of nodes of children [n, K, m d], of which only the ``known`` [n, K] count: for ``load``."""
        device = self.config.device
        vectors = children.to(device).float().view(len(children), -1, self.dim)
        mask = None if known.all() else torch.from_numpy(known).to(device).repeat_interleave(self.gistnet.vectors, 1)
        gists: Tensor = self.gistnet(vectors, mask)
        return gists.to(self.config.gist_dtype)

    @torch.no_grad()
    def embeddings(self, start: int, end: int) -> Tensor:
        """Input embeddings [end - start, d] of tokens: from the LOD0 cache where it has them, else made anew.

        A slice of the cache is good until the next change. SpanMissingError if the ids that it takes are not there.
        """
        if not 0 <= start <= end <= self.num_tokens:
            raise IndexError(f"embeddings [{start}, {end}) lie outside [0, {self.num_tokens})")
        cache = self._cache
        if cache is None or start < cache.first or start == end:
            return self.embed(self._on_device(self.ids(start, end)))
        if end > cache.end:
            cache.append(self.embed(self._on_device(self.ids(cache.end, end))))
        return cache.view(start, end)

    # -- LOD0 cache and eviction ---------------------------------------------------------------------------------

    @property
    def lod0_cached(self) -> bool:
        """Whether embeddings of tokens are kept."""
        return self._cache is not None

    def release_lod0_cache(self) -> None:
        """Free the embeddings of tokens, for good; slices are made from ids from now on."""
        self._cache = None

    def evict(self, hot_tokens: int, keep: Blocks) -> Blocks:
        """Free the ids of complete blocks before the last ``hot_tokens``, except ``keep`` -> the blocks freed.

        The embeddings of blocks before the last ``hot_tokens`` go too, with or without their ids.
        """
        if hot_tokens < 0:
            raise ConfigError(f"hot_tokens must be at least 0, got {hot_tokens}")
        border = max(0, self.num_tokens - hot_tokens) // self.config.block_size
        freed = self._ids.evict(border, keep)
        if self._cache is not None:
            self._cache.drop_before(border * self.config.block_size)
        return freed

    def missing(self, blocks: Blocks) -> Blocks:
        """Those of ``blocks`` whose ids are not in memory."""
        return self._ids.missing(blocks)

    def restore(self, blocks: Blocks, ids: Ids) -> None:
        """Put back ids [n, K] of evicted blocks, as a store gave them. ConfigError or IndexError if they don't fit."""
        self._ids.restore(blocks, ids)

    # -- inside --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _complete(self, first: int) -> Appended:
        """Make the gists, and the lens keys, of all nodes that blocks from ``first`` on complete."""
        end = self.num_blocks
        calls = self._gists.complete(first, end, self.embeddings, self._add_keys)
        return Appended(first, end - first, calls)

    def _add_keys(self, children: Tensor) -> None:
        if not self.config.lens_keys:
            return
        keys, first = self._make_keys(children), len(self._keys)
        lost = self._gists.lost
        lost = lost[(lost >= first) & (lost < first + len(keys))]
        if len(lost):
            keys[torch.from_numpy(lost - first).to(keys.device)] = 0
        self._keys.append(keys)

    def _make_keys(self, children: Tensor) -> Tensor:
        assert self.key_net is not None
        return self.key_net(children, None)  # nothing in complete blocks is padding

    def _bound_cache(self) -> None:
        limit = self.config.cache_lod0_max_tokens
        if limit is not None and self._cache is not None and self.num_tokens - self._cache.first > limit:
            self.release_lod0_cache()

    def _on_device(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.config.device)
