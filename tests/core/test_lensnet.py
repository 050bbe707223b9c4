"""LensNet: it reads the question, ignores padding, and learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.nets.lensnet import LensInput, LensNet, LensNetConfig, LensOutput

DIM = 24
KINDS = ("cross", "transformer")


def _net(kind: str, layers: int = 2) -> LensNet:
    torch.manual_seed(0)
    return LensNet(LensNetConfig(DIM, kind=kind, width=32, heads=4, layers=layers, keys=3, key_dim=16))  # type: ignore[arg-type]


def _input(batch: int = 2, entries: int = 11, tail: int = 7) -> LensInput:
    draw = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 4, (batch, entries), generator=draw)
    return LensInput(
        entries=torch.randn(batch, entries, DIM, generator=draw) * 0.02,
        levels=levels,
        spans=32 ** levels.clamp_min(1),
        distances=torch.arange(entries, 0, -1).expand(batch, -1) * 100,
        tail=torch.randn(batch, tail, DIM, generator=draw) * 0.02,
    )


def _assert_close(one: LensOutput, other: LensOutput) -> None:
    torch.testing.assert_close(one.gain, other.gain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.harm, other.harm, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_entry_sees_the_question(kind: str, layers: int) -> None:
    """Changing the last token of the tail alone changes the scores of all entries, the first one included."""
    net, view = _net(kind, layers), _input()
    tail = view.tail.clone()
    tail[:, -1] = -tail[:, -1]
    before, after = net(view), net(replace(view, tail=tail))
    assert ((before.gain - after.gain).abs() > 1e-6).all()
    assert ((before.harm - after.harm).abs() > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_padding_changes_nothing(kind: str, garbage: float) -> None:
    """Whatever stands in masked rows of entries and tail, real entries score the same and masked ones score 0."""
    net, view = _net(kind), _input()
    alone = net(view)

    def padded(x: Tensor, rows: int, left: bool) -> tuple[Tensor, Tensor]:
        fill = torch.full((len(x), rows, *x.shape[2:]), garbage if x.is_floating_point() else 9).to(x.dtype)
        real = torch.ones(x.shape[:2], dtype=torch.bool), torch.zeros(len(x), rows, dtype=torch.bool)
        order = (1, 0) if left else (0, 1)
        return torch.cat([(x, fill)[i] for i in order], 1), torch.cat([real[i] for i in order], 1)

    for left in (False, True):
        columns = {name: padded(getattr(view, name), 3, left) for name in ("entries", "levels", "spans", "distances")}
        tail, tail_mask = padded(view.tail, 5, left)
        entry_mask = columns["entries"][1]
        values = {name: column for name, (column, _) in columns.items()}
        out = net(LensInput(**values, tail=tail, entry_mask=entry_mask, tail_mask=tail_mask))
        _assert_close(LensOutput(out.gain[entry_mask].view(2, -1), out.harm[entry_mask].view(2, -1)), alone)
        assert (out.gain[~entry_mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_batch_do_not_mix(kind: str) -> None:
    """A working context scores the same alone and in a batch."""
    net, view = _net(kind), _input(batch=3)
    names = ("entries", "levels", "spans", "distances", "tail")
    alone = net(LensInput(**{name: getattr(view, name)[1:2] for name in names}))
    whole = net(view)
    _assert_close(LensOutput(whole.gain[1:2], whole.harm[1:2]), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_tail_and_one_entry(kind: str) -> None:
    """No question at all still gives finite scores, bounded by 1 when signed."""
    out = _net(kind)(_input(entries=1, tail=0))
    assert out.gain.shape == (2, 1)
    assert torch.isfinite(out.gain).all()
    assert (out.score.abs() <= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_level_span_and_distance_count(kind: str) -> None:
    """The same vectors at another level, span or distance score otherwise."""
    net, view = _net(kind), _input()
    base = net(view).gain
    for other in (
        replace(view, levels=view.levels + 1),
        replace(view, spans=view.spans * 32),
        replace(view, distances=view.distances * 1000),
    ):
        assert not torch.allclose(net(other).gain, base, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_learns_to_find_what_the_tail_names(kind: str) -> None:
    """Training teaches it which entry carries the vector that the tail asks for; every weight gets a gradient."""
    net, draw = _net(kind), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    words = torch.randn(64, DIM, generator=draw)

    def batch() -> tuple[LensInput, Tensor]:
        entries = torch.stack([torch.randperm(64, generator=draw)[:6] for _ in range(64)])
        asked = torch.randint(0, 6, (64,), generator=draw)
        flat = torch.zeros(64, 6, dtype=torch.long)
        tail = words[entries.gather(1, asked[:, None])]
        return LensInput(words[entries], flat + 1, flat + 32, flat, tail), asked

    for step in range(80):
        view, asked = batch()
        out = net(view)
        loss = torch.nn.functional.cross_entropy(out.gain, asked) + torch.nn.functional.cross_entropy(-out.harm, asked)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            scored = {name: p for name, p in net.named_parameters() if not name.startswith(("key_net", "query_net"))}
            assert not [name for name, p in scored.items() if p.grad is None]
        optimizer.step()
    view, asked = batch()
    assert (net(view).gain.argmax(1) == asked).float().mean() > 0.8


def test_keys_are_unit_and_ignore_padding() -> None:
    """A block has its sub-keys, unit vectors, different ones; garbage behind a mask changes none."""
    net, blocks = _net("cross").key_net, torch.randn(5, 8, DIM)
    keys = net(blocks)
    assert keys.shape == (5, 3, 16)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(5, 3))
    assert not torch.allclose(keys[:, 0], keys[:, 1])
    mask = torch.arange(8).expand(5, 8) < 5
    torch.testing.assert_close(net(blocks.masked_fill(~mask[..., None], float("nan")), mask), net(blocks[:, :5]))


def test_queries_are_bounded_and_ignore_padding() -> None:
    """A few queries a tail, at most of unit length; padding changes none, and without a token they are zero."""
    net, tail = _net("cross").query_net, torch.randn(2, 6, DIM)
    mask = torch.arange(6).expand(2, 6) < 4
    queries = net(tail.masked_fill(~mask[..., None], float("nan")), mask)
    assert queries.shape == (2, 8, 16)
    assert (queries.norm(dim=-1) <= 1).all()
    torch.testing.assert_close(queries, net(tail[:, :4]), rtol=1e-4, atol=1e-5)
    assert (net(tail[:, :0]) == 0).all()
    assert (net(tail, torch.zeros(2, 6, dtype=torch.bool)) == 0).all()


@pytest.mark.parametrize(("field", "value"), [("kind", "oracle"), ("layers", 0), ("heads", 3)])
def test_settings_that_cannot_work_are_refused(field: str, value: object) -> None:
    """The error names the field."""
    with pytest.raises(ConfigError, match=field):
        LensNetConfig(DIM, **{field: value})  # type: ignore[arg-type]
