"""GistNet: the mean at first, blind to padding, and able to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.nets.gistnet import GistNet

DIM, K = 16, 8
VARIANTS: list[dict[str, Any]] = [
    {"kind": "mean", "head": "linear"},
    {"kind": "mean", "head": "mlp"},
    {"kind": "mean", "pooling": "query"},
    *(
        {"kind": "transformer", "pooling": pooling, "head": head}
        for pooling in ("mean", "query", "cls")
        for head in ("linear", "mlp")
    ),
    {"kind": "transformer", "layers": 4},
]
LEARNED = [variant for variant in VARIANTS if variant["kind"] == "transformer"]


def _name(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values())


def _net(variant: dict[str, Any], scale: float | None = None) -> GistNet:
    torch.manual_seed(0)
    net = GistNet(DIM, K, **variant)
    if scale is not None:
        net.scale.data.fill_(scale)
    return net


def _rows(batch: int = 3, length: int = K) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(1))


def _mask(*lengths: int) -> Tensor:
    return torch.arange(K) < torch.tensor(lengths)[:, None]


def _plain_mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([rows[real].mean(0) for rows, real in zip(x, mask, strict=True)])


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("grad", [True, False])
def test_starts_as_the_masked_mean(variant: dict[str, Any], grad: bool) -> None:
    """Step 0 is the mean of the real rows: an untrained GistNet is no worse than mean pooling."""
    x, mask = _rows(), _mask(K, 3, 1)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(_net(variant)(x, mask), _plain_mean(x, mask), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(_net(variant)(x), x.mean(1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("garbage", [1e30, -7.0, float("inf"), float("nan")])
def test_padding_changes_nothing(variant: dict[str, Any], garbage: float) -> None:
    """A short block has the gist of its real rows alone, whatever stands in the padded ones."""
    net, x, mask = _net(variant, 0.7), _rows(), _mask(5, K, 5)
    gists = net(x.masked_fill(~mask[..., None], garbage), mask)
    torch.testing.assert_close(gists[[0, 2]], net(x[[0, 2], :5]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gists[1:2], net(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("vectors", [2, 4])
def test_each_vector_summarizes_its_part(variant: dict[str, Any], vectors: int) -> None:
    """The j-th vector is the gist of the j-th part of the children alone, be they tokens or gists, masked or not."""
    one, several = _net(variant, 0.7), _net({**variant, "vectors": vectors}, 0.7)
    for length in (K, vectors * K):
        x = _rows(3, length)
        mask = torch.rand(3, length, generator=torch.Generator().manual_seed(2)) < 0.7
        parts = zip(x.chunk(vectors, 1), mask.chunk(vectors, 1), strict=True)
        expected = torch.cat([one(part, real) for part, real in parts], 1)
        torch.testing.assert_close(several(x, mask), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="parts"):
        several(_rows(3, K - 1))
    with pytest.raises(ConfigError, match="vectors"):
        _net({**variant, "vectors": 3})


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_no_mask_means_all_real(variant: dict[str, Any]) -> None:
    """Leaving the mask out is the same as a mask of True."""
    net, x = _net(variant, 0.7), _rows()
    torch.testing.assert_close(net(x), net(x, _mask(K, K, K)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_a_block_of_nothing_is_zero(variant: dict[str, Any]) -> None:
    """A row that is masked throughout gives a zero gist and finite gradients."""
    net = _net(variant, 0.7)
    gists = net(_rows(), _mask(K, 0, 2))
    gists.square().sum().backward()
    assert (gists[1] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_learned_part_depends_on_the_children(variant: dict[str, Any]) -> None:
    """What is added to the mean differs from block to block: no pooling may be constant."""
    net, x = _net(variant, 0.7), _rows()
    added = net(x) - x.mean(1)
    assert (added[0] - added[1]).norm() > 0.05 * added[0].norm()


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_learned_part_is_measured_by_the_mean(variant: dict[str, Any]) -> None:
    """Norm-matched: the residual is ``scale`` times as long as the mean, at any size of the embeddings."""
    net = _net(variant, 0.25)
    for size in (0.02, 50.0):
        x = _rows() * size
        mean = x.mean(1)
        torch.testing.assert_close((net(x) - mean).norm(dim=-1), 0.25 * mean.norm(dim=-1), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("variant", LEARNED, ids=_name)
def test_layers_know_the_order_of_children(variant: dict[str, Any]) -> None:
    """Own rotary over the K places: the same children in another order have another gist."""
    net, x = _net(variant, 0.7), _rows()
    assert (net(x) - net(x.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_learns_from_the_first_step(variant: dict[str, Any]) -> None:
    """The scale has a gradient at step 0 and every weight after it, in train and eval mode alike."""
    net, x, target = _net(variant), _rows(), torch.ones(3, DIM)
    net.eval()
    (net(x) - target).square().sum().backward()
    assert net.scale.grad is not None
    assert net.scale.grad.abs() > 0
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    optimizer.step()
    optimizer.zero_grad()
    (net(x) - target).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_weights_that_come_late_are_used() -> None:
    """A network put in eval mode before its trained weights are loaded must not go on as the plain mean."""
    trained, net, x = _net(LEARNED[0], 0.7).eval(), _net(LEARNED[0]).eval(), _rows()
    with torch.no_grad():
        net(x)
        net.load_state_dict(trained.state_dict())
        torch.testing.assert_close(net(x), trained(x))
        assert not torch.allclose(net(x), x.mean(1))


def test_one_by_one_equals_a_batch() -> None:
    """Nodes in one call don't see each other."""
    net, x = _net(LEARNED[0], 0.7).eval(), _rows(5)
    torch.testing.assert_close(torch.cat([net(row[None]) for row in x]), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "median"}, "kind must be one of"),
        ({"pooling": "max"}, "pooling must be one of"),
        ({"head": "none"}, "head must be one of"),
        ({"layers": 3}, "layers must be 2 or 4, got 3"),
        ({"heads": 5}, r"dim \(16\) must be a multiple of heads \(5\)"),
        ({"kind": "mean", "pooling": "cls"}, "cls needs kind=transformer"),
        ({"block_size": 1}, "block_size must be at least 2"),
        ({"dim": 0}, "dim must be at least 1"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    """Settings that cannot work are named at construction."""
    with pytest.raises(ConfigError, match=message):
        GistNet(**{"dim": DIM, "block_size": K, **arguments})


@pytest.mark.parametrize("shape", [(2, K + 1, DIM), (2, K, DIM + 2)])
def test_bad_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    """More rows than K, or rows of another width, are an error and not a wrong gist."""
    with pytest.raises(ConfigError, match="x must be"):
        _net(VARIANTS[0])(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool))
