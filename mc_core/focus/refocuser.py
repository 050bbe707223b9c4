"""The refocus cycle: score, plan, commit. The caller restores spans in between, and repairs KV afterwards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc_core.context.entries import Entries
from mc_core.context.plan import Edit, Node, Plan
from mc_core.context.protection import Protection
from mc_core.context.working_context import WorkingContext
from mc_core.focus.allocator_base import Allocator, PlanReport
from mc_core.focus.focus_config import FocusConfig
from mc_core.focus.metrics import Spread, Swaps, entries_by_level
from mc_core.focus.reasons import Noted, Reason, Reasons, of_targets
from mc_core.focus.view import Lens, LensView, Scores, carried

REASONS, BEST = "reasons", "best"
"""In the state beside the allocator's."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A plan for the working context as it was, with the scores that led to it.

    asked: whether the lens gave the scores now, or they are carried on. limit: the cost that the plan keeps.
    needed_blocks: of ``expanded_blocks``, those whose ids are not in memory: they must be restored, or dropped by
    ``without``, before the plan is committed. reasons: why it wants its targets, by block. seconds: of the lens and
    the allocator, which ran one after the other from ``started`` on (``time.perf_counter``). fresh: it begins a turn.
    best: the block that is likeliest to answer.
    """

    plan: Plan
    report: PlanReport
    scores: Scores
    entries: Entries
    protection: Protection
    limit: int
    needed_blocks: NDArray[np.int64]
    asked: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    reasons: Mapping[int, Reason] = field(default_factory=dict)
    fresh: bool = True
    best: int | None = None

    @property
    def expanded_blocks(self) -> NDArray[np.int64]:
        """Blocks that the plan makes raw, ascending."""
        return self.plan.expanded_blocks

    def then(self, hop: Proposal) -> Proposal:
        """This and a further part of the same refocus as one, by the entries and scores that it began with."""
        plan = replace(hop.plan, edits=(*self.plan.edits, *hop.plan.edits), elapsed=1)
        rejections = Counter(self.report.rejections) + Counter(hop.report.rejections)
        report = _plan_report(self.entries, self.protection, plan, rejections, self.report.filled + hop.report.filled)
        seconds = {name: self.seconds[name] + hop.seconds[name] for name in self.seconds}
        return replace(self, plan=plan, report=report, seconds=seconds)

    def without(self, blocks: NDArray[np.int64]) -> Proposal:
        """The same without making these blocks raw, nor what that alone asked for; it stays valid."""
        plan = without_blocks(self.plan, self.entries, set(blocks.tolist()), self.limit)
        rejections = Counter(self.report.rejections)
        rejections["missing"] += len(np.intersect1d(self.expanded_blocks, blocks))
        report = _plan_report(self.entries, self.protection, plan, rejections, self.report.filled)
        needed = np.intersect1d(self.needed_blocks, plan.expanded_blocks)
        return replace(self, plan=plan, report=report, needed_blocks=needed)


@dataclass(frozen=True)
class RefocusReport:
    """A working context after a refocus, and what the refocus did. score: gain - harm of the entries before it."""

    tokens: int
    entries: Mapping[int, int]
    cost: int
    budget: int
    eligible: int
    changed: int
    expands: int
    collapses: int
    swap_rate: float
    rejections: Mapping[str, int]
    residency: Spread
    score: Spread
    seconds: Mapping[str, float]

    @property
    def utilization(self) -> float:
        return self.cost / self.budget

    def attributes(self) -> dict[str, int | float]:
        """Flat, for telemetry: entries by level as ``entries.lod0``, rejections by reason as ``rejections.budget``."""
        names = ("tokens", "cost", "budget", "utilization", "eligible", "changed", "expands", "collapses", "swap_rate")
        flat: dict[str, int | float] = {name: getattr(self, name) for name in names}
        flat |= {f"entries.lod{level}": number for level, number in self.entries.items()}
        flat |= {f"rejections.{reason}": number for reason, number in self.rejections.items()}
        flat |= {"residency_mean": self.residency.mean, "residency_p95": self.residency.p95}
        score = self.score
        return flat | {"score_mean": score.mean, "score_std": score.std, "score_min": score.min, "score_max": score.max}


class Refocuser:
    """Asks the lens and the allocator of one session."""

    def __init__(self, config: FocusConfig, lens: Lens, allocator: Allocator) -> None:
        self.config, self.lens, self.allocator = config, lens, allocator
        self._last: Proposal | None = None
        self._whole: Proposal | None = None
        self._since = 0  # refocuses since the lens was asked
        self._reasons = Reasons()
        self._best: int | None = None

    def propose(self, view: LensView, wc: WorkingContext, reserve: int, *, fresh: bool = True) -> Proposal:
        """Score ``wc`` and plan its edits, which leave ``reserve`` of the budget free. Changes nothing in it.

        fresh: ask the lens. Else it is asked at every ``lens_interval``-th refocus, and its scores carried on between.
        """
        started = time.perf_counter()
        last = None if fresh or self._since + 1 >= self.config.lens_interval else self._last
        scores = _finite(self.lens.score(view)) if last is None else carried(last.entries, last.scores, view)
        scored = time.perf_counter()
        own = view.own(scores.targets)
        certainty = float(scores.target_scores[~own].max(initial=0.0))
        plan, report = self.allocator.plan(wc, scores, reserve, certainty)
        seconds = {"lens": scored - started, "allocate": time.perf_counter() - scored}
        needed = plan.expanded_blocks
        if len(needed):
            needed = np.asarray(view.tree.missing(needed), np.int64)
        reasons = of_targets(scores, view.leads, own, self.config.expand_threshold)
        return Proposal(
            plan,
            report,
            scores,
            wc.entries,
            wc.protection,
            limit=wc.budget - reserve,
            needed_blocks=needed,
            asked=last is None,
            seconds=seconds,
            started=started,
            reasons=reasons,
            fresh=fresh,
            best=self._best_of(scores, reasons, view),
        )

    def commit(self, wc: WorkingContext, proposal: Proposal) -> RefocusReport:
        """Apply a proposal whole; PlanError, with nothing changed, if ``wc`` is no longer what it was made for."""
        wc.commit(proposal.plan)
        self._whole = self._last = proposal
        self._since = 0 if proposal.asked else self._since + 1
        self._note(wc, proposal, further=False)
        if proposal.fresh:  # a reply under way goes on with what it began with
            self._best = proposal.best
        return _report(wc, proposal)

    def commit_hop(self, wc: WorkingContext, proposal: Proposal) -> RefocusReport:
        """Apply a further proposal as a part of the last refocus: no entry grows older -> the report of all parts."""
        assert self._whole is not None
        wc.commit(replace(proposal.plan, elapsed=0))
        self._whole, self._last = self._whole.then(proposal), proposal
        self._note(wc, proposal, further=True)
        return _report(wc, self._whole)

    def _note(self, wc: WorkingContext, done: Proposal, *, further: bool) -> None:
        raw = wc.indices[wc.levels == 0]
        self._reasons.note(raw, done.reasons, done.expanded_blocks, done.report.filled, further=further)

    def _best_of(self, scores: Scores, reasons: Mapping[int, Reason], view: LensView) -> int | None:
        """The lens's best find, the newest of equals, if it is sure of one. A question that was asked before is none:
        it holds the words of this one, and tells nothing."""
        told = {block for block, reason in reasons.items() if reason == "asked"}.difference(view.asked_before.tolist())
        found = np.isin(scores.targets, np.fromiter(told, np.int64, len(told)))
        worth = np.where(found, scores.target_scores, 0.0)
        if not self.config.best_last or not found.any() or worth.max(initial=0.0) < self.config.sure:
            return None
        return int(scores.targets[worth == worth.max()].max())

    def reasons_of(self, wc: WorkingContext) -> list[Reason | None]:
        """Why each entry stands raw [n]; see ``Reasons.of``."""
        return self._reasons.of(wc)

    @property
    def asked(self) -> NDArray[np.int64]:
        """Raw blocks that the last refocus wanted for what they say."""
        return self._reasons.asked

    @property
    def best(self) -> int | None:
        """The block that is likeliest to answer, if it is to be read last before the question."""
        return self._best

    @property
    def targets(self) -> NDArray[np.int64]:
        """Blocks that the last refocus asked for."""
        return np.empty(0, np.int64) if self._last is None else self._last.scores.targets

    @property
    def last(self) -> Proposal | None:
        """What was committed last."""
        return self._last

    @property
    def noted(self) -> Noted:
        """Why blocks stand raw."""
        return self._reasons.noted

    def scores_of(self, wc: WorkingContext) -> NDArray[np.float32]:
        """Signed score of each entry at the last refocus [n]; see ``signed_scores``."""
        return signed_scores(self._last, wc.entries)

    def rewind(self, num_blocks: int) -> None:
        """The history was cut to its first ``num_blocks`` complete blocks."""
        self._reasons.rewind(num_blocks)
        if self._best is not None and self._best >= num_blocks:
            self._best = None

    def snapshot(self) -> dict[str, Any]:
        """State beside the working context's, as JSON can hold it."""
        return {**self.allocator.snapshot(), REASONS: self._reasons.snapshot(), BEST: self._best}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        self.allocator.restore(snapshot)
        self._reasons.restore(snapshot.get(REASONS))
        self._best = snapshot.get(BEST)


def signed_scores(last: Proposal | None, now: Entries) -> NDArray[np.float32]:
    """Signed score of each entry [n] by what was committed last, 0 where unknown.

    An entry that has changed level since shows the score of what stood in its place; a target that was opened then
    shows its worth negated, for what was gain is now the harm of collapsing it.
    """
    if last is None:
        return np.zeros(len(now), np.float32)
    entries, scores = last.entries, last.scores
    starts = now.starts()
    rows = np.searchsorted(entries.starts(), starts, side="right") - 1
    known = (rows >= 0) & (starts < entries.num_tokens)
    signed = np.where(known, np.append(scores.signed, np.float32(0))[rows], np.float32(0))
    opened = np.isin(scores.targets, last.expanded_blocks)
    shown = np.searchsorted(starts, scores.targets[opened] * now.block_size)
    here = shown < len(now)
    shown, worth, blocks = shown[here], scores.target_scores[opened][here], scores.targets[opened][here]
    raw = (now.levels[shown] == 0) & (now.indices[shown] == blocks)
    signed[shown[raw]] = -worth[raw]
    return signed.astype(np.float32)


def _plan_report(
    entries: Entries, protection: Protection, plan: Plan, rejections: Counter[str], filled: tuple[int, ...]
) -> PlanReport:
    swaps = Swaps.of(entries, protection, plan)
    counts = swaps.eligible, swaps.changed, plan.expands, plan.collapses, swaps.rate
    return PlanReport(*counts, dict(rejections), filled)


def _report(wc: WorkingContext, proposal: Proposal) -> RefocusReport:
    """Of a working context after the proposal."""
    done = proposal.report
    return RefocusReport(
        tokens=wc.num_tokens,
        entries=entries_by_level(wc.entries),
        cost=wc.cost,
        budget=wc.budget,
        eligible=done.eligible,
        changed=done.changed,
        expands=done.expands,
        collapses=done.collapses,
        swap_rate=done.swap_rate,
        rejections=done.rejections,
        residency=Spread.of(wc.residency),
        score=Spread.of(proposal.scores.signed),
        seconds=proposal.seconds,
    )


def _finite(scores: Scores) -> Scores:
    """A network that went astray must not break the budget: what is no number counts as 0."""
    columns = (scores.gain, scores.harm, scores.target_scores)
    if all(np.isfinite(column).all() for column in columns):
        return scores
    gain, harm, worth = (np.nan_to_num(column, nan=0.0, posinf=1.0, neginf=0.0) for column in columns)
    return replace(scores, gain=gain, harm=harm, target_scores=worth)


def without_blocks(plan: Plan, entries: Entries, blocks: set[int], limit: int) -> Plan:
    """The plan without opening ``blocks``, without expands that led to nothing else, and without collapses that only
    paid for these, the most harmful first. What is left keeps ``limit`` if the plan did.
    """
    size = entries.block_size
    expands = _needed_expands([edit for edit in plan.edits if edit.kind == "expand"], blocks, size)
    collapses = [edit for edit in plan.edits if edit.kind == "collapse"]
    added, saved = (sum(entries.step(edit.level) for edit in edits) for edits in (expands, collapses))
    cost = entries.cost + added - saved
    # The last ones harm the most, and nothing is built on them.
    while collapses and cost + entries.step(collapses[-1].level) <= limit:
        cost += entries.step(collapses.pop().level)
    return replace(plan, edits=(*expands, *collapses))


def _needed_expands(expands: list[Edit], blocks: set[int], size: int) -> list[Edit]:
    """Drop the expands of ``blocks`` to raw, and then what was expanded on the way to them alone."""
    gone: set[Node] = {(1, block) for block in blocks}
    led_on = {(edit.level + 1, edit.index // size) for edit in expands}
    kept: list[Edit] = []
    leads: set[Node] = set()
    for edit in sorted(expands, key=lambda edit: edit.level):
        # Upwards: a node that led on to others in the plan is needed while one of those is.
        if edit.node in gone or (edit.node in led_on and edit.node not in leads):
            continue
        kept.append(edit)
        leads.add((edit.level + 1, edit.index // size))
    return sorted(kept, key=lambda edit: -edit.level)
