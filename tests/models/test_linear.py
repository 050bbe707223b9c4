"""Int8 linear layers: near the float ones, row by row, and the same decoder around them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mc_core.errors import ConfigError
from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.linear import Int8Linear, Int8Weight, check_weights
from mc_core.models.loading import load_decoder, save_decoder
from mc_core.models.rotary import Rotary

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no int8 kernels for this CPU"
)


@given(seed=st.integers(0, 2**16), inputs=st.integers(1, 200), outputs=st.integers(1, 90))
@settings(max_examples=50, deadline=None)
def test_weights_are_off_by_half_a_step_at_most(seed: int, inputs: int, outputs: int) -> None:
    """What an int8 weight stands for is within half a step of its row's scale."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    packed = Int8Weight.of(weight)
    assert ((packed.rows * packed.scales[:, None] - weight).abs() <= packed.scales[:, None] * 0.5001).all()


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 40), inputs=st.integers(1, 200), outputs=st.integers(1, 90))
@settings(max_examples=50, deadline=None)
def test_products_are_those_of_rounded_operands(seed: int, rows: int, inputs: int, outputs: int) -> None:
    """The kernel computes exactly what rounding weights and activations to their steps computes."""
    rng = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(outputs, inputs, generator=rng), torch.randn(rows, inputs, generator=rng)
    packed = Int8Weight.of(weight)
    scale = x.abs().amax(1, keepdim=True) / 127
    expected = F.linear((x / scale).round() * scale, packed.rows * packed.scales[:, None])
    torch.testing.assert_close(Int8Linear([packed])(x), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


@given(seed=st.integers(0, 2**16), inputs=st.integers(1, 200), power=st.sampled_from([0.0, 1.0, 3.0]))
@settings(max_examples=50, deadline=None)
def test_no_sum_overflows(seed: int, inputs: int, power: float) -> None:
    """The greatest activations of the weights' own signs, and of the opposite, give the sum of the weights."""
    weight = torch.randn(24, inputs, generator=torch.Generator().manual_seed(seed))
    packed = Int8Weight.of(weight.sign() * weight.abs() ** power)
    worst = torch.cat([packed.rows.sign(), -packed.rows.sign()]).float()
    worst[:, 0] = torch.where(worst[:, 0] == 0, 1.0, worst[:, 0])  # a row of zeros has no size
    expected = F.linear(worst, packed.rows * packed.scales[:, None])
    torch.testing.assert_close(Int8Linear([packed])(worst), expected, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 2**16), rows=st.integers(2, 40), loud=st.floats(1, 1e6))
@settings(max_examples=50, deadline=None)
def test_no_row_depends_on_another(seed: int, rows: int, loud: float) -> None:
    """Bit for bit, a row's outputs are the same alone and beside a row of any size."""
    rng = torch.Generator().manual_seed(seed)
    layer = Int8Linear([Int8Weight.of(torch.randn(48, 96, generator=rng))])
    x = torch.randn(rows, 96, generator=rng)
    x[-1] *= loud
    assert torch.equal(layer(x)[0], layer(x[0]))


def test_parallel_weights_and_biases_are_each_others_neighbours() -> None:
    """Several weights of one input give what each gives alone."""
    weights = [Int8Weight.of(torch.randn(n, 32)) for n in (16, 8, 24)]
    biases = [torch.randn(len(weight)) for weight in weights]
    x = torch.randn(2, 5, 32)
    together = Int8Linear(weights, biases).parts(x)
    for part, weight, bias in zip(together, weights, biases, strict=True):
        assert torch.equal(part, Int8Linear([weight], [bias])(x))


def test_a_row_of_zeros_gives_the_bias() -> None:
    """Nothing is divided by nothing."""
    layer = Int8Linear([Int8Weight.of(torch.zeros(4, 8))], [torch.arange(4.0)])
    assert torch.equal(layer(torch.zeros(3, 8)), torch.arange(4.0).expand(3, 4))


SHAPES = {
    "llama": {"tie_word_embeddings": True, "o_bias": True, "qkv_bias": True, "mlp_bias": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "weighted"},
    "nanochat": {"qk_norm": "unit", "norm": "unit", "embedding_norm": True, "mlp": "relu2", "rope_direction": -1},
}


@pytest.mark.parametrize("family", SHAPES)
def test_an_int8_decoder_is_near_the_float_one(family: str, tmp_path: Path) -> None:
    """All linear layers are int8, nothing else is, and the logits stay close."""
    torch.manual_seed(0)
    shape = DecoderConfig(family, 97, 64, 96, 2, 4, 2, 16, **SHAPES[family])
    with torch.no_grad():
        exact = Decoder(shape)
        for parameter in exact.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    save_decoder(tmp_path, exact)
    near = load_decoder(tmp_path, torch.int8)
    assert not any(isinstance(module, nn.Linear) for module in near.modules())
    assert near.dtype == torch.float32
    ids = torch.randint(97, (1, 64))
    attention = FullAttention(Rotary(shape).table(torch.arange(64)[None]))
    with torch.inference_mode():
        wanted, got = (d.logits(d(d.embed(ids), attention)) for d in (exact, near))
    assert float((wanted - got).norm() / wanted.norm()) < 0.03


def test_int8_is_refused_where_it_cannot_run() -> None:
    """Another device, or a torch without the kernels, is told in words."""
    with pytest.raises(ConfigError, match="weights=int8 is for the CPU, not for cuda"):
        check_weights(torch.int8, "cuda")
    check_weights(torch.int8, "cpu")
    check_weights(torch.bfloat16, "cuda")
