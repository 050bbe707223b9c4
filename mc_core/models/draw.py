"""Exact draws from truncated distributions, a batch of rows at a time; no sort on the CPU.

Rows are unnormalised probabilities [n, vocab] float32. Tokens as likely as the last kept one are kept too, so that a
nucleus never depends on the order of equal scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Uniforms = Callable[[Sequence[int]], Tensor]
"""m row numbers -> one fresh uniform number of [0, 1] for each, from that row's own generator, [m] float32."""

CHUNK = 128


def keep_likely(p: Tensor, min_p: Tensor) -> Tensor:
    """Zero what is less likely than ``min_p`` [n] times the row's best."""
    return p * _above(p, _below(min_p * p.amax(-1))[:, None])


def keep_top_p(p: Tensor, top_p: Tensor) -> Tensor:
    """Zero what is outside the smallest set of best tokens that holds ``top_p`` [n] of the row's mass; sorts."""
    ordered = p.sort(dim=-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    inside = before < _limit(top_p, p.sum(-1))[:, None]
    floor = ordered.masked_fill(~inside, torch.inf).amin(-1)
    return p.masked_fill(p < floor[:, None], 0.0)


def draw_top_p(p: Tensor, top_p: Tensor, uniforms: Uniforms) -> Tensor:
    """A draw from ``keep_top_p(p, top_p)`` by rejection: draw a token, and accept it if it is within the nucleus.

    A token is within iff the tokens more likely than it hold less than ``top_p``. A rejected token shows that nothing
    as likely as it is within either, so the next round draws from what is more likely alone (FlashInfer's scheme,
    arXiv 2501.01005): exact, and 1 / top_p rounds at most on average, of a few passes each. A sort of 8 k costs 20.
    """
    ids = torch.empty(len(p), dtype=torch.int64, device=p.device)
    rows = torch.arange(len(p), device=p.device)
    limit = _limit(top_p, p.sum(-1))
    while True:
        drawn = invert(p, uniforms(rows.tolist()))
        ids[rows] = drawn
        above = _above(p, p.gather(-1, drawn[:, None])).mul_(p)
        rejected = (above.sum(-1) >= limit).nonzero()[:, 0]
        if not len(rejected):
            return ids
        p, rows, limit = above[rejected], rows[rejected], limit[rejected]


def invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Inverse cumulative distribution: the token of each row at which ``uniform`` [n] of its mass is reached.

    Two levels, whole chunks first: cumulative sums run one number at a time, plain sums do not.
    """
    chunk = math.gcd(p.shape[-1], CHUNK)
    parts = p.reshape(len(p), -1, chunk)
    sums = parts.sum(-1)
    cumulative = sums.cumsum(-1)
    target = torch.minimum(uniform * cumulative[:, -1], _below(cumulative[:, -1]))[:, None]
    at = torch.searchsorted(cumulative, target, right=True)
    # A broken model's NaN must not become an index out of range.
    at = at.clamp_(max=parts.shape[1] - 1)
    target = (target - (cumulative - sums).gather(-1, at)).clamp_(min=0.0)
    inner = parts.gather(1, at[:, :, None].expand(-1, -1, chunk))[:, 0].cumsum(-1)
    target = torch.minimum(target, _below(inner[:, -1:]))
    inside = torch.searchsorted(inner, target, right=True).clamp_(max=chunk - 1)
    return (at * chunk + inside)[:, 0]


def _above(p: Tensor, floor: Tensor) -> Tensor:
    """1 where p > floor, else 0, as floats: on the CPU a third of the time of a comparison and its conversion."""
    return (p - floor).relu_().sign_()


def _below(value: Tensor) -> Tensor:
    """The next smaller float: rounding must not lift a draw to the end of the weights, nor a floor over its token."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def _limit(top_p: Tensor, total: Tensor) -> Tensor:
    """Mass above a token at which it is outside; the best token is always inside, and all are at top_p = 1."""
    limit = (top_p * total).clamp(min=torch.finfo(total.dtype).tiny)
    return limit.masked_fill(top_p >= 1, torch.inf)
