"""Batches of a step: a function of (settings, seed, step) alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.lab.tasks.make import TASKS as MEMORY_TASKS
from mc_core.lab.training.memory_samples import memory_drill, memory_sample
from mc_core.lab.training.sample import BLOCK, Difficulty, Layout, Sample
from mc_core.lab.training.sample_maker import SampleMaker

TASKS = ("text", "recall", "copy", "drill", "memory")
"""What a sequence may be; a "memory" sequence is an episode of one of ``MEMORY_TASKS``."""
FIELDS = ("ids", "weights", "marks")


class Shared(Protocol):
    """A part of a curriculum: ``share`` of all steps."""

    @property
    def share(self) -> float: ...


S = TypeVar("S", bound=Shared)


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum.

    share: of all steps; length: tokens of a sequence at most; tail: tokens of its tail, least and most; recall, copy,
    drill (recall and episodes without any text around them) and memory (episodes of ``tasks``, with up to facts[1]
    distractors): shares of sequences, the rest is text; memory_drill: share of drills that are of episodes; facts,
    digits: see ``Difficulty``; block_mask: share of batches under it; wide_segments: share of batches with history
    segments of four blocks; sequences: of a batch, 0 = as many as the tokens of a step allow.
    """

    share: float
    length: int
    tail: tuple[int, int]
    recall: float
    copy: float
    facts: tuple[int, int]
    digits: tuple[int, int] = (3, 7)
    block_mask: float = 0.65
    wide_segments: float = 0.0
    sequences: int = 0
    drill: float = 0.0
    memory: float = 0.0
    memory_drill: float = 0.0
    tasks: tuple[str, ...] = MEMORY_TASKS

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"stage share must lie in (0, 1], got {self.share}")
        shares = (self.recall, self.copy, self.drill, self.memory)
        if sum(shares) > 1 + 1e-9 or min(shares) < 0:
            raise ConfigError(f"stage recall + copy + drill + memory must lie in [0, 1], got {shares}")
        if not 0 <= self.memory_drill <= 1:
            raise ConfigError(f"stage memory_drill must lie in [0, 1], got {self.memory_drill}")
        if not self.tasks or not set(self.tasks) <= set(MEMORY_TASKS):
            raise ConfigError(f"stage tasks must be some of {MEMORY_TASKS}, got {self.tasks}")
        if not 2 * BLOCK <= self.tail[0] <= self.tail[1] or self.length < self.tail[1] + 2 * BLOCK:
            raise ConfigError(
                f"stage tail must be at least {2 * BLOCK} and leave {2 * BLOCK} tokens of length {self.length}, "
                f"got {self.tail}"
            )


@dataclass
class Batch:
    """ids, targets [B, T] int64; weights [B, T]; marks [B, T] (of the targets); tasks [B] index into TASKS.

    Targets are the inputs' next tokens. ``tail_start`` and ``segment`` describe the block mask; ``block_mask`` says
    whether it applies.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    marks: Tensor
    tasks: Tensor
    tail_start: int
    segment: int
    block_mask: bool


def stage_of(stages: Sequence[S], step: int, steps: int) -> S:
    """The stage that ``step`` of ``steps`` falls into."""
    end, total = 0.0, sum(stage.share for stage in stages)
    for stage in stages:
        end += stage.share / total * steps
        if step < end:
            return stage
    return stages[-1]


def make_batch(
    maker: SampleMaker, stage: Stage, batch_tokens: int, history_weight: float, seed: int, step: int
) -> Batch:
    """The batch of one step, about ``batch_tokens`` tokens.

    history_weight: weight of history tokens under the block mask, where they see next to nothing.
    """
    rng = np.random.default_rng([seed, step])
    masked = bool(rng.random() < stage.block_mask)
    layout, segment = _layout(rng, stage)
    count = stage.sequences or max(1, batch_tokens // stage.length)
    tasks = [_task(rng, stage) for _ in range(count)]
    longer = Layout(layout.length + 1, layout.tail_start)
    made = [_sample(rng, maker, stage, longer, task, masked) for task in tasks]
    samples, tasks = [sample for sample, _ in made], [task for _, task in made]
    ids, weights, marks = (torch.from_numpy(np.stack([getattr(s, name) for s in samples])) for name in FIELDS)
    weights = weights[:, 1:].clone()
    if masked:
        weights[:, : layout.tail_start - 1] *= history_weight
    where = torch.tensor([TASKS.index(task) for task in tasks])
    return Batch(ids[:, :-1], ids[:, 1:], weights, marks[:, 1:], where, layout.tail_start, segment, masked)


def thinned(batch: Batch, rng: Generator, share: float) -> Batch:
    """The batch with but a share of its plain tokens counted, each for so many more; answers count as before.

    The loss stays the same in expectation, and most of the head's work is saved.
    """
    plain = batch.weights <= 1.0
    kept = torch.from_numpy(rng.random(tuple(batch.weights.shape)) < share)
    weights = torch.where(plain, torch.where(kept, batch.weights / share, 0.0), batch.weights)
    return replace(batch, weights=weights)


def _layout(rng: Generator, stage: Stage) -> tuple[Layout, int]:
    """Lengths vary by up to a block: a served context ends anywhere in one. Segments are wide only where one fits."""
    segment = 4 * BLOCK if rng.random() < stage.wide_segments else BLOCK
    length = stage.length - int(rng.integers(BLOCK))
    tail = int(rng.integers(stage.tail[0], stage.tail[1] + 1))
    room = length - tail - BLOCK
    segment = BLOCK if room < segment else segment
    return Layout(length, BLOCK + max(1, room // segment) * segment), segment


def _task(rng: Generator, stage: Stage) -> str:
    draw = rng.random()
    for task in TASKS[1:]:
        share: float = getattr(stage, task)
        if draw < share:
            return task
        draw -= share
    return "text"


def _sample(
    rng: Generator, maker: SampleMaker, stage: Stage, layout: Layout, task: str, masked: bool
) -> tuple[Sample, str]:
    """A sample of the task, and the task; text instead where what was drawn does not fit the layout."""
    difficulty = Difficulty(stage.facts, stage.digits)
    sample: Sample | None = None
    if task == "drill" and not masked:
        if rng.random() < stage.memory_drill:
            sample = memory_drill(rng, maker, layout.length, stage.tasks, stage.facts[1])
        else:
            sample = maker.drill(rng, layout.length, difficulty)
    elif task == "copy":
        sample = maker.copy(rng, layout)
    elif task == "memory":
        sample = memory_sample(rng, maker, layout, stage.tasks, stage.facts[1])
    elif task in ("recall", "drill"):
        # Under the block mask a drill's facts must stand in the history and its questions in the tail.
        style = 0.0 if task == "drill" else None
        made = maker.recall(rng, layout, difficulty, style=style)
        # One fact alone takes the least room.
        made = made or maker.recall(rng, layout, Difficulty((1, 1), stage.digits), turns=1, style=style)
        sample = made[0] if made else None
    if sample is None:
        sample, task = maker.text(rng, layout), "text"
    return sample[: layout.length], task


def check_stages(maker: SampleMaker, stages: tuple[Stage, ...], seed: int, tries: int = 40) -> None:
    """ConfigError if a stage has recall or memory sequences and hardly any question fits one: it would teach none."""
    rng = np.random.default_rng([seed, 5])
    for stage in stages:
        for task in ("recall", "memory"):
            if not getattr(stage, task):
                continue
            layouts = [_layout(rng, stage)[0] for _ in range(tries)]
            longer = [Layout(layout.length + 1, layout.tail_start) for layout in layouts]
            fit = sum(_sample(rng, maker, stage, layout, task, True)[1] == task for layout in longer)
            if fit < tries / 4:
                raise ConfigError(
                    f"stage length {stage.length} with tail {stage.tail} is too short for questions of {task} under "
                    f"this tokenizer ({fit} of {tries} fit): a vocabulary of more than "
                    f"{maker.encoder.tokenizer.get_vocab_size()} tokens, or longer stages, are needed"
                )
