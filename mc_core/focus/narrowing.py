"""Taking descents out of a finished plan: their ids could not be had."""

from __future__ import annotations

from dataclasses import replace

from mc_core.context.entries import Entries
from mc_core.context.plan import Edit, Node, Plan


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
