"""Gists that the base's own first layers make: the children's mean at first, each node by itself, blind to padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mc_core.bundle.bundle import load_bundle, make_gistnet, save_networks
from mc_core.bundle.manifest import Manifest
from mc_core.errors import ConfigError
from mc_core.models.attention import FullAttention
from mc_core.models.decoder import Decoder
from mc_core.models.loading import load_decoder
from mc_core.models.rotary import Rotary
from mc_core.models.spread import Spread
from mc_core.nets import encoder_gistnet
from mc_core.nets.encoder_gistnet import EncoderGistNet
from support import write_model

K = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), layers=3)


@pytest.fixture(scope="module")
def base(folder: Path) -> Decoder:
    return load_decoder(folder).requires_grad_(False)


def net(base: Decoder, vectors: int = 4, *, learned: bool = True) -> EncoderGistNet:
    torch.manual_seed(0)
    made = EncoderGistNet(base, K, layers=2, wide=32, vectors=vectors).eval()
    if learned:
        for parameter in (made.score.weight, made.down.weight):
            torch.nn.init.normal_(parameter)
    return made


def rows(base: Decoder, nodes: int, count: int) -> Tensor:
    drawn = torch.randint(0, 300, (nodes, count), generator=torch.Generator().manual_seed(1))
    return base.embed(drawn).float()


@pytest.mark.parametrize("vectors", [1, 2, 4, 8])
def test_starts_as_the_mean_at_the_childrens_length(base: Decoder, vectors: int) -> None:
    """Before anything is learned, each vector points where its part's mean does and is as long as the node's children
    are on average, be they tokens or gists."""
    for count in (K, vectors * K):
        x = rows(base, 3, count)
        gists = net(base, vectors, learned=False)(x).view(3, vectors, -1)
        means = x.view(3, vectors, count // vectors, -1).mean(2)
        torch.testing.assert_close(torch.cosine_similarity(gists, means, dim=-1), torch.ones(3, vectors))
        torch.testing.assert_close(gists.norm(dim=-1), x.norm(dim=-1).mean(1)[:, None].expand(3, vectors))


@pytest.mark.parametrize("garbage", [1e30, float("nan")])
def test_padding_changes_nothing(base: Decoder, garbage: float) -> None:
    """A node of which the end is masked has the vectors of its real rows, and none where a part has no row."""
    made, x = net(base), rows(base, 2, K)
    mask = (torch.arange(K) < torch.tensor([[K - 4], [K]])).contiguous()
    with torch.no_grad():
        gists = made(x.masked_fill(~mask[..., None], garbage), mask).view(2, 4, -1)
        assert not gists[0, 3].any()
        length = x[0, : K - 4].norm(dim=-1).mean()
        torch.testing.assert_close(gists[0, :3].norm(dim=-1), length.expand(3))
        # What is read of a part depends on the rows before it alone.
        whole = made(x).view(2, 4, -1)
        torch.testing.assert_close(torch.cosine_similarity(gists[0, :3], whole[0, :3], dim=-1), torch.ones(3))
        torch.testing.assert_close(gists[1], whole[1], atol=1e-5, rtol=1e-5)


def test_nodes_are_read_by_themselves(base: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gist is a function of its node, in whatever company and in however many parts a batch is read."""
    made, x = net(base), rows(base, 7, K)
    with torch.no_grad():
        alone = torch.cat([made(node[None]) for node in x])
        torch.testing.assert_close(made(x), alone, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(encoder_gistnet, "ROWS_AT_ONCE", 3 * K)
        torch.testing.assert_close(made(x), alone, atol=1e-5, rtol=1e-5)
        assert made(x[:0]).shape == (0, 4 * 64)


def test_the_base_is_shared(base: Decoder) -> None:
    """The base's weights are no part of the network's own, its first layers alone are read, and gradients reach all of
    the network."""
    made, x = net(base), rows(base, 2, K)
    assert not any("layers" in name for name in made.state_dict())
    cos, sin = Rotary(base.config).table(torch.arange(K))
    stream, attention = base.input_norm(x), FullAttention((cos[None], sin[None]))
    for layer in base.layers[:2]:
        stream = layer(stream, attention)
    torch.testing.assert_close(made.read(x, None), stream)
    made(x).square().sum().backward()
    made.size.grad = None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in made.named_parameters() if n != "size")


def test_an_int8_base_reads_in_the_embeddings_axes(folder: Path, base: Decoder) -> None:
    """What an int8 base makes of children is turned back, so that one adapter serves both."""
    turned = Spread(64)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(turned.back(turned(x)), x, atol=1e-5, rtol=1e-5)
    small = load_decoder(folder, torch.int8)
    read, same = net(base).read(rows(base, 2, K), None), net(small).read(rows(base, 2, K), None)
    assert torch.cosine_similarity(read, same, dim=-1).min() > 0.98


def test_a_bundle_describes_it(folder: Path, tmp_path: Path) -> None:
    """A bundle's manifest says how it was made; it is run where gists are shown alone; what does not fit is told."""
    base = load_decoder(folder)
    arguments = {"kind": "encoder", "layers": 2, "wide": 32, "vectors": 4}
    made = make_gistnet(64, 32, arguments, base)
    torch.nn.init.normal_(made.get_parameter("score.weight"))
    target = write_model(tmp_path / "bundle", layers=3)
    save_networks(target, Manifest(name="tiny", gistnet=arguments), gistnet=made)
    hidden, shown = load_bundle(target), load_bundle(target, gists=True)
    x = rows(base, 2, 32)
    with torch.no_grad():
        torch.testing.assert_close(shown.gistnet(x), made(x))
        torch.testing.assert_close(hidden.gistnet(x), x.mean(1))
    assert (shown.hidden_gists, shown.gist_cost) == (False, 4)
    assert (hidden.hidden_gists, hidden.gist_cost) == (True, 0)
    with pytest.raises(ConfigError, match=r"layers must lie in \[1, 3\]"):
        make_gistnet(64, 32, {**arguments, "layers": 4}, base)
    with pytest.raises(ConfigError, match="vectors must be one of"):
        make_gistnet(64, 32, {**arguments, "vectors": 5}, base)
    with pytest.raises(ConfigError, match="GistNet has not"):
        make_gistnet(64, 32, {**arguments, "heads": 5}, base)
