"""What an edit of a working context would be worth: the base's NLL of the next tokens with it and without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from mc_core.bundle.bundle import Bundle
from mc_core.context.groups import groups_of
from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.lab.data.arrays import Ints
from mc_core.lab.training.focus.contexts import ContextShape, Passage, view_of
from mc_core.lab.training.focus.model import FocusModel
from mc_core.positions.policies import make_policy
from mc_core.tree.tree import MegaContextTree, TreeConfig

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Labels:
    """Of the n entries of a working context.

    gain [n]: NLL before - NLL after expanding, harm [n]: NLL after - NLL before collapsing, in nats over the horizon;
    gain_known, harm_known [n]: which were measured. A group's harm stands at each of its members. can_expand,
    can_collapse [n]: legal at all: what is raw cannot expand, and what is pinned or in the tail does not collapse.
    """

    gain: Floats
    harm: Floats
    gain_known: Bools
    harm_known: Bools
    can_expand: Bools
    can_collapse: Bools


@dataclass(frozen=True)
class Action:
    """An edit, and the rows of the entries that its worth is a label of."""

    edit: Edit
    rows: tuple[int, ...]


def legal_actions(wc: WorkingContext) -> list[Action]:
    """Every single edit that the rules allow, whatever it costs."""
    expands = [
        Action(Edit("expand", int(level), int(index)), (row,))
        for row, (level, index) in enumerate(zip(wc.levels, wc.indices, strict=True))
        if level > 0
    ]
    protected = wc.protected()
    groups = groups_of(wc.entries, protected)
    open_row = len(wc) - 1 if wc.open_length else -1
    collapses = [
        Action(
            Edit("collapse", int(groups.levels[g]), int(groups.indices[g])),
            tuple(range(int(groups.first[g]), int(groups.first[g] + groups.counts[g]))),
        )
        for g in np.flatnonzero(groups.whole).tolist()
        if int(groups.first[g]) != open_row
    ]
    return expands + collapses


def edited(wc: WorkingContext, edit: Edit) -> WorkingContext:
    """The context after one edit; its budget grows by the block that an expansion may cost."""
    twin = WorkingContext.restore({**wc.snapshot(), "budget": wc.budget + wc.block_size})
    twin.commit(Plan((edit,), wc.num_tokens))
    return twin


class Counterfactuals:
    """Measures edits with a bundle's base, gists shown or hidden as it serves them."""

    def __init__(self, bundle: Bundle, shape: ContextShape) -> None:
        """shape: of the contexts that are measured."""
        policy = make_policy(bundle.positions, bundle.decoder.config, bundle.block_size, bundle.sigma_scale)
        self.bundle, self.shape = bundle, shape
        self.model = FocusModel(bundle.decoder, bundle.gistnet, policy)
        self.tree_config = TreeConfig(bundle.block_size, device=str(bundle.device))

    def tree(self, passage: Passage) -> MegaContextTree:
        """The passage's history."""
        tree = MegaContextTree(self.tree_config, self.bundle.gistnet, self.bundle.embed)
        tree.append(passage.ids[: passage.history].astype(np.int32))
        return tree

    @torch.no_grad()
    def nll(self, passage: Passage, tree: MegaContextTree, contexts: Sequence[WorkingContext]) -> Tensor:
        """Nats of the passage's future after each of its contexts [V], in one batched forward."""
        hidden = self.bundle.hidden_gists
        views = [view_of(passage, wc, self.shape, hidden_gists=hidden) for wc in contexts]
        output = self.model(views, self.model.gists([tree] * len(views), views))
        losses = output.losses() * output.future
        view = output.where.nonzero()[:, 0]
        return losses.new_zeros(len(views)).index_add_(0, view, losses)

    def labels(self, rng: Generator, passage: Passage, wc: WorkingContext, actions: int, wanted: Ints) -> Labels:
        """Measure up to ``actions`` of the legal edits, those of blocks ``wanted`` first, others at random."""
        legal = legal_actions(wc)
        chosen = _chosen(rng, wc, legal, actions, wanted)
        contexts = [wc, *(edited(wc, legal[i].edit) for i in chosen)]
        nats = self.nll(passage, self.tree(passage), contexts).cpu().numpy()
        n = len(wc)
        labels = Labels(*np.zeros((2, n), np.float32), *np.zeros((4, n), bool))
        for action in legal:
            (labels.can_expand if action.edit.kind == "expand" else labels.can_collapse)[list(action.rows)] = True
        for i, after in zip(chosen, nats[1:].tolist(), strict=True):
            rows = list(legal[i].rows)
            if legal[i].edit.kind == "expand":
                labels.gain[rows], labels.gain_known[rows] = nats[0] - after, True
            else:
                labels.harm[rows], labels.harm_known[rows] = after - nats[0], True
        return labels


def _chosen(rng: Generator, wc: WorkingContext, legal: Sequence[Action], most: int, wanted: Ints) -> list[int]:
    size = wc.block_size

    def covers(edit: Edit) -> bool:
        span = size ** (edit.level - 1)
        return bool(((wanted >= edit.index * span) & (wanted < (edit.index + 1) * span)).any())

    order = rng.permutation(len(legal)).tolist()
    return sorted(order, key=lambda i: not covers(legal[i].edit))[:most]
