"""Working contexts as batches: what the model is shown of several histories, and the tokens that come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.kv.layout import Layout
from mc_core.lab.data.arrays import Ints
from mc_core.lab.training.focus.losses import IGNORED
from mc_core.models.rotary import Rotary, Rotation
from mc_core.positions.policies import Policy


@dataclass(frozen=True)
class View:
    """One history of N tokens as its working context shows it, and the next H tokens.

    layout: units of the working context; tokens [n] the id of each raw unit (0 at gists); future [H] the tokens after
    it, which continue the tail; weights [n + H]: what foretelling each token counts; block_size: K.
    """

    layout: Layout
    tokens: Ints
    future: Ints
    weights: NDArray[np.float32]
    block_size: int

    @property
    def num_history(self) -> int:
        """Units of the history, which under the block mask see their segment alone."""
        return self.layout.tail

    @property
    def gists(self) -> tuple[Ints, Ints, Ints]:
        """Ranks, levels and node indices of the gists' vectors that are shown."""
        ranks = np.flatnonzero(self.layout.levels > 0)
        return ranks, self.layout.levels[ranks].astype(np.int64), self.layout.gist_vectors(ranks, self.block_size)[0]

    @property
    def nodes(self) -> tuple[Ints, Ints]:
        """Levels and indices of the nodes that are shown as gists."""
        ranks, levels, nodes = self.gists
        first = self.layout.gist_vectors(ranks, self.block_size)[1] == 0
        return levels[first], nodes[first]


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views side by side: columns [0, history) for the units of histories, from ``history`` on for tails; padded.

    ids [B, T] (0 at gists and padding); targets [B, T] the next true token of raw units, ``IGNORED`` where there is
    none; weights [B, T] of the targets; future [B, T] True where the target lies after the working context; positions
    [B, T] float64, and the rotations place [B, T, D / 2] and local [B, history, D / 2], per sample; segments
    [B, history] numbers what sees each other, 0 the first block, -1 padding; real [B, T]; gist_rows [G] places of
    the gists' vectors in the flattened batch, in order of samples.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    future: Tensor
    positions: Tensor
    place: Rotation
    local: Rotation
    segments: Tensor
    real: Tensor
    gist_rows: Tensor
    history: int

    def __len__(self) -> int:
        return len(self.ids)


def collate(views: Sequence[View], policy: Policy, rotary: Rotary) -> ViewBatch:
    """Views -> one batch on the rotary's device. ConfigError if there is none."""
    if not views:
        raise ConfigError("views must hold at least one view")
    history = max(view.num_history for view in views)
    tail = max(len(view.layout) - view.num_history + len(view.future) for view in views)
    width = history + tail
    shape = (len(views), width)
    ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    weights = np.zeros(shape, np.float32)
    future, real = np.zeros(shape, bool), np.zeros(shape, bool)
    segments = np.full((len(views), history), -1, np.int64)
    place = np.zeros((3, *shape))
    local = np.zeros((len(views), history))
    rows: list[Ints] = []
    for b, view in enumerate(views):
        columns = _columns(view, history)
        shown, ahead = len(view.layout), len(view.future)
        tokens = np.concatenate([view.tokens, view.future])
        ids[b, columns], real[b, columns] = tokens, True
        targets[b, columns] = _targets(view, tokens)
        weights[b, columns[:-1]] = view.weights[1:]
        future[b, columns[max(0, shown - 1) :]] = ahead > 0
        place[:, b, columns] = _placement(view, policy)
        inside = view.num_history
        segments[b, :inside] = view.layout.segment_start[:inside]
        local[b, :inside] = view.layout.local[:inside]
        rows.append(b * width + columns[view.gists[0]])
    device = rotary.inv_freq.device
    position, sigma, turns = (torch.from_numpy(part).to(device) for part in place)
    rotation = rotary.table(position, sigma if policy.gaussian else None, turns if rotary.level_channels else None)
    # As when serving: absolute positions are the same wherever a unit is encoded.
    canonical = rotary.table(torch.from_numpy(local).to(device))
    inner = (rotation[0][:, :history], rotation[1][:, :history]) if policy.absolute else canonical
    return ViewBatch(
        ids=torch.from_numpy(ids).to(device),
        targets=torch.from_numpy(targets).to(device),
        weights=torch.from_numpy(np.where(targets != IGNORED, weights, np.float32(0))).to(device),
        future=torch.from_numpy(future & (targets != IGNORED)).to(device),
        positions=position,
        place=rotation,
        local=inner,
        segments=torch.from_numpy(segments).to(device),
        real=torch.from_numpy(real).to(device),
        gist_rows=torch.from_numpy(np.concatenate(rows)).to(device),
        history=history,
    )


def _columns(view: View, history: int) -> Ints:
    """Column of each unit and future token: histories begin at 0, tails at ``history``."""
    inside = view.num_history
    outside = len(view.layout) - inside + len(view.future)
    return np.concatenate([np.arange(inside), history + np.arange(outside)])


def _targets(view: View, tokens: Ints) -> Ints:
    """The true token after each raw unit, if the next unit is that token."""
    levels = np.concatenate([view.layout.levels, np.zeros(len(view.future), np.int8)])
    ends = np.concatenate([view.layout.ends, view.layout.ends[-1] + 1 + np.arange(len(view.future))])
    starts = np.concatenate([view.layout.starts, view.layout.ends[-1] + np.arange(len(view.future))])
    targets = np.full(len(tokens), IGNORED, np.int64)
    follows = (levels[:-1] == 0) & (levels[1:] == 0) & (ends[:-1] == starts[1:])
    targets[:-1][follows] = tokens[1:][follows]
    return targets


def _placement(view: View, policy: Policy) -> NDArray[np.float64]:
    """Positions, sigma and turns [3, n + H]: the future stands right behind the working context."""
    layout, ahead = view.layout, len(view.future)
    first = layout.ends[-1]
    levels = np.concatenate([layout.levels, np.zeros(ahead, np.int8)])
    starts = np.concatenate([layout.starts, first + np.arange(ahead)])
    ends = np.concatenate([layout.ends, first + 1 + np.arange(ahead)])
    return np.stack(policy.placement(levels, starts, ends, np.arange(len(levels))))
