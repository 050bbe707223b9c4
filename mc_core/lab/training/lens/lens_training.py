"""Settings of a lens training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from mc_core.errors import ConfigError
from mc_core.lab.tasks.make import TASKS
from mc_core.lab.training.run_config import RunConfig
from mc_core.nets.lensnet import LensKind

SOFTNESS = (0.5, 0.02)


@dataclass(frozen=True)
class LensShape:
    """The LensNet's arguments, as ``bundle.json`` keeps them."""

    kind: LensKind = "cross"
    width: int = 128
    heads: int = 4
    layers: int = 2
    keys: int = 4
    key_dim: int = 64
    key_width: int = 96
    key_reach: int = 2
    queries: int = 8
    words: int = 0
    word_hidden: int = 512


@dataclass(frozen=True)
class EntryWeights:
    """What each loss of the entry scores counts beside the squared error; 0 leaves it out."""

    rank: float = 0.5
    balance: float = 0.1
    illegal: float = 0.3
    preference: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ConfigError(f"weights.{name} must be at least 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class LensTrainConfig(RunConfig):
    """model: the bundle to train for.

    A step: ``episodes`` of the tasks but paraphrases, one of those with ``concepts`` statements, and ``pairs`` passages
    and dialogue turns of the corpus. growth: share of the run in which the text around statements grows to its length,
    and scores turn from means of all products to the best of them. distractors: further statements of an episode at
    most. bank: blocks of real text that the hardest ``hard`` are taken from each step, ``fresh`` of them new. labels:
    working contexts with counterfactual labels that entry scores are trained on, made once; 0 leaves entry scores
    untrained. entry_contexts: of these a step. shares: weight of a kind of samples (a task, "text" or "reply") in the
    loss, 1 by default. Every ``validation_steps``, recall is measured in ``glances`` histories of ``validation_blocks``
    blocks, at the end in ``histories``.

    Word vectors (``net.words``) are fitted to a teacher's in ``fit_steps`` steps before the first, and stay so.
    """

    FIXED: ClassVar[tuple[str, ...]] = ("net", "block_size", "seed", "bank", "labels", "fit_steps")

    model: Path
    net: LensShape = field(default_factory=LensShape)
    weights: EntryWeights = field(default_factory=EntryWeights)
    tasks: tuple[str, ...] = tuple(task for task in TASKS if task != "absent")
    shares: dict[str, float] = field(default_factory=lambda: {"paraphrase": 3.0})
    block_size: int = 32
    steps: int = 3000
    growth: float = 0.5
    episodes: int = 4
    distractors: int = 6
    concepts: int = 40
    pairs: int = 12
    bank: int = 4096
    fresh: int = 128
    hard: int = 160
    fit_steps: int = 600
    temperature: float = 0.05
    labels: int = 1024
    entry_contexts: int = 8
    rate: float = 2e-3
    warmup_steps: int = 50
    validation_steps: int = 500
    validation_blocks: int = 31_250
    histories: int = 40
    glances: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("steps", "episodes", "pairs", "bank", "fresh", "hard", "temperature", "rate")
        self.check_positive("validation_steps", "histories", "glances", "fit_steps")
        self.check_shares("growth")
        self.check_least(0, "distractors", "labels")
        for name, least in (("concepts", 4), ("entry_contexts", 1), ("validation_blocks", 64)):
            self.check_least(least, name)
        if self.net.keys < 1:
            raise ConfigError(f"net.keys must be at least 1, got {self.net.keys}: there is nothing else to train")
        if self.block_size not in (16, 32, 64):
            raise ConfigError(f"block_size must be 16, 32 or 64, got {self.block_size}")
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ConfigError(f"tasks must be some of {TASKS}, got {self.tasks}")

    def grown(self, step: int) -> float:
        """From 0 to 1 over the first ``growth`` of the run."""
        return min(1.0, step / max(1.0, self.growth * self.steps))

    def softness_at(self, step: int) -> float:
        """Of the scores in training: falls by a constant factor a step, to 0 when all has grown."""
        grown = self.grown(step)
        return 0.0 if grown >= 1 else SOFTNESS[0] * (SOFTNESS[1] / SOFTNESS[0]) ** grown
