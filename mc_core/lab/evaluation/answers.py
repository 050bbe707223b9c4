"""Asks the questions of all suites by all methods, and keeps a row of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mc_core.lab.evaluation.driver import Driver
from mc_core.lab.evaluation.statistics import Estimate, wilson
from mc_core.lab.evaluation.suites import Told
from mc_core.lab.tasks.filler import Filler
from mc_core.lab.tasks.history import History
from mc_core.lab.tasks.plant import PlantPlan, plant
from mc_core.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """One question by one method. gold_open is None for questions that nothing answers."""

    suite: str
    task: str
    method: str
    length: int
    depth: float | None
    gold_open: bool | None
    score: float
    seconds: float
    reply: str


@dataclass(frozen=True)
class Cell:
    """Figures of one suite by one method at one length."""

    suite: str
    method: str
    length: int
    gold: Estimate | None
    answers: Estimate


def ask_all(
    driver: Driver,
    histories: Sequence[History],
    methods: Sequence[str],
    limits: dict[str, int],
    max_tokens: int,
    told: Told,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of all questions, and the methods that were left out, with the reason.

    limits: most questions of a suite by method, for methods that need not answer all.
    """
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    asked: Counter[tuple[str, str]] = Counter()
    total, done = sum(len(history.questions) for history in histories), 0
    for history in histories:
        told(f"{history.length:,} tokens", done, total)
        skipped |= driver.read(history)
        chosen = [
            (method, question)
            for method in methods
            if method not in skipped
            for question in history.questions
            if _counted(asked, method, question.suite, limits)
        ]
        for number, (method, question) in enumerate(chosen, 1):
            answer = driver.ask(method, question, max_tokens)
            score = question.asked.score(answer.text)
            length, depth = history.length, question.depth
            rows.append(
                Row(
                    question.suite,
                    question.task,
                    method,
                    length,
                    None if depth is None else round(depth, 4),
                    answer.gold_open,
                    score,
                    round(answer.seconds, 4),
                    answer.text,
                )
            )
            told(f"{length:,} tokens", done + number * len(history.questions) // len(chosen), total)
        done += len(history.questions)
    return rows, skipped


def _counted(asked: Counter[tuple[str, str]], method: str, suite: str, limits: dict[str, int]) -> bool:
    """Count a question in, unless its suite has enough by this method."""
    if asked[method, suite] >= limits.get(method, np.iinfo(np.int64).max):
        return False
    asked[method, suite] += 1
    return True


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    """Figures by suite, length and method, in the order in which they come."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.suite, row.length, row.method), []).append(row)
    cells = []
    for (suite, length, method), group in groups.items():
        opened = [row.gold_open for row in group if row.gold_open is not None]
        gold = wilson(sum(opened), len(opened)) if opened else None
        cells.append(Cell(suite, method, length, gold, wilson(sum(row.score for row in group), len(group))))
    return cells


def histories_for(plans: Sequence[PlantPlan], tokenizer: Tokenizer, filler: Filler, seed: int) -> list[History]:
    """Histories of all lengths; each length draws from a seed of its own, so that others do not change it."""
    return [
        history
        for plan in plans
        for history in plant(np.random.default_rng([seed, plan.length]), tokenizer, filler, plan)
    ]
