"""A small model with slabs, and random working contexts: what the KV tests share."""

from __future__ import annotations

import numpy as np
import torch

from mc_core.context.working_context import Edit, Plan, WorkingContext
from mc_core.errors import PlanError
from mc_core.kv.layout import Layout
from mc_core.kv.session_kv import KVModel, SessionKV
from mc_core.kv.slab import SlabPool
from mc_core.kv.static_decode import StaticDecodes
from mc_core.models.decoder import Decoder
from mc_core.models.decoder_config import DecoderConfig
from mc_core.models.rotary import Rotary
from mc_core.positions.policies import make_policy

K, W, FRAMES = 16, 256, 64
CONFIG = DecoderConfig(
    family="qwen3",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qk_norm="weighted",
    block_mask=True,
)
POLICIES = ("compact", "simple", "gaussian", "gaussian_alibi")


def make_model(
    mode: str, policy: str = "compact", rows: int = 1, config: DecoderConfig = CONFIG, static: bool = False
) -> KVModel:
    torch.manual_seed(0)
    decoder = Decoder(config).eval().requires_grad_(False)
    chosen = make_policy(policy, CONFIG, K, 0.5)
    pool = SlabPool(CONFIG, rows, W + K + FRAMES, keep_unrotated=not chosen.absolute, spare=static)
    steps = StaticDecodes(decoder, pool) if static else None
    return KVModel(decoder, Rotary(CONFIG), chosen, pool, mode, chunk_tokens=40, static=steps)


def embed(layout: Layout) -> torch.Tensor:
    """An embedding for each unit that depends on its identity alone."""
    table = torch.randn(997, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    return table[torch.from_numpy(layout.identity % 997)]


def repair(kv: SessionKV, layout: Layout, **options: bool) -> tuple[torch.Tensor | None, int]:
    """Run a whole repair -> (hidden state of the last unit if computed, units recomputed)."""
    plan = kv.begin(layout, **{"need_last": True, **options})
    vectors, hidden = embed(layout), None
    for chunk in plan.chunks:
        out = kv.run(chunk, vectors[torch.from_numpy(chunk.ranks)])
        if chunk.ranks[-1] == len(layout) - 1:
            hidden = out[-1]
    return hidden, plan.recomputed


def edit_at_random(wc: WorkingContext, rng: np.random.Generator) -> None:
    """Grow, shrink or edit a working context; what breaks an invariant is refused and leaves it as it was."""
    action = rng.integers(4)
    if action == 0:
        wc.extend(wc.num_tokens + int(rng.integers(1, 3 * K)), reserve=K)
    elif action == 1 and wc.num_tokens > 1:
        wc.rewind(int(rng.integers(max(1, wc.num_tokens - 2 * K), wc.num_tokens)))
    else:
        for _ in range(4):
            row = int(rng.integers(len(wc.levels)))
            level, index = int(wc.levels[row]), int(wc.indices[row])
            edit = Edit("expand", level, index) if rng.random() < 0.5 else Edit("collapse", level + 1, index // K)
            if edit.kind == "collapse" and level == 0:
                edit = Edit("collapse", 1, index)
            try:
                wc.commit(Plan((edit,), wc.num_tokens))
            except PlanError:
                continue
