"""One refocus inside a job: score, plan, restore spans, commit, repair keys and values, evict."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc_core.engine.core import EngineCore
from mc_core.engine.kv_sharing import take_beginning
from mc_core.engine.observer import Part, RefocusTrace
from mc_core.engine.requests import ContextReport
from mc_core.engine.work import Forward, Pause, Wait, Work
from mc_core.focus.question import Question
from mc_core.focus.refocuser import Proposal
from mc_core.kv.layout import FRAME, Layout
from mc_core.session.session import Session


def refocus(
    core: EngineCore,
    session: Session,
    question: Question,
    context: ContextReport,
    request_id: str,
    reason: Literal["turn", "interval"],
) -> Generator[Work, Any, Tensor | None]:
    """Refocus a session on ``question`` and repair its slab -> hidden state [d] of the last unit, if computed.

    reason "turn": the lens is asked whenever it was last, and the last unit is computed, for its logits.
    """
    assert session.kv is not None
    if reason == "interval":
        yield Pause(0)  # until others decode: planning keeps the host busy, and no GPU waits for it then
    trace = RefocusTrace(session.id, request_id, reason, session.counters.refocuses, {}, started=time.time())
    trace.gist_calls, session.gist_calls = session.gist_calls, 0
    clock = Clock(trace.parts)
    proposal = session.propose(question, fresh=reason == "turn")
    clock.lap("plan")
    clock.part("lens", proposal.started, proposal.seconds["lens"])
    clock.part("allocate", proposal.started + proposal.seconds["lens"], proposal.seconds["allocate"])
    proposal = yield from _restore(core, session, proposal, context, trace)
    clock.lap("restore")
    session.commit_focus(proposal)
    if reason == "turn":
        yield from _follow(core, session, question, context, trace)
        clock.lap("follow")
    hidden = yield from repair(core, session, context, trace, need_last=reason == "turn")
    clock.lap("kv_repair")
    trace.spans_evicted = evict(core, session)
    clock.lap("evict")
    report = session.last_report
    assert report is not None
    trace.report = report.attributes()
    context.refocuses += 1
    context.swap_rate = report.swap_rate
    core.observer.refocused(trace)
    core.moved(session, reason)
    return hidden


def _follow(
    core: EngineCore,
    session: Session,
    question: Question,
    context: ContextReport,
    trace: RefocusTrace,
) -> Generator[Work, Any, None]:
    """Look for what the opened places name in turn; keys and values are repaired once, afterwards."""
    for proposal in session.hops(question):
        session.commit_hop((yield from _restore(core, session, proposal, context, trace)))
        trace.hops += 1


class Clock:
    """Splits elapsed time into named parts; ``time.perf_counter`` is its clock."""

    def __init__(self, parts: dict[str, Part]) -> None:
        self._parts = parts
        self._began = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What was done since the last lap."""
        now = time.perf_counter()
        self.part(name, self._last, now - self._last)
        self._last = now

    def part(self, name: str, at: float, seconds: float) -> None:
        """Something that began at ``at`` by the clock."""
        self._parts[name] = Part(at - self._began, seconds)


def _restore(
    core: EngineCore, session: Session, proposal: Proposal, context: ContextReport, trace: RefocusTrace
) -> Generator[Work, Any, Proposal]:
    """Bring the ids that the plan needs back from the store, in one round trip; what does not come stays coarse."""
    needed = proposal.needed_blocks
    trace.spans_hit += len(proposal.expanded_blocks) - len(needed)
    if not len(needed):
        return proposal
    future = core.store.read_spans(session.id, needed)
    done = yield Wait(future, time.monotonic() + core.config.restore_deadline)
    if not done or future.exception() is not None:
        # Late or failed: the entries stay coarse and the next refocus asks again.
        trace.spans_missed += len(needed)
        context.unavailable += len(needed) * session.block_size
        return proposal.without(needed)
    batch = future.result()
    session.tree.restore(batch.blocks, batch.ids)
    absent = np.concatenate([batch.missing, batch.corrupt])
    session.counters.spans_fetched += len(batch.blocks)
    session.counters.spans_missing += len(batch.missing)
    session.counters.spans_corrupt += len(batch.corrupt)
    trace.spans_fetched += len(batch.blocks)
    trace.spans_missed += len(absent)
    context.spans_fetched += len(batch.blocks)
    context.unavailable += len(absent) * session.block_size
    return proposal.without(absent) if len(absent) else proposal


def repair(
    core: EngineCore, session: Session, context: ContextReport, trace: RefocusTrace, *, need_last: bool
) -> Generator[Work, Any, Tensor | None]:
    """Bring the slab to the present working context -> hidden state [d] of the last unit, if it was computed."""
    kv = session.kv
    assert kv is not None
    layout = core.layout(session)
    trace.kv_shared = 0 if len(kv) else take_beginning(core, session, layout)
    context.kv_shared += trace.kv_shared
    # What is shown whole is read exactly as a plain server reads it; what was put away may have left older views.
    whole = need_last and not session.wc.levels.any()
    refresh = whole or session.counters.refocuses % core.config.refresh_every == 0
    plan = kv.begin(layout, need_last=need_last, refresh=refresh)
    trace.kv_reused, trace.kv_recomputed = plan.reused, plan.recomputed
    trace.kv_sought, trace.kv_restored = plan.sought, len(plan.restored)
    context.kv_reused += plan.reused
    context.kv_recomputed += plan.recomputed
    hidden: Tensor | None = None
    last = len(layout) - 1
    for chunk in plan.chunks:
        output = yield Forward(kv, chunk, unit_embeddings(core, session, layout, chunk.ranks))
        if chunk.ranks[-1] == last:
            hidden = output[-1]
    return hidden


def unit_embeddings(core: EngineCore, session: Session, layout: Layout, ranks: NDArray[np.int64]) -> Tensor:
    """Input embeddings [T, d] of units: those of tokens, of the history and of frames, and gists in place of tokens."""
    levels = layout.levels[ranks]
    raw, framed = levels == 0, levels == FRAME
    ids = np.zeros(len(ranks), np.int64)
    ids[raw] = token_ids(session, layout.starts[ranks[raw]])
    ids[framed] = layout.frame_ids(ranks[framed])
    vectors = core.runner.embed(ids)
    for level in np.unique(levels[levels > 0]).tolist():
        rows = np.flatnonzero(levels == level)
        nodes, parts = layout.gist_vectors(ranks[rows], session.block_size)
        gists = session.tree.gist_vectors(level, nodes)[torch.arange(len(nodes)), torch.from_numpy(parts)]
        vectors[torch.from_numpy(rows).to(vectors.device)] = gists.to(vectors.dtype)
    return vectors


def token_ids(session: Session, positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """Token ids at positions of the history that stand raw in the working context."""
    tree, block_size = session.tree, session.block_size
    blocks = positions // block_size
    ids = np.empty(len(positions), np.int32)
    complete = blocks < tree.num_blocks
    needed, inverse = np.unique(blocks[complete], return_inverse=True)
    if len(needed):
        ids[complete] = tree.block_ids(needed)[inverse, positions[complete] % block_size]
    if not complete.all():
        first = tree.num_blocks * block_size
        ids[~complete] = tree.ids(first, tree.num_tokens)[positions[~complete] - first]
    return ids


def visible_ids(session: Session) -> NDArray[np.int32]:
    """The tokens of the history that stand in a session's slab, as they are read."""
    assert session.kv is not None
    return token_ids(session, session.kv.raw_starts())


def evict(core: EngineCore, session: Session) -> int:
    """Free ids beyond ``hot_tokens`` that the store has acknowledged -> spans evicted."""
    hot = core.config.hot_tokens
    if hot is None:
        return 0
    evicted = session.tree.evict(hot, session.blocks_to_keep())
    session.counters.spans_evicted += len(evicted)
    return len(evicted)


def visible_tokens(core: EngineCore, session: Session, context: ContextReport) -> None:
    """Fill in how the model sees the history now."""
    wc = session.wc
    spans = wc.ends() - wc.starts()
    context.tokens, context.budget, context.cost = session.tokens, wc.budget, wc.cost
    excerpt = session.excerpt(core.room(session))
    context.raw, context.framed = int(spans[wc.levels == 0].sum()) - excerpt.hidden, excerpt.framed
    coarse = session.tokens - context.raw
    context.gisted, context.hidden = (0, coarse) if core.hides_gists(session) else (coarse, 0)
