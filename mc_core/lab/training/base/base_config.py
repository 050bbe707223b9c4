"""Settings of a base training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError
from mc_core.lab.training.base.batches import Stage
from mc_core.lab.training.base.model import BaseShape
from mc_core.lab.training.schedule import CURRICULUM

FIXED = ("shape", "vocab_size", "seed")
"""What a resumed run may not change; rates, lengths of the run and the curriculum may."""


@dataclass(frozen=True)
class BaseTrainConfig:
    """data: a folder of .jsonl or .jsonl.xz files; out: the run's folder, which is resumed if it holds a run.

    batch_tokens: tokens a step, about; total_tokens: of the whole run. muon_rate is for the layers' matrices,
    adam_rate for embeddings and norms. history_weight: loss weight of history tokens under the block mask.
    mix: shares of the corpus files by name relative to ``data`` (default: by square root of size).
    precision: "float32", "bfloat16" (autocast; fast on GPUs and on CPUs with bfloat16 units, slow on others), or
    "auto" (bfloat16 on CUDA alone); compile: compile the decoder's layers. workers: processes that make batches ahead,
    0 = this one makes them. tokenizer: a folder with a tokenizer.json to use instead of training one.
    """

    data: Path
    out: Path
    tokenizer: Path | None = None
    vocab_size: int = 8192
    tokenizer_chars: int = 25_000_000
    shape: BaseShape = field(default_factory=BaseShape)
    stages: tuple[Stage, ...] = CURRICULUM
    mix: dict[str, float] | None = None
    batch_tokens: int = 4096
    total_tokens: int = 10_000_000
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 40
    decay: float = 0.6
    floor: float = 0.02
    clip: float = 1.0
    history_weight: float = 0.5
    seed: int = 0
    device: str = "cpu"
    precision: str = "auto"
    compile: bool = False
    workers: int = 0
    checkpoint_minutes: float = 5.0
    log_steps: int = 20

    def __post_init__(self) -> None:
        positive = ("vocab_size", "tokenizer_chars", "batch_tokens", "total_tokens", "muon_rate", "adam_rate", "clip")
        for name in (*positive, "checkpoint_minutes", "log_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.workers < 0:
            raise ConfigError(f"workers must be at least 0, got {self.workers}")
        for name in ("decay", "floor", "history_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")
        if not self.stages:
            raise ConfigError("stages must name at least one stage")
        longest = max(stage.length for stage in self.stages)
        if longest > self.shape.max_positions:
            raise ConfigError(f"stage length {longest} is above shape.max_positions {self.shape.max_positions}")

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, self.total_tokens // self.batch_tokens)

    @property
    def bfloat16(self) -> bool:
        """Are matrix products computed in bfloat16?"""
        return self.precision == "bfloat16" or (self.precision == "auto" and self.device.startswith("cuda"))

    def summary(self) -> dict[str, Any]:
        """JSON-able settings, without this machine's paths."""
        return {key: value for key, value in asdict(self).items() if key not in ("data", "out", "tokenizer")}

    def check_resumes(self, saved: dict[str, Any]) -> None:
        """ConfigError if a run with these settings cannot go on from one with ``saved`` (a ``summary``)."""
        now = self.summary()
        for name in FIXED:
            if now[name] != saved.get(name):
                raise ConfigError(f"{name} cannot change when a run is resumed: {saved.get(name)} -> {now[name]}")
