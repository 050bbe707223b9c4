"""The layers that GistNet and LensNet share: they see both ways, and never what is masked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.nets.layers import BidirectionalLayer, CrossLayer

DIM, HEADS = 16, 4
GARBAGE = [1e30, -7.0, float("inf"), float("nan")]


def _rows(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


def _layer() -> BidirectionalLayer:
    torch.manual_seed(0)
    return BidirectionalLayer(DIM, HEADS)


def _cross() -> CrossLayer:
    torch.manual_seed(0)
    return CrossLayer(DIM, HEADS)


def _rotation(length: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1])
    return angles.cos(), angles.sin()


def test_every_row_sees_every_row() -> None:
    """Bidirectional: a change of any row, first or last, changes all the others."""
    layer, x = _layer(), _rows(1, 5)
    before = layer(x)
    for changed in (0, 4):
        other = x.clone()
        other[0, changed] += torch.linspace(-1, 1, DIM)
        difference = (layer(other) - before).abs().amax(-1)[0]
        assert (difference > 1e-6).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_rows_change_nothing(garbage: float) -> None:
    """Real rows come out as if padding were not there, whatever stands in it; padding comes out as zeros."""
    layer, x = _layer(), _rows(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    padded = x.masked_fill(~mask[..., None], garbage)
    out = layer(padded, mask, _rotation(7))
    torch.testing.assert_close(out[:1, :4], layer(x[:1, :4], None, _rotation(4)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[1:], layer(x[1:], None, _rotation(7)), atol=1e-6, rtol=1e-5)
    assert (out[0, 4:] == 0).all()


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_rows_get_no_gradient(garbage: float) -> None:
    """Padding is out of the backward pass too: gradients are finite, and zero in padded rows."""
    layer = _layer()
    mask = torch.tensor([[True, True, False]])
    x = _rows(1, 3).masked_fill(~mask[..., None], garbage).requires_grad_()
    layer(x, mask).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[0, 2] == 0).all()
    assert (x.grad[0, :2].abs().sum(-1) > 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_batch_row_without_anything_is_zero() -> None:
    """A row that is masked throughout gives zeros, not the NaN of a softmax over nothing."""
    out = _layer()(_rows(2, 4), torch.tensor([[True] * 4, [False] * 4]))
    assert out.isfinite().all()
    assert (out[1] == 0).all()


def test_rotation_tells_places_apart() -> None:
    """Without a rotation the order of rows means nothing; with one it does."""
    layer, x = _layer(), _rows(1, 6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], atol=1e-6, rtol=1e-5)
    turned = layer(x[:, order], None, _rotation(6)) - layer(x, None, _rotation(6))[:, order]
    assert turned.abs().max() > 1e-3


def test_rotation_is_relative() -> None:
    """Only distances between places count, not where the first place is."""
    layer, x = _layer(), _rows(1, 4)
    cos, sin = _rotation(9)
    torch.testing.assert_close(
        layer(x, None, (cos[5:], sin[5:])), layer(x, None, (cos[:4], sin[:4])), atol=1e-5, rtol=1e-5
    )


def test_cross_reads_the_context() -> None:
    """Each row depends on the context, and not on the other rows."""
    layer, x, context = _cross(), _rows(1, 3), _rows(1, 5, seed=1)
    out = layer(x, context)
    assert (layer(x, context + torch.linspace(-1, 1, DIM)) - out).abs().amax(-1).min() > 1e-6
    torch.testing.assert_close(layer(x[:, 1:2], context), out[:, 1:2], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_cross_ignores_masked_context(garbage: float) -> None:
    """What stands in masked rows of the context changes nothing, and a context of nothing adds nothing."""
    layer, x, context = _cross(), _rows(2, 3), _rows(2, 5, seed=1)
    torch.nn.init.ones_(layer.context_norm.bias)  # as after training: zeros in, something out
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    out = layer(x, context.masked_fill(~mask[..., None], garbage), mask)
    torch.testing.assert_close(out[:1], layer(x[:1], context[:1, :2]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[1:], x[1:] + layer.mlp(layer.mlp_norm(x[1:])), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dim", "heads", "message"), [(16, 3, "multiple"), (16, 0, "multiple"), (12, 4, "even")])
def test_heads_must_divide_the_width(dim: int, heads: int, message: str) -> None:
    """Shapes that cannot work are refused at construction, with the numbers."""
    for kind in (BidirectionalLayer, CrossLayer):
        with pytest.raises(ConfigError, match=message):
            kind(dim, heads)
