"""Blocks as clusters of keys and values: what is lost of attention, and who sees what."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mc_core.lab.key_clusters import ClusteredPast, Recorded, clustered
from mc_core.models.attention import FullAttention
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.rotary import Rotary, rotate

K, DIM = 4, 8
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended(query: Tensor, keys: Tensor, values: Tensor, extra: Tensor) -> Tensor:
    """One query [d] by hand: keys, values [n, d], extra [n] added to the scores."""
    return ((keys @ query) / DIM**0.5 + extra).softmax(-1) @ values


@settings(max_examples=30, deadline=None)
@given(seed=seeds, m=st.integers(1, 6), different=st.integers(1, 6), heads=st.integers(1, 3))
def test_blocks_of_no_more_different_keys_than_clusters_lose_nothing(
    seed: int, m: int, different: int, heads: int
) -> None:
    """Any query gets of the clusters what all keys would give it, as long as each kind of key has a cluster."""
    different, size = min(different, m), 16
    kinds, values = drawn(seed, 2, heads, different, DIM), drawn(seed + 1, 2, heads, size, DIM)
    which = torch.randint(different, (2, heads, size), generator=torch.Generator().manual_seed(seed))
    keys = kinds.gather(2, which[..., None].expand(-1, -1, -1, DIM))
    means, of_values, mass = clustered(keys, values, m)
    assert torch.allclose(mass.exp().sum(-1), torch.full((2, heads), float(size)))
    query = drawn(seed + 2, DIM)
    for n in range(2):
        for head in range(heads):
            whole = attended(query, keys[n, head], values[n, head], torch.zeros(size))
            assert torch.allclose(attended(query, means[n, head], of_values[n, head], mass[n, head]), whole, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, m=st.sampled_from((1, 2, 4)), blocks=st.integers(2, 4), tail=st.integers(1, 5))
def test_the_tail_sees_the_first_block_clusters_and_itself_so_far(seed: int, m: int, blocks: int, tail: int) -> None:
    """Each of the tail attends to just that, at its place, of whatever the history was when it was read."""
    config = DecoderConfig(
        "llama", 8, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=DIM
    )
    start, rotary = blocks * K, Rotary(config)
    length = start + tail
    place = rotary.table(torch.arange(length)[None].double())
    q, k, v = (drawn(seed + i, 2, length, heads, DIM) for i, heads in enumerate((4, 2, 2)))
    inner = FullAttention(place)
    read = Recorded(inner)
    assert torch.equal(read(0, q, k, v), inner(0, q, k, v))
    past = ClusteredPast(read, place, rotary, block_size=K, start=start, clusters=m)
    out = past(0, q[:, start:], k[:, start:], v[:, start:])
    turned, queries = rotate(k, place), rotate(q, place)
    for b in range(2):
        for head in range(4):
            kv = head // 2
            keys, values, extra = list(turned[b, :K, kv]), list(v[b, :K, kv]), [0.0] * K
            for block in range(1, blocks):
                rows = slice(block * K, (block + 1) * K)
                means, of_values, mass = clustered(k[b, rows, kv][None, None], v[b, rows, kv][None, None], m)
                centre = rotary.table(torch.full((1, m), block * K + (K - 1) / 2).double())
                keys += list(rotate(means[0, 0][None, :, None], centre)[0, :, 0])
                values, extra = values + list(of_values[0, 0]), extra + mass[0, 0].tolist()
            for at in range(start, length):
                keys, values, extra = [*keys, turned[b, at, kv]], [*values, v[b, at, kv]], [*extra, 0.0]
                wanted = attended(queries[b, at, head], torch.stack(keys), torch.stack(values), torch.tensor(extra))
                assert torch.allclose(out[b, at - start, head], wanted, atol=1e-5)
