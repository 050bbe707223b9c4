"""Attention that a question pays to candidate blocks, against the softmax computed plainly over one long sequence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguf_writer import tiny_decoder
from mc_core.lab.evaluation.attention_scores import BlockReader
from mc_core.models.decoder import Decoder
from mc_core.models.rotary import Rotary, rotate

HEADER, COUNT, SIZE, ASKED = 5, 3, 4, 6


class Plainly:
    """One sequence, any positions, any mask, each head by itself; keeps every weight."""

    def __init__(self, decoder: Decoder, positions: Tensor, seen: Tensor) -> None:
        self.place, self.seen = Rotary(decoder.config).table(positions), seen
        self.weights: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotate(q, self.place)[0], rotate(k, self.place)[0]
        out, kept = torch.empty_like(q), []
        for head in range(q.shape[1]):
            of = head * k.shape[1] // q.shape[1]
            scores = (q[:, head] @ k[:, of].T) / math.sqrt(q.shape[2])
            kept.append(torch.softmax(scores.masked_fill(~self.seen, -torch.inf), -1))
            out[:, head] = kept[-1] @ v[0, :, of]
        self.weights.append(torch.stack(kept))
        return out[None]


def sequence(in_a_row: bool) -> tuple[Tensor, Tensor]:
    """Positions and mask of header, blocks and question."""
    total, first, end = HEADER + COUNT * SIZE + ASKED, HEADER, HEADER + COUNT * SIZE
    positions, seen = torch.arange(total), torch.ones(total, total, dtype=torch.bool).tril()
    if not in_a_row:
        block = torch.arange(COUNT).repeat_interleave(SIZE)
        positions[first:end] = HEADER + torch.arange(SIZE).repeat(COUNT)
        positions[end:] = HEADER + SIZE + torch.arange(ASKED)
        seen[first:end, first:end] &= block[:, None] == block
    return positions, seen


@pytest.mark.parametrize("in_a_row", [False, True])
def test_weights_are_those_of_one_softmax_over_all_that_is_seen(in_a_row: bool) -> None:
    """Blocks read apart, or in a row, get what plain attention with that mask and those positions pays them."""
    decoder = tiny_decoder(num_layers=3)
    rng = np.random.default_rng(0)
    header, blocks, asked = (rng.integers(0, 96, shape).astype(np.int32) for shape in (HEADER, (COUNT, SIZE), ASKED))
    reader = BlockReader(decoder, header, layers=2)
    read: Any = reader.in_a_row if in_a_row else reader.read
    paid = reader.ask(asked, read(blocks), COUNT * SIZE if in_a_row else SIZE)
    plain = Plainly(decoder, *sequence(in_a_row))
    ids = np.concatenate([header, blocks.reshape(-1), asked]).astype(np.int64)
    with torch.inference_mode():
        decoder(decoder.embed(torch.from_numpy(ids))[None], plain)
    wanted = torch.stack(plain.weights[:2])[:, :, -ASKED:, HEADER:-ASKED].unflatten(-1, (COUNT, SIZE))
    assert paid.shape == (2, 4, ASKED, COUNT, SIZE)
    np.testing.assert_allclose(paid, wanted.numpy(), atol=1e-5)


def test_embeddings_are_read_as_the_ids_that_they_are_of() -> None:
    """Gists come as embeddings; copies of tokens get what the tokens get."""
    decoder = tiny_decoder(num_layers=3)
    rng = np.random.default_rng(1)
    header, blocks, asked = (rng.integers(0, 96, shape).astype(np.int32) for shape in (HEADER, (COUNT, SIZE), ASKED))
    reader = BlockReader(decoder, header, layers=3)
    shown = decoder.embed(torch.from_numpy(blocks.astype(np.int64)))
    one, other = (reader.ask(asked, reader.read(what), SIZE) for what in (blocks, shown))
    np.testing.assert_array_equal(one, other)
