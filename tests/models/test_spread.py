"""The rotation of the residual stream: orthogonal, and folded into the weights it changes nothing."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.rotary import Rotary
from mc_core.models.spread import Spread, spread_head, spread_layer
from models.test_linear import SHAPES


@given(size=st.integers(1, 300), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_it_is_orthogonal_and_flat(size: int, seed: int) -> None:
    """Lengths and angles stay, and one loud channel is spread over all."""
    matrix = Spread(size, seed)(torch.eye(size))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=0, atol=1e-5)
    assert float(matrix.abs().max()) <= (2 / size) ** 0.5 + 1e-5


@pytest.mark.parametrize("family", SHAPES)
def test_a_decoder_with_a_turned_stream_computes_the_same(family: str) -> None:
    """Folded into every layer and the head, the rotation leaves the logits as they were."""
    torch.manual_seed(0)
    shape = DecoderConfig(family, 97, 48, 96, 3, 4, 2, 12, **{**SHAPES[family], "tie_word_embeddings": False})
    plain = Decoder(shape).requires_grad_(False)
    for parameter in plain.parameters():
        parameter.mul_(torch.rand_like(parameter) + 0.5)
    turned, spread = copy.deepcopy(plain), Spread(48)
    for layer in turned.layers:
        spread_layer(layer, spread)
    spread_head(turned, spread)
    turned.spread = spread
    ids = torch.randint(97, (2, 20))
    attention = FullAttention(Rotary(shape).table(torch.arange(20)[None]))
    wanted, got = (d.logits(d(d.embed(ids), attention)) for d in (plain, turned))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
