"""Low-rank updates: nothing at first, the same beside the layers as added to them, and gone when they are off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.loading import HuggingFaceFolder, decoder_of, load_decoder
from mc_core.models.low_rank import Adapted, LowRank
from mc_core.models.rotary import Rotary
from support import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@torch.no_grad()
def logits(decoder: Decoder) -> Tensor:
    ids = torch.arange(40)[None]
    cos, sin = Rotary(decoder.config).table(torch.arange(40))
    return decoder.logits(decoder(decoder.embed(ids), FullAttention((cos[None], sin[None]))))


def learned(decoder: Decoder, rank: int = 4) -> LowRank:
    torch.manual_seed(1)
    low_rank = LowRank(decoder, rank)
    for up in low_rank.up:
        torch.nn.init.normal_(up, std=0.3)
    return low_rank


def test_updates_learned_beside_a_base_are_those_added_to_it(folder: Path) -> None:
    """They change nothing at first; learned, they give what a base gives that has them in its weights, and off, the
    stock base to the bit, whose own weights and their names never change."""
    stock, decoder = load_decoder(folder), load_decoder(folder)
    before = logits(stock)
    fresh = load_decoder(folder)
    LowRank(fresh, 4)
    torch.testing.assert_close(logits(fresh), before)
    low_rank = learned(decoder)
    adapted = logits(decoder)
    assert not torch.allclose(adapted, before, atol=0.1)
    merged = decoder_of(Adapted(HuggingFaceFolder(folder), low_rank.updates()))
    torch.testing.assert_close(logits(merged), adapted, atol=1e-4, rtol=1e-4)
    with low_rank.off():
        assert torch.equal(logits(decoder), before)
    torch.testing.assert_close(logits(decoder), adapted)
    own, same = decoder.state_dict(), stock.state_dict()
    assert own.keys() == same.keys()
    assert all(torch.equal(own[name], same[name]) for name in own)


def test_an_int8_base_takes_them_before_it_is_quantised(folder: Path) -> None:
    """The weights that are quantised are the changed ones."""
    decoder = load_decoder(folder)
    low_rank = learned(decoder)
    small = decoder_of(Adapted(HuggingFaceFolder(folder), low_rank.updates()), torch.int8)
    wanted, got = logits(decoder), logits(small)
    assert torch.cosine_similarity(wanted, got, dim=-1).mean() > 0.97
    assert (got - wanted).norm() < (got - logits(load_decoder(folder))).norm() / 2


def test_a_run_goes_on_from_updates(folder: Path) -> None:
    """What a file keeps is all that there is to know."""
    low_rank = learned(load_decoder(folder))
    again = LowRank(decoder := load_decoder(folder), 4)
    again.take(low_rank.updates())
    torch.testing.assert_close(
        logits(decoder), logits(decoder_of(Adapted(HuggingFaceFolder(folder), low_rank.updates())))
    )


def test_what_does_not_fit_is_told(folder: Path) -> None:
    """Updates of layers that are not there or of another shape, and ranks that make no small file, are refused."""
    updates = learned(load_decoder(folder)).updates()
    strange = {
        **updates,
        "layers.9.mlp.up_proj.down": torch.zeros(4, 64),
        "layers.9.mlp.up_proj.up": torch.zeros(64, 4),
    }
    with pytest.raises(ConfigError, match=r"has not: \['layers.9.mlp.up_proj'\]"):
        decoder_of(Adapted(HuggingFaceFolder(folder), strange))
    for wrong in ({"layers.0.mlp.up_proj.up": torch.zeros(3, 4)}, {"layers.0.mlp.up_proj.down": torch.zeros(5, 64)}):
        with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj do not fit"):
            decoder_of(Adapted(HuggingFaceFolder(folder), {**updates, **wrong}))
    for rank in (0, 17):
        with pytest.raises(ConfigError, match=r"rank must lie in \[1, 16\]"):
            LowRank(load_decoder(folder), rank)
