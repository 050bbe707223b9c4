"""The block mask that a base is trained with, against a dense mask written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.lab.training.base.decode import greedy
from mc_core.lab.training.base.model import BaseModel, BaseShape, initialise
from mc_core.lab.training.sample import BLOCK
from mc_core.models.attention import BlockMaskAttention, attend
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import rotate

SHAPE = BaseShape(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48)


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(SHAPE.config(300))
    initialise(decoder, 0)
    return BaseModel(decoder.eval())


class Dense:
    """Every token against every token, with a boolean mask; history queries see canonical positions."""

    def __init__(self, model, length, tail_start, segment, first=BLOCK):
        at = torch.arange(length)
        part = torch.where(at < first, 0, (at - first) // segment + 1)
        tail = at >= tail_start
        own = (part[:, None] == part[None, :]) | (part == 0)[None, :]
        self.visible = (at[:, None] >= at[None, :]) & (own | tail[:, None])
        canonical = torch.where(at < first, at, first + (at - first) % segment)
        self.history = ~tail
        self.place, self.local = model.rotary.table(at), model.rotary.table(canonical)

    def __call__(self, layer, q, k, v):
        placed = attend(rotate(q, self.place), rotate(k, self.place), v, self.visible)
        canonical = attend(rotate(q, self.local), rotate(k, self.local), v, self.visible)
        return torch.where(self.history[None, :, None, None], canonical, placed)


def test_block_mask_is_the_dense_mask(model):
    """For any segment length and sizes of history and tail, hidden states equal those under the dense mask."""

    @settings(max_examples=25, deadline=None)
    @given(st.sampled_from((32, 64, 128)), st.integers(0, 4), st.integers(1, 70), st.integers(0, 2**31))
    def check(segment, segments, tail, seed):
        tail_start = BLOCK + segments * segment
        ids = torch.randint(300, (2, tail_start + tail), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            fast = model(ids, model.attention(ids.shape[1], tail_start, segment, True))
            dense = model(ids, Dense(model, ids.shape[1], tail_start, segment))
        torch.testing.assert_close(fast, dense, atol=2e-5, rtol=1e-4)

    check()


def test_a_segment_depends_on_itself_and_the_first_block_alone(model):
    """What serving may reuse: a history block's states are the same wherever it stands and whatever is beside it."""
    ids = torch.randint(300, (1, 5 * BLOCK), generator=torch.Generator().manual_seed(1))
    swapped = torch.cat(
        [ids[:, :BLOCK], ids[:, 2 * BLOCK : 3 * BLOCK], ids[:, BLOCK : 2 * BLOCK], ids[:, 3 * BLOCK :]], 1
    )
    with torch.no_grad():
        a, b = (model(x, model.attention(5 * BLOCK, 4 * BLOCK, BLOCK, True)) for x in (ids, swapped))
    torch.testing.assert_close(a[:, BLOCK : 2 * BLOCK], b[:, 2 * BLOCK : 3 * BLOCK])
    torch.testing.assert_close(a[:, 3 * BLOCK : 4 * BLOCK], b[:, 3 * BLOCK : 4 * BLOCK])
    assert not torch.allclose(a[:, 4 * BLOCK :], b[:, 4 * BLOCK :])


def test_tail_must_start_at_a_segment(model):
    """A layout that is none is refused, not read wrongly."""
    table = model.rotary.table(torch.arange(256))
    with pytest.raises(ValueError, match="tail_start 80"):
        BlockMaskAttention(table, table, BLOCK, 32, 80)


@pytest.mark.parametrize("masked", [False, True])
def test_greedy_is_the_slow_way(model, masked):
    """Decoding with kept keys gives the tokens that reading everything anew each time gives, cut at the end token."""
    prompts = torch.randint(300, (3, 150), generator=torch.Generator().manual_seed(2))
    expected = prompts
    with torch.no_grad():
        for _ in range(8):
            attention = model.attention(expected.shape[1], 4 * BLOCK, BLOCK, masked)
            expected = torch.cat([expected, model.decoder.logits(model(expected, attention)[:, -1:]).argmax(-1)], 1)
    rows = expected[:, 150:].tolist()
    assert greedy(model, prompts, 4 * BLOCK, BLOCK, masked, 8, end=-1) == rows
    end = rows[0][3]
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    assert greedy(model, prompts, 4 * BLOCK, BLOCK, masked, 8, end) == cut
