"""What a lens sees of each entry of a working context: the same vectors in serving and in training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mc_core.context.working_context import WorkingContext
from mc_core.tree.tree import MegaContextTree


def entry_vectors(wc: WorkingContext, tree: MegaContextTree) -> Tensor:
    """One vector an entry [n, d]: the mean of its gist's; a raw block's LOD1 gist's; of the open block's embeddings."""
    vectors = torch.zeros(len(wc), tree.dim, device=tree.config.device)
    complete = (wc.levels > 0) | (wc.indices < tree.num_blocks)
    shown = np.maximum(wc.levels, 1)
    for level in np.unique(shown[complete]).tolist():
        rows = np.flatnonzero(complete & (shown == level))
        vectors[torch.from_numpy(rows)] = tree.gist_vectors(level, wc.indices[rows]).to(vectors.dtype).mean(1)
    if not complete.all():
        vectors[-1] = tree.embeddings(int(wc.starts()[-1]), tree.num_tokens).mean(0)
    return vectors
