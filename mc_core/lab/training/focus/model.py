"""Base and GistNet together: a batch of views with live gists, and the losses on what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.lab.training.focus.attention_mass import ViewAttention
from mc_core.lab.training.focus.batch import GistSources
from mc_core.lab.training.focus.losses import expected_embeddings, gist_regression, token_losses
from mc_core.lab.training.focus.view import View, ViewBatch, collate
from mc_core.models.attention import Attention
from mc_core.models.decoder import Decoder
from mc_core.models.low_rank import LowRank
from mc_core.models.rotary import Rotary
from mc_core.nets.gist_maker import GistMaker
from mc_core.positions.policies import Policy
from mc_core.tree.tree import MegaContextTree


@dataclass(frozen=True, eq=False)
class ViewOutput:
    """logits [M, vocabulary] of the M targets that count (weight above 0, if the tail's do, or in the future), in order
    of the flattened batch; where [B, T] says which those are."""

    logits: Tensor
    where: Tensor
    batch: ViewBatch
    gists: Tensor

    def losses(self) -> Tensor:
        """Nats of each target that counts [M]."""
        return token_losses(self.logits, self.batch.targets[self.where])

    @property
    def future(self) -> Tensor:
        """Which of the M targets lie after the working context."""
        return self.batch.future[self.where]

    @property
    def weights(self) -> Tensor:
        return self.batch.weights[self.where]


class FocusModel(nn.Module):
    """A decoder that reads gists, and the GistNet that makes them. Gradients reach both, unless frozen.

    low_rank: with which the decoder reads gists.
    """

    def __init__(self, decoder: Decoder, gistnet: GistMaker, policy: Policy, low_rank: LowRank | None = None) -> None:
        super().__init__()
        self.decoder, self.gistnet, self.policy, self.low_rank = decoder, gistnet, policy, low_rank
        self.rotary = Rotary(decoder.config, decoder.device)

    def stock(self) -> AbstractContextManager[None]:
        """The base as it is without gists, for the time of a block."""
        return nullcontext() if self.low_rank is None else self.low_rank.off()

    def gists(self, trees: Sequence[MegaContextTree], views: Sequence[View]) -> Tensor:
        """Live vectors [G, d] of all gists that the views show, in order: one GistNet call a level.

        Children of LOD1 are the embeddings of their tokens; children above are the tree's own gists, made by this
        GistNet but without a gradient, as LOD2 is trained on LOD1's outputs.
        """
        levels = np.concatenate([view.nodes[0] for view in views])
        gists = torch.zeros(len(levels), self.gistnet.width, device=self.decoder.device)
        for level in np.unique(levels).tolist():
            children = [self._children(tree, view, level) for tree, view in zip(trees, views, strict=True)]
            rows = torch.from_numpy(np.flatnonzero(levels == level)).to(gists.device)
            gists = gists.index_put((rows,), self.gistnet(torch.cat(children)).float())
        return gists.view(-1, self.gistnet.dim)

    def made(self, sources: GistSources) -> Tensor:
        """The same gists [G, d] from token ids alone, a level at a time; where no tree is there to be read."""
        size, dim = self.gistnet.block_size, self.gistnet.dim
        parts = [self.decoder.embed_tokens.weight.new_zeros(0, self.gistnet.width).float()]
        for level, ids in sources.ids.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and level == 1):
                children = self.decoder.embed(ids).float().view(-1, size, dim)
            for _ in range(level - 1):
                with torch.no_grad():
                    children = self.gistnet(children).float().view(-1, size * self.gistnet.vectors, dim)
            parts.append(self.gistnet(children).float())
        return torch.cat(parts)[sources.order].view(-1, dim)

    def forward(self, views: Sequence[View], gists: Tensor) -> ViewOutput:
        """Read the views, ``gists`` [G, d] in their places."""
        return self.read(collate(views, self.policy, self.rotary), gists)

    def read(
        self, batch: ViewBatch, gists: Tensor, *, tail: bool = True, attention: Attention | None = None
    ) -> ViewOutput:
        """The same of views that are collated already. tail: its targets count too, not those of the future alone.
        attention: None is the one that serving has."""
        x = self.decoder.embed(batch.ids)
        flat = x.flatten(0, 1).index_put((batch.gist_rows,), gists.to(x.dtype))
        hidden = self.decoder(flat.view_as(x), attention or ViewAttention(batch, self.policy))
        where = (batch.weights > 0) | batch.future if tail else batch.future
        return ViewOutput(self.decoder.logits(hidden[where]), where, batch, gists)

    def regression(
        self, output: ViewOutput, blocks: Tensor, runs: Sequence[int], top: int = 64
    ) -> tuple[Tensor, Tensor]:
        """LOD1 and LOD2 gist regression on the future, teacher-forced: gists of the expected tokens against true ones.

        blocks [n, K]: flat places in the batch of the whole blocks of futures (LOD1); ``runs`` of them, what there is
        of a LOD2 node's children, make one gist each: a long horizon is trimmed to one such node. 0 without any.
        """
        if not len(blocks):
            nothing = output.logits.sum() * 0
            return nothing, nothing
        rows = (output.where.flatten().cumsum(0) - 1)[blocks.flatten()]
        expected = expected_embeddings(output.logits[rows], self.decoder.embed_tokens.weight, top)
        guessed = self.gistnet(expected.view(*blocks.shape, -1)).float()
        with torch.no_grad():
            true = output.batch.targets.flatten()[blocks]
            known = self.gistnet(self.decoder.embed(true).float()).float()
        parents = self._parents(guessed, runs), self._parents(known, runs)
        return gist_regression(guessed, known), gist_regression(*parents)

    def _parents(self, gists: Tensor, runs: Sequence[int]) -> Tensor:
        """Gists [n, m d] of ``runs`` that belong together -> one each, of as many children as there are."""
        vectors, dim = self.gistnet.vectors, self.gistnet.dim
        children = nn.utils.rnn.pad_sequence(list(torch.split(gists, list(runs))), batch_first=True)
        count = torch.tensor(runs, device=gists.device)
        mask = torch.arange(children.shape[1], device=gists.device) < count[:, None]
        return self.gistnet(children.view(len(children), -1, dim), mask.repeat_interleave(vectors, 1)).float()

    def _children(self, tree: MegaContextTree, view: View, level: int) -> Tensor:
        """Children [g, T, d] of the gists of one level that one view shows, in order: K tokens, or K gists' vectors."""
        levels, nodes = view.nodes
        chosen, size = nodes[levels == level], tree.config.block_size
        if level == 1:
            ids = torch.from_numpy(tree.block_ids(chosen).astype("int64")).to(self.decoder.device)
            return self.decoder.embed(ids).float()
        inner = (chosen[:, None] * size + np.arange(size)).reshape(-1)
        return tree.gists(level - 1, inner).float().view(-1, size * tree.gistnet.vectors, tree.dim)
